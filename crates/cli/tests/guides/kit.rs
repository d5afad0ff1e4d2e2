//! What these tests share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ah_testkit::ca::{LeafFiles, TestCa, TestLeaf};
use ah_testkit::process::{AccessPoint, Finished, Host, Process, eventually};
use serde_json::Value;

pub(crate) const AH: &str = env!("CARGO_BIN_EXE_ah");

/// The user `nobody`, of every Linux.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) fn host() -> Host {
    Host::new(AH)
}

/// A shell in `host`'s directory and environment, where `ah` is the program under test.
pub(crate) fn shell(host: &Host, script: &str) -> Command {
    let mut command = Command::new("bash");
    let program = Path::new(AH).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap();
    command
        .args(["-euo", "pipefail", "-c", script])
        .env_clear()
        .env("PATH", format!("{program}:{path}"))
        .env("HOME", host.path("home"))
        .env("STATE_DIRECTORY", host.state())
        .env("RUNTIME_DIRECTORY", host.run_directory())
        .current_dir(host.path(""))
        .stdin(Stdio::null());
    command
}

/// Types `script` into that shell and tells how it ended.
pub(crate) fn try_sh(host: &Host, script: &str) -> Finished {
    Finished::from(shell(host, script).output().unwrap())
}

/// As [`try_sh`], for what must succeed; both streams together.
#[track_caller]
pub(crate) fn sh(host: &Host, script: &str) -> String {
    let done = try_sh(host, script);
    assert_eq!(done.code, 0, "{script}\n{}{}", done.stdout, done.stderr);
    done.stdout + &done.stderr
}

/// The first error among `lines`, in the shape of contract §8.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) causes: Vec<String>,
    pub(crate) hint: String,
}

impl Told {
    #[track_caller]
    pub(crate) fn first<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> Self {
        let mut told = Self {
            text: String::new(),
            causes: Vec::new(),
            hint: String::new(),
        };
        for line in lines {
            let line = line.as_ref();
            if let Some(text) = line.strip_prefix("error: ") {
                if !told.text.is_empty() {
                    break;
                }
                told.text = text.to_owned();
            } else if let Some(cause) = line.strip_prefix("  cause: ") {
                told.causes.push(cause.to_owned());
            } else if let Some(hint) = line.strip_prefix("  hint: ") {
                told.hint = hint.to_owned();
                break;
            }
        }
        told
    }

    /// `text` word for word; each of `facts` in a cause; and `advice` in the hint.
    #[track_caller]
    pub(crate) fn says(&self, text: &str, facts: &[&str], advice: &str) {
        assert_eq!(self.text, text, "{self:#?}");
        for fact in facts {
            let told = self.causes.iter().any(|cause| cause.contains(fact));
            assert!(told, "no cause has {fact:?}: {self:#?}");
        }
        assert!(!self.hint.is_empty(), "nothing to do next: {self:#?}");
        assert!(self.hint.contains(advice), "no {advice:?}: {self:#?}");
    }
}

/// A run that has to end by itself with `code` and an error.
#[track_caller]
pub(crate) fn failed(done: &Finished, code: i32) -> Told {
    assert_eq!(done.code, code, "{}", done.stderr);
    Told::first(done.stderr.lines())
}

/// The error that a running process told, once it has also said when it tries again (EN-13).
#[track_caller]
pub(crate) fn retrying(process: &Process) -> Told {
    process.wait_for("retrying in ");
    Told::first(process.lines())
}

/// The flags of the files provider.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl Files {
    /// `NAME.pem`, `NAME-key.pem` and `CA.pem` of `host`.
    pub(crate) fn named(host: &Host, name: &str, ca: &str) -> Self {
        Self {
            cert: host.path(format!("{name}.pem")),
            key: host.path(format!("{name}-key.pem")),
            ca: host.path(format!("{ca}.pem")),
        }
    }

    /// Writes a leaf and whom it trusts.
    pub(crate) fn write(host: &Host, name: &str, leaf: &TestLeaf, trusted: &TestCa) -> Self {
        let LeafFiles { cert, key } = leaf.write(&host.path(""), name);
        let ca = trusted.write(&host.path(""), &format!("{name}-ca"));
        Self { cert, key, ca }
    }

    pub(crate) fn flags(&self) -> Vec<String> {
        let [cert, key, ca] =
            [&self.cert, &self.key, &self.ca].map(|path| path.display().to_string());
        ["--cert", &cert, "--key", &key, "--ca", &ca]
            .map(str::to_owned)
            .into()
    }

    /// An access point with these files.
    #[track_caller]
    pub(crate) fn access_point(&self, host: &Host, more: &[&str]) -> AccessPoint {
        self.access_point_under(&[], host, more)
    }

    #[track_caller]
    pub(crate) fn access_point_under(
        &self,
        wrapper: &[&str],
        host: &Host,
        more: &[&str],
    ) -> AccessPoint {
        let flags = self.flags();
        let mut args = vec!["--server-identity", "files"];
        args.extend(flags.iter().map(String::as_str));
        args.extend(more);
        let all = ah_testkit::process::access_point_args(&args);
        AccessPoint::start(&mut host.command_under(wrapper, all), &args)
    }

    /// `ah agent enroll` with these files.
    pub(crate) fn enroll_under(
        &self,
        wrapper: &[&str],
        host: &Host,
        server: impl ToString,
        more: &[&str],
    ) -> Command {
        let server = format!("https://{}", server.to_string());
        let flags = self.flags();
        let mut args = vec![
            "agent",
            "enroll",
            "--identity",
            "files",
            "--remote-server",
            &server,
        ];
        args.extend(flags.iter().map(String::as_str));
        args.extend(more);
        host.command_under(wrapper, args)
    }

    pub(crate) fn enroll(&self, host: &Host, server: impl ToString, more: &[&str]) -> Command {
        self.enroll_under(&[], host, server, more)
    }

    /// Enrolls once and returns how that ended.
    pub(crate) fn once(&self, host: &Host, server: impl ToString, more: &[&str]) -> Finished {
        let mut all = vec!["--once=enrolled"];
        all.extend(more);
        Finished::from(self.enroll(host, server, &all).output().unwrap())
    }

    /// Enrolls once; the access point must take the executor for `id`.
    #[track_caller]
    pub(crate) fn enrolls_as(&self, host: &Host, server: impl ToString, id: &str, more: &[&str]) {
        let done = self.once(host, server, more);
        assert_eq!(done.code, 0, "{id}: {}", done.stderr);
        let enrolled = format!(" enrolled executor.id={id} ");
        assert!(done.stderr.contains(&enrolled), "{}", done.stderr);
    }
}

/// One CA for both sides, and a leaf for each: the plain case that a fault is put into.
pub(crate) struct Pair {
    pub(crate) ca: TestCa,
    pub(crate) server: Files,
    pub(crate) executor: Files,
}

pub(crate) const EXECUTOR_ID: &str = "spiffe://example.org/ah/agent/executor-1";

pub(crate) fn pair(host: &Host) -> Pair {
    let ca = TestCa::new("example.org");
    Pair {
        server: Files::write(host, "server", &server_leaf(&ca), &ca),
        executor: Files::write(host, "executor", &executor_leaf(&ca), &ca),
        ca,
    }
}

pub(crate) fn server_leaf(ca: &TestCa) -> TestLeaf {
    ca.leaf()
        .spiffe("spiffe://example.org/ah/serve")
        .dns("localhost")
        .ip("127.0.0.1")
        .issue()
}

pub(crate) fn executor_leaf(ca: &TestCa) -> TestLeaf {
    ca.leaf().spiffe(EXECUTOR_ID).issue()
}

/// A loopback address on which nobody listens.
pub(crate) fn unused_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// What `ah … --json` printed.
#[track_caller]
pub(crate) fn json(host: &Host, args: &[&str]) -> Value {
    let done = host.run(args);
    let parsed = serde_json::from_str(&done.stdout);
    assert!(parsed.is_ok(), "{args:?}: {parsed:?}\n{done:?}");
    parsed.unwrap()
}

/// What `ah agent fleet show WHO --json` printed.
#[track_caller]
pub(crate) fn shown(host: &Host, who: &str) -> Value {
    json(host, &["agent", "fleet", "show", who, "--json"])
}

/// The providers in an executor's history, oldest first.
#[track_caller]
pub(crate) fn history(shown: &Value) -> Vec<&str> {
    let entries = shown["history"].as_array().unwrap().iter();
    entries
        .map(|entry| entry["provider"].as_str().unwrap())
        .collect()
}

/// What an executor is told whose authority the access point does not trust.
pub(crate) const UNKNOWN_AUTHORITY: &str =
    "client certificate rejected: certificate signed by unknown authority";

/// The audit log of `host`, each line whole.
pub(crate) fn audit(host: &Host) -> Vec<BTreeMap<String, Value>> {
    let text = std::fs::read_to_string(host.state().join("audit.jsonl")).unwrap_or_default();
    let whole = text.rsplit_once('\n').unwrap_or_default().0;
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Waits until the audit log holds `event`, and returns the last such line.
#[track_caller]
pub(crate) fn audited(host: &Host, event: &str) -> BTreeMap<String, Value> {
    eventually(event, || {
        audit(host)
            .into_iter()
            .rev()
            .find(|line| line["event"] == event)
    })
}

pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
