//! `ah agent access-point` (contract §2).

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::process::{AccessPoint, DEADLINE, Process, access_point_args, eventually, field};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ONCE;
use crate::kit::{EXECUTOR_ID, Files, Told, executor_leaf, failed, host, pair, sh};

#[test]
fn ap_1_every_address_is_listened_on() {
    let host = host();
    let mut access_point = host.command(["agent", "access-point", "--fleet-listen", "[::1]:0"]);
    access_point.env("AH_FLEET_LISTEN", "127.0.0.1:0");
    // The flag wins over the environment, so that one alone is listened on.
    let by_flag = AccessPoint::start(&mut access_point, &[]);
    assert!(by_flag.address.is_ipv6() && by_flag.address.port() != 0);
    host.executor(by_flag.address, &[ONCE])
        .wait_for(" enrolled executor.id=");
    drop(by_flag);

    let both = host.access_point(&["--fleet-listen", "127.0.0.1:0", "--fleet-listen", "[::1]:0"]);
    let second = both.process.wait_for_nth("listening for executors", 2);
    for address in [both.address, field(&second, "address=").parse().unwrap()] {
        assert_ne!(address.port(), 0);
        let done = host.executor(address, &[ONCE]).wait();
        assert_eq!(done.code(), Some(0), "{address}");
    }
    // Taken already: says so, and how to find by whom.
    let taken = both.address.to_string();
    let done = host.run(["agent", "access-point", "--fleet-listen", &taken]);
    let port = both.address.port().to_string();
    failed(&done, 1).says(&format!("cannot listen on {taken}"), &["in use"], &port);
}

#[test]
fn ap_1_sockets_of_systemd_are_taken_over() {
    let host = host();
    // What systemd does: descriptor 3 listens, and two variables say so to this very process.
    let hand_over = r#"
import os, socket, sys
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print("handed over", listener.getsockname()[1], flush=True)
if listener.fileno() == 3:
    os.set_inheritable(3, True)
else:
    os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"#;
    if !need("python3") {
        return;
    }
    let wrapper = ["python3", "-c", hand_over];
    let process = Process::start(&mut host.command_under(&wrapper, ["agent", "access-point"]));
    let line = process.wait_for("handed over");
    let address = process.wait_for("listening for executors");
    let address: std::net::SocketAddr = field(&address, "address=").parse().unwrap();
    assert_eq!(line, format!("handed over {}", address.port()));
    assert_eq!(host.executor(address, &[ONCE]).wait().code(), Some(0));
    assert_eq!(
        process.count("listening for executors"),
        1,
        "the default address is not used besides"
    );
}

#[test]
fn ap_1_systemd_starts_it_with_the_first_connection() {
    if !need("systemd-socket-activate") {
        return;
    }
    let host = host();
    // Free a moment ago: systemd takes no port 0 that could be asked for afterwards.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let at = address.to_string();
    let wrapper = [
        "systemd-socket-activate",
        "--listen",
        &at,
        "--setenv=STATE_DIRECTORY",
        "--setenv=RUNTIME_DIRECTORY",
    ];
    let process = Process::start(&mut host.command_under(&wrapper, ["agent", "access-point"]));
    process.wait_for("Listening on");
    assert_eq!(process.count("listening for executors"), 0);
    // The connection that wakes it is served like any other.
    let mut executor = host.executor(address, &[ONCE]);
    assert_eq!(executor.wait().code(), Some(0), "{:?}", executor.lines());
    assert_eq!(executor.count("retrying in"), 0);
    let line = process.wait_for("listening for executors");
    assert_eq!(field(&line, "address="), at);
}

#[test]
fn ap_3_roots_besides_those_of_the_provider() {
    let host = host();
    let ca = TestCa::new("example.org");
    ca.write(&host.path(""), "extra");
    let access_point = host.access_point(&["--ca", "extra.pem"]);
    let dev_ca = host.state().join("dev/ca.pem");
    let files = Files::write(&host, "executor", &executor_leaf(&ca), &ca);
    let files = Files {
        ca: dev_ca,
        ..files
    };
    let expected = ["--expected-server-id", "spiffe://ah-dev/ah/serve"];
    files.enrolls_as(&host, access_point.address, EXECUTOR_ID, &expected);
    assert_eq!(
        host.executor(access_point.address, &[ONCE]).wait().code(),
        Some(0)
    );
}

#[test]
fn ap_5_to_ap_8_one_rule_of_any_kind_admits() {
    let host = host();
    let pair = pair(&host);
    let rules = [
        "--executor-san-uri-prefix",
        "spiffe://example.org/ah/agent",
        "--executor-san-dns",
        "*.example.com,b.example.org",
        "--executor-san-ip",
        "10.0.0.0/8,192.0.2.7",
        "--executor-san-ip",
        "2001:db8::/32",
    ];
    let access_point = pair.server.access_point(&host, &rules);
    let cases = [
        (true, "spiffe://example.org/ah/agent/1"),
        (false, "spiffe://example.org/ah/agent-evil/1"),
        (false, "spiffe://example.net/ah/agent/1"),
        (true, "a.example.com"),
        (true, "b.example.org"),
        (false, "a.b.example.com"),
        (false, "example.com"),
        (false, "a.b.example.org"),
        (true, "10.200.0.1"),
        (true, "192.0.2.7"),
        (true, "2001:db8::7"),
        (false, "192.0.2.8"),
        (false, "2001:db9::7"),
    ];
    for (admitted, san) in cases {
        let leaf = pair.ca.leaf();
        let leaf = match san {
            uri if uri.starts_with("spiffe:") => leaf.spiffe(uri),
            ip if ip.parse::<std::net::IpAddr>().is_ok() => leaf.ip(ip),
            name => leaf.dns(name),
        };
        let files = Files::write(&host, "case", &leaf.issue(), &pair.ca);
        if admitted {
            files.enrolls_as(&host, access_point.address, san, &[]);
        } else {
            let told = failed(&files.once(&host, access_point.address, &[]), 1);
            told.says(
                "certificate SAN does not match expected pattern",
                &[san],
                "--executor-san",
            );
        }
    }
    drop(access_point);

    // No rule: whoever chains to a root, and a warning.
    let one_sided = pair.ca.leaf().spiffe(EXECUTOR_ID).client_only().issue();
    let one_sided = Files::write(&host, "one-sided", &one_sided, &pair.ca);
    let access_point = pair.server.access_point(&host, &[]);
    let warning = access_point
        .process
        .wait_for("no --executor-san-* rule is set");
    assert!(warning.contains("WARN"), "{warning}");
    one_sided.enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
    drop(access_point);
    // The I rows are for the strict.
    let access_point = pair.server.access_point(&host, &["--strict-svid"]);
    let told = failed(&one_sided.once(&host, access_point.address, &[]), 1);
    assert!(
        told.text.starts_with("client certificate rejected: "),
        "{told:?}"
    );
    pair.executor
        .enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
}

#[test]
fn ap_15_logs_for_machines() {
    let host = host();
    let mut command = host.command(access_point_args(&[
        "--log-format",
        "json",
        "--log-level",
        "error",
    ]));
    let process = Process::start(command.env(
        "RUST_LOG",
        "ah_fleet=info,ah_identity_provider=debug,ah_cli=debug",
    ));
    process.wait_for("listening for executors");
    for line in process.lines() {
        let line: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
    assert!(process.count("\"target\":\"ah_identity_provider") > 0);
    drop(process);
    let quiet = Process::start(&mut host.command(access_point_args(&["--log-level", "error"])));
    eventually("an answer", || {
        (host.run(["agent", "fleet", "list"]).code == 0).then_some(())
    });
    assert_eq!(quiet.lines(), Vec::<String>::new());
}

#[test]
fn ap_17_ap_18_settings_in_a_file() {
    let host = host();
    let pair = pair(&host);
    let text = format!(
        "fleet_listen = [\"127.0.0.1:0\"]\nserver_identity = \"files\"\ncert = {:?}\nkey = {:?}\nca = {:?}\nexecutor_san_dns = [\"*.example.com\"]\n",
        pair.server.cert, pair.server.key, pair.server.ca
    );
    std::fs::write(host.path("access-point.toml"), &text).unwrap();
    let mut command = host.command(["agent", "access-point"]);
    let access_point = AccessPoint::start(command.env("AH_CONFIG", "access-point.toml"), &[]);
    let told = failed(&pair.executor.once(&host, access_point.address, &[]), 1);
    assert_eq!(told.text, "certificate SAN does not match expected pattern");

    // AP-19: HUP takes other rules into use, and lets a wrong file be.
    let reload = |text: &str, line: &str, nth| {
        std::fs::write(host.path("access-point.toml"), text).unwrap();
        access_point.process.signal(Signal::SIGHUP);
        access_point.process.wait_for_nth(line, nth);
    };
    let prefix = "executor_san_uri_prefix = [\"spiffe://example.org/ah/agent\"]\n";
    reload(&(text.clone() + prefix), "settings reloaded", 1);
    // The identity's files are read again, too.
    access_point.process.wait_for("certificate unchanged");
    pair.executor
        .enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
    reload(
        "fleet_listn = []",
        "the settings cannot be used; what was in use stays",
        1,
    );
    access_point.process.wait_for("did you mean");
    pair.executor
        .enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
    // Who is no longer admitted is sent away, live or not.
    let mut live = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
    live.wait_for(" enrolled executor.id=");
    reload(&text, "settings reloaded", 2);
    assert_eq!(live.wait().code(), Some(1));
    Told::first(live.lines()).says(
        "certificate SAN does not match expected pattern",
        &[EXECUTOR_ID],
        "",
    );

    // AP-18: every fault in one go, and nothing started.
    let wrong = host.run([
        "agent",
        "access-point",
        "--validate",
        "--server-identity",
        "files",
        "--cert",
        "none.pem",
        "--key",
        "none.pem",
        "--ca",
        "none.pem",
        "--executor-san-ip",
        "10.0.0.0/99",
        "--executor-san-dns",
        "*.*.com",
    ]);
    assert_eq!(wrong.code, 1, "{}", wrong.stderr);
    let faults = wrong
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert!(faults >= 2, "{}", wrong.stderr);
    assert!(
        wrong.stderr.contains("10.0.0.0/99") && wrong.stderr.contains("*.*.com"),
        "{}",
        wrong.stderr
    );
    std::fs::write(host.path("access-point.toml"), &text).unwrap();
    sh(
        &host,
        "ah agent access-point --config access-point.toml --validate | grep -x valid",
    );
}

#[test]
fn ap_19_the_service_manager_is_told_and_obeyed() {
    let host = host();
    let path = host.path("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let size = manager.recv(&mut buffer).unwrap();
            let message = String::from_utf8_lossy(&buffer[..size]).into_owned();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
        }
    };
    let start = |command: &mut Command| {
        Process::start(
            command
                .env("NOTIFY_SOCKET", &path)
                .env("WATCHDOG_USEC", "200000"),
        )
    };
    let mut access_point = start(&mut host.command(access_point_args(&[])));
    let ready = told("READY=1");
    assert!(
        ready.contains("STATUS=serving executors on 127.0.0.1:"),
        "{ready}"
    );
    told("WATCHDOG=1");
    let line = access_point.wait_for("listening for executors");
    let address = field(&line, "address=").to_owned();
    access_point.signal(Signal::SIGHUP);
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");

    let server = format!("https://{address}");
    let mut executor = start(&mut host.command(["agent", "enroll", "--remote-server", &server]));
    told("STATUS=enrolled as spiffe://ah-dev/ah/agent/");
    access_point.signal(Signal::SIGTERM);
    told("STOPPING=1");
    assert_eq!(
        access_point.wait().code(),
        Some(0),
        "{}",
        access_point.lines().join("\n")
    );
    executor.wait_for("access point is draining; reconnecting in");
    executor.signal(Signal::SIGINT);
    assert_eq!(executor.wait().code(), Some(0));
    assert!(
        !host.path("run/access-point.sock").exists(),
        "sockets are taken away"
    );

    // The drain ends at its timeout, though a peer does not leave.
    let mut access_point = host.access_point(&["--drain-timeout", "100ms"]);
    let executor = host.executor(access_point.address, &[]);
    executor.wait_for(" enrolled executor.id=");
    executor.signal(Signal::SIGSTOP);
    access_point.process.signal(Signal::SIGINT);
    assert_eq!(access_point.process.wait().code(), Some(0));
    access_point.process.wait_for("drain timed out");
    executor.signal(Signal::SIGCONT);
}

#[test]
fn ap_16_limits_of_admission() {
    let host = host();
    let access_point = host.access_point(&["--max-executors", "1", "--handshake-timeout", "200ms"]);
    let first = host.executor(access_point.address, &["--name", "first"]);
    first.wait_for(" enrolled executor.id=");
    let second = host.executor(access_point.address, &["--name", "second"]);
    second.wait_for("retrying in");
    let told = Told::first(second.lines());
    assert!(
        told.text.contains("full") || told.text.contains("executors"),
        "{told:?}"
    );
    drop(first);
    // EN-13: when there is room it comes in by itself.
    second.wait_for(" enrolled executor.id=");
    // A peer that says nothing is cut at the timeout.
    let mut silent = TcpStream::connect(access_point.address).unwrap();
    silent.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
}
