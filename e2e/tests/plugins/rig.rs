//! A server and an agent in a folder of their own, and the plugins for both.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ah_testkit::process::{Finished, Process, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tempfile::TempDir;

/// Built once for all tests.
static PLUGIN: OnceLock<Option<PathBuf>> = OnceLock::new();

pub(crate) struct Rig {
    folder: TempDir,
    /// The program that is all the plugins.
    pub(crate) plugin: PathBuf,
    pub(crate) checksum: String,
    port: u16,
    metrics: u16,
}

impl Rig {
    /// `None` without Go or its modules. With `CI` set that is an error.
    pub(crate) fn new() -> Option<Self> {
        let plugin = PLUGIN.get_or_init(plugin).clone()?;
        let sum = Command::new("sha256sum").arg(&plugin).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        let [port, metrics] = free_ports();
        Some(Self {
            folder: tempfile::tempdir().unwrap(),
            plugin,
            checksum: sum.split(' ').next().unwrap().to_owned(),
            port,
            metrics,
        })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        Path::new(&self.path(name)).exists()
    }

    fn server_conf(&self, plugins: &str) -> String {
        format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = "{}"
  socket_path = {:?}
  trust_domain = "example.org"
  data_dir = {:?}
  log_level = "DEBUG"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = {:?} }} }}
  {plugins}
}}
telemetry {{ Prometheus {{ host = "127.0.0.1" port = {} }} }}
"#,
            self.port,
            self.path("server.sock"),
            self.path("server"),
            self.path("data.sqlite3"),
            self.metrics,
        )
    }

    fn agent_conf(&self, plugins: &str) -> String {
        format!(
            r#"agent {{
  data_dir = {:?}
  log_level = "DEBUG"
  server_address = "127.0.0.1"
  server_port = "{}"
  socket_path = {:?}
  trust_domain = "example.org"
  insecure_bootstrap = true
}}
plugins {{
  {plugins}
}}
"#,
            self.path("agent"),
            self.port,
            self.path("agent.sock"),
        )
    }

    /// Waits until it is healthy.
    pub(crate) fn server(&self, plugins: &str) -> Process {
        self.write("server.conf", &self.server_conf(plugins));
        let conf = self.path("server.conf");
        let process = Process::start(&mut self.command(&["spire-server", "run", "-config", &conf]));
        process.wait_for("network=unix");
        let socket = self.path("server.sock");
        eventually("the server is healthy", || {
            self.run(&["spire-server", "healthcheck", "-socketPath", &socket])
        });
        process
    }

    /// What a server says that does not start.
    pub(crate) fn refused(&self, plugins: &str) -> String {
        self.write("server.conf", &self.server_conf(plugins));
        let conf = self.path("server.conf");
        let mut command = self.command(&["spire-server", "run", "-config", &conf]);
        let finished = Finished::from(command.output().unwrap());
        assert_ne!(finished.code, 0, "{finished:?}");
        finished.stdout + &finished.stderr
    }

    /// What a JWT says.
    pub(crate) fn claims(&self, token: &str) -> Value {
        let claims = token.trim().split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }

    pub(crate) fn agent(&self, plugins: &str) -> Process {
        self.write("agent.conf", &self.agent_conf(plugins));
        let conf = self.path("agent.conf");
        Process::start(&mut self.command(&["spire-agent", "run", "-config", &conf]))
    }

    /// What `validate` says to a configuration of `agent` or `server`.
    pub(crate) fn validate(&self, of: &str, plugins: &str) -> String {
        let text = match of {
            "agent" => self.agent_conf(plugins),
            _ => self.server_conf(plugins),
        };
        self.write("validated.conf", &text);
        let (program, conf) = (format!("spire-{of}"), self.path("validated.conf"));
        let mut command = self.command(&[&program, "validate", "-config", &conf]);
        let finished = Finished::from(command.output().unwrap());
        finished.stdout + &finished.stderr
    }

    fn command(&self, line: &[&str]) -> Command {
        let (program, arguments) = line.split_first().unwrap();
        let mut command = match *program {
            "openssl" => Command::new(program),
            ours => Command::new(ah_e2e::programs().join(ours)),
        };
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    /// What it printed, if it succeeded.
    pub(crate) fn run(&self, line: &[&str]) -> Option<String> {
        let finished = Finished::from(self.command(line).output().unwrap());
        (finished.code == 0).then_some(finished.stdout)
    }

    pub(crate) fn ok(&self, line: &[&str]) -> String {
        let finished = Finished::from(self.command(line).output().unwrap());
        assert_eq!(finished.code, 0, "{line:?}\n{finished:?}");
        finished.stdout
    }

    /// What the server's Prometheus listener says.
    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

/// Built from `testdata/plugins`.
fn plugin() -> Option<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plugins");
    ah_testkit::go::build(&module, ".", "spire-plugins")
}

fn free_ports() -> [u16; 2] {
    let bound = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    bound.map(|listener| listener.local_addr().unwrap().port())
}

/// The processes that `parent` started and that run.
pub(crate) fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(state, of)| of == parent && state != "Z"))
        .collect()
}

pub(crate) fn is_gone(pid: i32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == "Z")
}

/// State and parent of a process.
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit(')').next()?.split_whitespace();
    Some((rest.next()?.to_owned(), rest.next()?.parse().ok()?))
}
