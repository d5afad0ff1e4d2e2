//! A site that works, the ways to break it, and the doctor's report on it.

use std::any::Any;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ah_testkit::ca::{LeafFiles, TestCa, TestLeaf};
use ah_testkit::clock::FalseClock;
use ah_testkit::process::{AccessPoint, Finished, Host, Process, access_point_args};
use serde_json::Value;

pub(crate) const EXECUTOR_ID: &str = "spiffe://example.org/ah/agent/executor-1";
pub(crate) const SERVER_ID: &str = "spiffe://example.org/ah/serve";

/// PEM files of one side.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl Files {
    fn flags(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        vec![
            "--cert".into(),
            path(&self.cert),
            "--key".into(),
            path(&self.key),
            "--ca".into(),
            path(&self.ca),
        ]
    }
}

/// A machine with a CA, files for both sides, and what the doctor is to be asked.
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) ca: TestCa,
    pub(crate) server: Files,
    pub(crate) executor: Files,
    /// `--remote-server`s, as `HOST:PORT`.
    pub(crate) dial: Vec<String>,
    /// Instead of the files identity.
    pub(crate) identity: Option<Vec<String>>,
    /// Further flags.
    pub(crate) flags: Vec<String>,
    /// Further flags of the doctor alone.
    pub(crate) asked: Vec<String>,
    /// Where the access point's HTTP listens.
    pub(crate) http: Option<SocketAddr>,
    /// What the doctor is started through.
    pub(crate) under: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// What has to go on meanwhile.
    keep: Vec<Box<dyn Any>>,
}

/// The tests skip what needs a tool that is not there.
pub(crate) struct Skip;

impl Site {
    pub(crate) fn new() -> Self {
        let host = Host::new(env!("CARGO_BIN_EXE_ah"));
        let ca = TestCa::new("example.org");
        let server = write(&host, "server", &server_leaf(&ca), &ca);
        let executor = write(
            &host,
            "executor",
            &ca.leaf().spiffe(EXECUTOR_ID).issue(),
            &ca,
        );
        Self {
            host,
            ca,
            server,
            executor,
            dial: Vec::new(),
            identity: None,
            flags: Vec::new(),
            asked: Vec::new(),
            http: None,
            under: Vec::new(),
            env: Vec::new(),
            keep: Vec::new(),
        }
    }

    /// Keeps `thing` until the report is there.
    pub(crate) fn keep(&mut self, thing: impl Any) {
        self.keep.push(Box::new(thing));
    }

    /// Runs the doctor as a user that nothing here belongs to. Takes root and `setpriv`.
    pub(crate) fn as_nobody(&mut self) {
        let open = "chmod 755 . home && mkdir -p nobody && chown 65534:65534 nobody";
        let done = Command::new("sh")
            .args(["-ec", open])
            .current_dir(self.host.path(""))
            .status();
        assert!(done.unwrap().success());
        self.under = strings(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ]);
        let nobody = self.host.path("nobody").display().to_string();
        self.env = vec![
            ("STATE_DIRECTORY".into(), nobody.clone()),
            ("RUNTIME_DIRECTORY".into(), nobody),
        ];
    }

    /// Another certificate for the executor, with whom it trusts.
    pub(crate) fn executor_has(&mut self, leaf: &TestLeaf, trusted: &TestCa) {
        self.executor = write(&self.host, "executor", leaf, trusted);
    }

    /// Another certificate for the access point, with whom it trusts.
    pub(crate) fn server_has(&mut self, leaf: &TestLeaf, trusted: &TestCa) {
        self.server = write(&self.host, "server", leaf, trusted);
    }

    /// Starts the access point, and has the doctor dial it.
    pub(crate) fn listen(&mut self, more: &[&str]) -> SocketAddr {
        self.listen_under(&[], more)
    }

    pub(crate) fn listen_under(&mut self, wrapper: &[String], more: &[&str]) -> SocketAddr {
        let flags = self.server.flags();
        let mut args = vec!["--server-identity", "files"];
        args.extend(flags.iter().map(String::as_str));
        args.extend(more);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut command = self.host.command_under(&wrapper, access_point_args(&args));
        let access_point = AccessPoint::start(&mut command, &args);
        let address = access_point.address;
        self.http = access_point.http;
        self.dial.push(address.to_string());
        self.keep(access_point);
        address
    }

    /// Has openssl's server present the server's files, and the doctor dial it.
    pub(crate) fn openssl(&mut self, flags: &str) {
        let address = unused_address();
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-accept", &address.to_string()])
            .arg("-cert")
            .arg(&self.server.cert)
            .arg("-cert_chain")
            .arg(&self.server.cert)
            .arg("-key")
            .arg(&self.server.key)
            .args(flags.split_whitespace())
            // Its end would be the end of the connection.
            .stdin(Stdio::piped());
        let server = Process::start(&mut command);
        server.wait_for("ACCEPT");
        self.dial.push(address.to_string());
        self.keep(server);
    }

    /// The arguments after `ah agent doctor`, or `ah agent enroll`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut args = Vec::new();
        for dial in &self.dial {
            args.extend(["--remote-server".to_owned(), format!("https://{dial}")]);
        }
        match &self.identity {
            Some(identity) => args.extend(identity.iter().cloned()),
            None => {
                args.extend(["--identity".to_owned(), "files".to_owned()]);
                args.extend(self.executor.flags());
            }
        }
        args.extend(self.flags.iter().cloned());
        args
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let wrapper: Vec<&str> = self.under.iter().map(String::as_str).collect();
        let mut args = vec!["agent".to_owned(), name.to_owned()];
        args.extend(self.arguments());
        args.extend(more.iter().map(ToString::to_string));
        let mut command = self.host.command_under(&wrapper, args);
        command.envs(self.env.iter().cloned());
        command
    }

    /// An executor with what the doctor is asked about.
    pub(crate) fn enroll(&self, more: &[&str]) -> Process {
        Process::start(&mut self.command("enroll", more))
    }

    /// What the doctor says.
    #[track_caller]
    pub(crate) fn doctor(&self) -> Report {
        let asked: Vec<&str> = self.asked.iter().map(String::as_str).collect();
        let json = [&asked[..], &["--json"]].concat();
        let done = Finished::from(self.command("doctor", &json).output().unwrap());
        let parsed: Result<Value, _> = serde_json::from_str(&done.stdout);
        assert!(parsed.is_ok(), "{parsed:?}: {done:#?}");
        let report = Report(parsed.unwrap());
        let lines = Finished::from(self.command("doctor", &asked).output().unwrap());
        assert_eq!(
            (lines.code, done.code),
            (done.code, report.code()),
            "{lines:#?}"
        );
        // One line a check, and the sum.
        assert_eq!(
            lines.stdout.lines().count(),
            report.checks().len() + 1,
            "{lines:#?}"
        );
        assert_eq!(lines.stderr, "");
        report
    }
}

/// What the doctor printed with `--json`.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    pub(crate) fn checks(&self) -> &[Value] {
        self.0["checks"].as_array().unwrap()
    }

    fn code(&self) -> i32 {
        i32::from(self.0["ok"] != true)
    }

    /// The first check of this name.
    #[track_caller]
    pub(crate) fn check(&self, name: &str) -> &Value {
        let found = self.checks().iter().find(|check| check["name"] == name);
        assert!(found.is_some(), "no check `{name}`: {self:#?}");
        found.unwrap()
    }

    /// Each check has its line in the document.
    #[track_caller]
    pub(crate) fn is_told_of_in_the_document(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let documents = ["docs/troubleshooting.md", "docs/production.md"];
        let document = documents.map(|name| std::fs::read_to_string(root.join(name)).unwrap());
        let document = document.concat();
        for check in self.checks() {
            let name = check["name"].as_str().unwrap();
            assert!(document.contains(&format!("\n| `{name}` |")), "{name}");
        }
    }

    #[track_caller]
    pub(crate) fn verdict(&self, name: &str) -> &str {
        self.check(name)["verdict"].as_str().unwrap()
    }

    /// The first check that failed is `name`, has all of `words` in what it tells, and something to run.
    #[track_caller]
    pub(crate) fn blames(&self, name: &str, words: &[&str]) {
        assert_eq!(self.0["first_failed"], name, "{self:#?}");
        let check = self
            .checks()
            .iter()
            .find(|check| check["verdict"] == "fail")
            .unwrap();
        let told = format!("{} {}", check["evidence"], check["causes"]).replace("\\\"", "\"");
        for word in words {
            assert!(told.contains(word), "no {word:?}: {self:#?}");
        }
        assert!(
            check["fix"].as_str().is_some_and(|fix| !fix.is_empty()),
            "{self:#?}"
        );
        // What was not judged says why.
        for skipped in self
            .checks()
            .iter()
            .filter(|check| check["verdict"] == "skip")
        {
            assert_ne!(skipped["evidence"], "", "{self:#?}");
        }
    }

    /// Nothing failed; these, and no others, are warnings.
    #[track_caller]
    pub(crate) fn is_well_but(&self, warned: &[&str]) {
        assert_eq!(self.0["ok"], true, "{self:#?}");
        let found: Vec<&str> = self
            .checks()
            .iter()
            .filter(|check| check["verdict"] == "warn")
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(found, warned, "{self:#?}");
    }
}

/// Tests that are each a set-up, the check that fails first, and words of its evidence.
macro_rules! set_ups {
    ($($name:ident: $build:expr => $first:literal, $words:expr;)*) => {$(
        #[test]
        fn $name() {
            let mut site = $crate::site::Site::new();
            let build: fn(&mut $crate::site::Site) -> Result<(), $crate::site::Skip> = $build;
            if build(&mut site).is_ok() {
                site.doctor().blames($first, &$words);
            }
        }
    )*};
}
pub(crate) use set_ups;

/// [`ah_testkit::need`] as a reason to leave a set-up.
pub(crate) fn need(tool: &str) -> Result<(), Skip> {
    if ah_testkit::need(tool) {
        Ok(())
    } else {
        Err(Skip)
    }
}

/// The words before a command whose clock has to be off by `offset`, or a reason to leave a set-up.
pub(crate) fn clock(offset: &str) -> Result<Vec<String>, Skip> {
    let clock = FalseClock::off_by(offset).ok_or(Skip)?;
    Ok(clock.wrapper())
}

pub(crate) fn need_root() -> Result<(), Skip> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    assert!(std::env::var_os("CI").is_none(), "root is needed");
    println!("skipped: needs root");
    Err(Skip)
}

pub(crate) fn server_leaf(ca: &TestCa) -> TestLeaf {
    let leaf = ca.leaf().spiffe(SERVER_ID).dns("localhost");
    leaf.ip("127.0.0.1").issue()
}

pub(crate) fn write(host: &Host, name: &str, leaf: &TestLeaf, trusted: &TestCa) -> Files {
    let LeafFiles { cert, key } = leaf.write(&host.path(""), name);
    let ca = trusted.write(&host.path(""), &format!("{name}-ca"));
    Files { cert, key, ca }
}

/// A loopback address on which nobody listens.
pub(crate) fn unused_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

pub(crate) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
