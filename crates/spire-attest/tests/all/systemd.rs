//! `systemd`, against a stand-in for systemd: on a bus that the test plays, and on a real one where there is a
//! `dbus-daemon`. Messages are made here by hand, apart from the product's own.

use std::path::Path;
use std::process::{Command, Stdio};

use ah_spire_attest::workload::systemd::Systemd;
use ah_spire_attest::workload::{WorkloadAttestor, attest};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::cgroups::this_process;
use crate::processes::Running;

const UNIT: &str = "/org/freedesktop/systemd1/unit/nginx_2eservice";
const FRAGMENT: &str = "/lib/systemd/system/nginx.service";

/// The value of a header field, or of a body.
enum Value<'a> {
    Text(char, &'a str),
    Number(u32),
}
use Value::{Number, Text};

fn padded(mut bytes: Vec<u8>, to: usize) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [&length[..], text.as_bytes(), b"\0"].concat()
}

/// A text in a variant.
fn variant(value: &str) -> Vec<u8> {
    [b"\x01s\0\0".to_vec(), text(value)].concat()
}

/// A message of type `kind`.
fn message(kind: u8, fields: &[(u8, Value<'_>)], signature: &str, body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for (code, value) in fields {
        header = padded(header, 8);
        match value {
            Text(of, value) => {
                header.extend([*code, 1, u8::try_from(*of).unwrap(), 0]);
                header.extend(text(value));
            }
            Number(value) => {
                header.extend([*code, 1, b'u', 0]);
                header.extend(value.to_le_bytes());
            }
        }
    }
    if !signature.is_empty() {
        header = padded(header, 8);
        header.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
        header.extend(signature.as_bytes());
        header.push(0);
    }
    let number = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
    let start = [
        &[b'l', kind, 0, 1][..],
        &number(body.len()),
        &77_u32.to_le_bytes(),
        &number(header.len()),
        &header,
    ];
    [padded(start.concat(), 8), body.to_vec()].concat()
}

/// What came: serial, type, the texts of the fields 3 (member) and 7 (sender), and the body.
struct Came {
    serial: u32,
    kind: u8,
    member: String,
    sender: String,
    body: Vec<u8>,
}

async fn came(stream: &mut UnixStream) -> Option<Came> {
    let mut start = [0; 16];
    stream.read_exact(&mut start).await.ok()?;
    let number = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().unwrap());
    let mut fields = vec![0; (number(12) as usize).next_multiple_of(8)];
    stream.read_exact(&mut fields).await.ok()?;
    let mut body = vec![0; number(4) as usize];
    stream.read_exact(&mut body).await.ok()?;
    let field = |code: u8| {
        let head = [code, 1, b's', 0];
        let at = fields.chunks(8).position(|chunk| chunk.starts_with(&head));
        let Some(at) = at.map(|at| at * 8 + 4) else {
            return String::new();
        };
        let length = u32::from_le_bytes(fields[at..at + 4].try_into().unwrap()) as usize;
        String::from_utf8(fields[at + 4..at + 4 + length].to_vec()).unwrap()
    };
    Some(Came {
        serial: number(8),
        kind: start[1],
        member: field(3),
        sender: field(7),
        body,
    })
}

/// What systemd answers to `call`.
fn answer(call: &Came) -> Vec<u8> {
    let destination = (6, Text('s', &call.sender));
    let mut fields = vec![(5, Number(call.serial))];
    if !call.sender.is_empty() {
        fields.push(destination);
    }
    let (signature, body) = match call.member.as_str() {
        "Hello" => ("s", text(":1.7")),
        "GetUnitByPID" if call.body == std::process::id().to_le_bytes() => ("o", text(UNIT)),
        "GetUnitByPID" => {
            fields.push((4, Text('s', "org.freedesktop.systemd1.NoUnitForPID")));
            let why = text("PID 1 does not belong to any loaded unit.");
            return message(3, &fields, "s", &why);
        }
        "Get" if call.body.ends_with(b"\x02\0\0\0Id\0") => ("v", variant("nginx.service")),
        "Get" if call.body.ends_with(b"\x0c\0\0\0FragmentPath\0") => ("v", variant(FRAGMENT)),
        other => panic!("{other}: {:?}", call.body),
    };
    message(2, &fields, signature, &body)
}

async fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

/// A bus on which `answer` is what a call comes to; nothing ends the connection.
fn bus(answer: impl Fn(&Came) -> Vec<u8> + Clone + Send + Sync + 'static) -> (TempDir, Systemd) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let uid: String = nix::unistd::geteuid().to_string();
                let uid: String = uid.bytes().map(|byte| format!("{byte:x}")).collect();
                assert_eq!(
                    line(&mut stream).await,
                    format!("\0AUTH EXTERNAL {uid}\r\n")
                );
                stream.write_all(b"OK 0123456789abcdef\r\n").await.unwrap();
                assert_eq!(line(&mut stream).await, "BEGIN\r\n");
                while let Some(call) = came(&mut stream).await {
                    let told = answer(&call);
                    if told.is_empty() || stream.write_all(&told).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let systemd = at(&path);
    (folder, systemd)
}

fn at(path: &Path) -> Systemd {
    Systemd::new(&format!("unix:path={}", path.display())).unwrap()
}

async fn values(systemd: &Systemd) -> Result<Vec<String>, String> {
    let found = systemd.attest(&this_process()).await;
    let found = found.map_err(|error| error.explained().report())?;
    Ok(found.iter().map(ToString::to_string).collect())
}

fn expected() -> Vec<String> {
    vec![
        "systemd:id:nginx.service".to_owned(),
        format!("systemd:fragment_path:{FRAGMENT}"),
    ]
}

#[tokio::test]
async fn a_process_has_its_unit_and_the_units_file() {
    let (_folder, systemd) = bus(answer);
    // More at once than have connections.
    let found = join_all((0..50).map(|_| values(&systemd))).await;
    assert!(found.into_iter().all(|found| found == Ok(expected())));
}

#[tokio::test]
async fn what_else_comes_is_passed_over() {
    let (_folder, systemd) = bus(|call: &Came| {
        let fields = [
            (1, Text('o', "/x")),
            (2, Text('s', "a.b")),
            (3, Text('s', "Signal")),
        ];
        let signal = message(4, &fields, "s", &text("noise"));
        let other = message(2, &[(5, Number(call.serial + 1000))], "", &[]);
        [signal, other, answer(call)].concat()
    });
    assert_eq!(values(&systemd).await, Ok(expected()));
}

#[tokio::test]
async fn a_process_of_no_unit_has_none() {
    let (_folder, systemd) = bus(|call: &Came| {
        let other = Came {
            body: if call.member == "GetUnitByPID" {
                vec![1, 0, 0, 0]
            } else {
                call.body.clone()
            },
            member: call.member.clone(),
            sender: call.sender.clone(),
            ..*call
        };
        answer(&other)
    });
    assert_eq!(values(&systemd).await, Ok(Vec::new()));
}

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    type Answers = fn(&Came) -> Vec<u8>;
    let cases: [(Answers, &str); 8] = [
        (|_| Vec::new(), "early eof"),
        (
            |_| b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
            "something that is no message",
        ),
        (
            |_| b"l\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0".to_vec(),
            "too large",
        ),
        (
            |call| message(2, &[(5, Number(call.serial))], "u", &[1, 0, 0, 0]),
            "another answer than a path",
        ),
        (
            |call| message(2, &[(5, Number(call.serial))], "o", &text("../x y")),
            "another answer than a path",
        ),
        (
            |call| message(2, &[(5, Number(call.serial))], "o", &[255, 255, 255, 255]),
            "cut off",
        ),
        (
            |call| message(2, &[(5, Number(call.serial))], "o", b"\x01\0\0\0/x"),
            "does not end",
        ),
        (
            |call| {
                let name = Text('s', "org.freedesktop.DBus.Error.ServiceUnknown");
                message(
                    3,
                    &[(5, Number(call.serial)), (4, name)],
                    "s",
                    &text("no systemd"),
                )
            },
            "ServiceUnknown: no systemd",
        ),
    ];
    for (told, why) in cases {
        let (_folder, systemd) = bus(move |call: &Came| match call.member.as_str() {
            "GetUnitByPID" => told(call),
            _ => answer(call),
        });
        let error = values(&systemd).await.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
        assert!(error.contains("hint:"), "{error}");
    }
}

#[tokio::test]
async fn without_a_bus_it_is_told_where_it_should_be() {
    let folder = TempDir::new().unwrap();
    let error = values(&at(&folder.path().join("bus"))).await.unwrap_err();
    assert!(
        error.contains(&format!("{}/bus: No such file", folder.path().display())),
        "{error}"
    );
    let error = Systemd::new("tcp:host=localhost").unwrap_err();
    assert!(
        error.to_string().contains("DBUS_SYSTEM_BUS_ADDRESS"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_never_answers_is_given_up() {
    let folder = TempDir::new().unwrap();
    let _listener = UnixListener::bind(folder.path().join("bus")).unwrap();
    let systemd = at(&folder.path().join("bus"));
    let error = attest(&[systemd], &this_process()).await.unwrap_err();
    let report = error.explained().report();
    assert!(
        report.contains("workloadattestor(systemd): no answer within 10s"),
        "{report}"
    );
}

const BUS: &str = r#"<busconfig>
  <type>session</type>
  <listen>unix:path=PLACE</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>"#;

/// A call of the bus itself, which ends with its reply.
async fn ask_bus(stream: &mut UnixStream, member: &str, signature: &str, body: &[u8]) {
    let fields = [
        (1, Text('o', "/org/freedesktop/DBus")),
        (2, Text('s', "org.freedesktop.DBus")),
        (3, Text('s', member)),
        (6, Text('s', "org.freedesktop.DBus")),
    ];
    stream
        .write_all(&message(1, &fields, signature, body))
        .await
        .unwrap();
    while came(stream).await.unwrap().kind != 2 {}
}

// Each message is judged by the bus, which hangs up on whoever breaks the protocol.
#[tokio::test]
async fn it_is_spoken_to_over_a_real_bus() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("bus");
    let config = folder.path().join("bus.conf");
    std::fs::write(&config, BUS.replace("PLACE", place.to_str().unwrap())).unwrap();
    let mut daemon = Command::new("dbus-daemon");
    daemon
        .args([
            "--nofork",
            "--nopidfile",
            "--print-address",
            "--config-file",
        ])
        .arg(&config);
    if Command::new("dbus-daemon")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        println!("there is no dbus-daemon: this is not tested");
        return;
    }
    let mut daemon = Running::start(&mut daemon);
    daemon.line("unix:path=");

    let mut stream = UnixStream::connect(&place).await.unwrap();
    let uid: String = nix::unistd::geteuid().to_string();
    let uid: String = uid.bytes().map(|byte| format!("{byte:x}")).collect();
    stream
        .write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())
        .await
        .unwrap();
    assert!(line(&mut stream).await.starts_with("OK "));
    stream.write_all(b"BEGIN\r\n").await.unwrap();
    ask_bus(&mut stream, "Hello", "", &[]).await;
    let name = padded(text("org.freedesktop.systemd1"), 4);
    ask_bus(
        &mut stream,
        "RequestName",
        "su",
        &[&name[..], &[0; 4]].concat(),
    )
    .await;
    tokio::spawn(async move {
        while let Some(call) = came(&mut stream).await {
            if call.kind == 1 {
                stream.write_all(&answer(&call)).await.unwrap();
            }
        }
    });
    let systemd = at(&place);
    for _ in 0..3 {
        assert_eq!(values(&systemd).await, Ok(expected()));
    }
}
