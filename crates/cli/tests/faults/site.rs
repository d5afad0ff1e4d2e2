//! One place under test: a machine with an authority, an access point on it, and a look at its records.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ah_testkit::ca::{TestCa, TestLeaf};
use ah_testkit::process::{AccessPoint, Finished, Host, Process, access_point_args, eventually};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Tests that fill the machine or measure time run one after the other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `program` can be had. Without it a test says so and ends; where CI is set it fails.
pub(crate) fn need(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        || Path::new(program).is_file();
    need_that(found, program)
}

/// As [`need`], for root.
pub(crate) fn need_root() -> bool {
    need_that(nix::unistd::geteuid().is_root(), "root")
}

fn need_that(there: bool, what: &str) -> bool {
    assert!(
        there || std::env::var_os("CI").is_none(),
        "{what} is needed: make setup"
    );
    if !there {
        println!("skipped: needs {what}");
    }
    there
}

/// Lets this process hold a crowd's sockets.
pub(crate) fn raise_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A machine, an authority, and the access point's certificate in files.
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) ca: TestCa,
}

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self {
            host: Host::new(env!("CARGO_BIN_EXE_ah")),
            ca: TestCa::new("example.org"),
        };
        site.server_leaf().write(&site.host.path(""), "server");
        site.ca.write(&site.host.path(""), "ca");
        site
    }

    /// A certificate for the access point.
    pub(crate) fn server_leaf(&self) -> TestLeaf {
        server_leaf(&self.ca)
    }

    /// A certificate for executor `number`.
    pub(crate) fn executor_leaf(&self, number: usize) -> TestLeaf {
        self.ca.leaf().spiffe(&id(number)).issue()
    }

    /// Starts the access point with the files identity and HTTP, and whatever `more` says.
    pub(crate) fn start(&self, more: &[&str]) -> AccessPoint {
        self.start_under(&[], more)
    }

    /// As [`Self::start`], through a wrapper.
    pub(crate) fn start_under(&self, wrapper: &[&str], more: &[&str]) -> AccessPoint {
        let args = self.access_point_args(more);
        let args = args.iter().map(String::as_str).collect::<Vec<_>>();
        let mut command = self.host.command_under(wrapper, access_point_args(&args));
        AccessPoint::start(&mut command, &args)
    }

    /// What comes after `agent access-point`.
    pub(crate) fn access_point_args(&self, more: &[&str]) -> Vec<String> {
        let mut args = Vec::new();
        if !more.contains(&"--cert") {
            let file = |name: &str| self.host.path(name).display().to_string();
            args.extend(["--cert".into(), file("server.pem")]);
            args.extend(["--key".into(), file("server-key.pem")]);
            args.extend(["--ca".into(), file("ca.pem")]);
        }
        let fixed = [
            "--server-identity",
            "files",
            "--executor-san-uri-prefix",
            "spiffe://example.org/ah/agent",
            "--http-listen",
            "127.0.0.1:0",
        ];
        args.extend(fixed.iter().chain(more).map(ToString::to_string));
        args
    }

    /// Starts an executor process with the files `<name>.pem`, `<name>-key.pem` and `ca.pem`, written from
    /// `leaf` first.
    pub(crate) fn executor(&self, address: SocketAddr, name: &str, leaf: &TestLeaf) -> Process {
        leaf.write(&self.host.path(""), name);
        self.executor_again(address, name)
    }

    /// As [`Self::executor`], with the files that are there.
    pub(crate) fn executor_again(&self, address: SocketAddr, name: &str) -> Process {
        let args = self.executor_args(name);
        let args = args.iter().map(String::as_str).collect::<Vec<_>>();
        self.host.executor(address, &args)
    }

    /// What comes after `agent enroll --remote-server …`.
    pub(crate) fn executor_args(&self, name: &str) -> Vec<String> {
        let file = |name: String| self.host.path(name).display().to_string();
        vec![
            "--identity".into(),
            "files".into(),
            "--name".into(),
            name.into(),
            "--cert".into(),
            file(format!("{name}.pem")),
            "--key".into(),
            file(format!("{name}-key.pem")),
            "--ca".into(),
            file("ca.pem".into()),
        ]
    }

    /// `ah agent status --json` of one executor.
    pub(crate) fn status(&self, name: &str) -> Value {
        let shown = self.host.run(["agent", "status", "--json", "--name", name]);
        serde_json::from_str(&shown.stdout).unwrap_or(Value::Null)
    }

    /// `ah agent fleet …`, which must succeed.
    pub(crate) fn fleet(&self, args: &[&str]) -> Finished {
        let finished = self.host.run([&["agent", "fleet"], args].concat());
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    }

    /// Executors as `ah agent fleet list` shows them.
    pub(crate) fn listed(&self, filter: &[&str]) -> Vec<Value> {
        let shown = self.fleet(&[&["list", "--json"], filter].concat());
        let listing: Value = serde_json::from_str(&shown.stdout).unwrap();
        listing["executors"].as_array().unwrap().clone()
    }

    pub(crate) fn audit_log(&self) -> PathBuf {
        self.host.state().join("audit.jsonl")
    }

    /// Whole lines of the audit log, with those of everything that has happened by now.
    pub(crate) fn audit(&self) -> Vec<Value> {
        eventually("the audit log is written", || {
            let Ok(metrics) = admin(&self.host, "/metrics") else {
                // Nobody is there who would write any more.
                return Some(());
            };
            metrics.contains("ah_audit_pending 0\n").then_some(())
        });
        lines_of(&self.audit_log())
    }

    /// AU-2: the chain of the audit log is unbroken.
    pub(crate) fn verify_audit(&self) {
        verify(&self.host, &self.audit_log());
    }
}

/// What the access point of `host` answers on its admin socket.
pub(crate) fn admin(host: &Host, path: &str) -> std::io::Result<String> {
    let socket = host.run_directory().join("access-point.sock");
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: access-point\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `ah agent audit verify FILE` succeeds.
pub(crate) fn verify(host: &Host, log: &Path) {
    let verified = host.run(["agent", "audit", "verify", &log.display().to_string()]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
    assert!(verified.stdout.contains("unbroken"), "{}", verified.stdout);
}

/// Whole lines of an audit log.
pub(crate) fn lines_of(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Lines of `event` about `executor`.
pub(crate) fn about<'a>(lines: &'a [Value], event: &str, executor: &str) -> Vec<&'a Value> {
    let wanted = |line: &&Value| line["event"] == event && line["executor_id"] == executor;
    lines.iter().filter(wanted).collect()
}

/// When an audit line was written.
pub(crate) fn time_of(line: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(line["time"].as_str().unwrap(), &Rfc3339).unwrap()
}

/// A certificate for an access point on loopback.
pub(crate) fn server_leaf(ca: &TestCa) -> TestLeaf {
    ca.leaf().dns("localhost").ip("127.0.0.1").issue()
}

/// SPIFFE ID of executor `number`.
pub(crate) fn id(number: usize) -> String {
    format!("spiffe://example.org/ah/agent/{number}")
}

/// Status code and body of `GET path`.
pub(crate) fn get(http: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(http).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status).unwrap();
    let code = status.split(' ').nth(1).unwrap().parse().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (code, body)
}

/// The sum of a metric over its labels.
pub(crate) fn metric(http: SocketAddr, name: &str) -> f64 {
    let (code, text) = get(http, "/metrics");
    assert_eq!(code, 200);
    let samples = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let bare = series.split('{').next()?;
        (bare == name).then(|| value.parse::<f64>().unwrap())
    });
    let samples = samples.collect::<Vec<_>>();
    assert!(!samples.is_empty(), "no {name} in\n{text}");
    samples.iter().sum()
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Open descriptors of a process.
pub(crate) fn open_files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}
