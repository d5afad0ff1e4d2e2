//! The real program, with a configuration of its own.

use std::process::{Command, Output};

use ah_testkit::process::{Process, field};

use crate::fake::Fake;
use crate::rig::Node;

/// What a test changes of the configuration.
#[derive(Clone)]
pub(crate) struct Conf {
    /// In `agent { }`.
    pub(crate) agent: String,
    /// In its `experimental { }`.
    pub(crate) experimental: String,
    /// How the server is trusted the first time.
    pub(crate) bootstrap: String,
    pub(crate) server: String,
    /// The block of its NodeAttestor.
    pub(crate) node: String,
    /// The block of its KeyManager.
    pub(crate) keys: String,
    /// In the block of WorkloadAttestor "unix".
    pub(crate) unix: String,
    /// At the top.
    pub(crate) more: String,
}

const JOIN_TOKEN: &str = r#""join_token" { plugin_data {} }"#;

impl Conf {
    pub(crate) fn new(node: &Node) -> Self {
        let bundle = node.directory.path().join("bundle.pem");
        Self {
            agent: String::new(),
            experimental: String::new(),
            bootstrap: format!("trust_bundle_path = {bundle:?}"),
            server: "127.0.0.1".into(),
            node: JOIN_TOKEN.into(),
            keys: format!(r#""disk" {{ plugin_data {{ directory = {:?} }} }}"#, node.data()),
            unix: "plugin_data {}".into(),
            more: r#"health_checks { listener_enabled = true bind_address = "127.0.0.1" bind_port = "0" }"#.into(),
        }
    }

    /// `spire-agent NAME` with it.
    pub(crate) fn command(&self, node: &Node, fake: &Fake, name: &str) -> Command {
        let mut command = program(&[name, "-config"]);
        command.arg(self.write(node, fake));
        command
    }

    /// The file.
    pub(crate) fn write(&self, node: &Node, fake: &Fake) -> std::path::PathBuf {
        let directory = node.directory.path().display();
        let port = fake.address.port();
        // A token would take the place of another attestor.
        let token = match self.node.as_str() {
            JOIN_TOKEN => r#"join_token = "token""#,
            _ => "",
        };
        let Self {
            agent,
            experimental,
            bootstrap,
            server,
            node: attestor,
            keys,
            unix,
            more,
        } = self;
        let text = format!(
            r#"agent {{
                data_dir = "{directory}/data" trust_domain = "example.org"
                socket_path = "{directory}/public/api.sock"
                server_address = "{server}" server_port = "{port}" {token}
                {bootstrap}
                {agent}
                experimental {{ sync_interval = "50ms" ratelimit {{ fetch_jwt_svid = 1 }} {experimental} }}
            }}
            plugins {{
                NodeAttestor {attestor}
                KeyManager {keys}
                WorkloadAttestor "unix" {{ {unix} }}
            }}
            {more}"#
        );
        let config = node.directory.path().join("agent.conf");
        std::fs::write(&config, text).unwrap();
        config
    }
}

pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spire-agent"));
    command.args(arguments);
    command
}

/// The agent with the usual configuration.
pub(crate) fn start(node: &Node, fake: &Fake) -> Process {
    Process::start(&mut command(node, fake, "run"))
}

pub(crate) fn command(node: &Node, fake: &Fake, name: &str) -> Command {
    Conf::new(node).command(node, fake, name)
}

/// An entry for whoever runs the test.
pub(crate) fn serve_us(fake: &Fake) {
    let uid = nix::unistd::getuid();
    fake.set_entry("a", "/a", |entry| {
        entry.selectors[0].value = format!("uid:{uid}");
    });
}

/// `spire-agent api fetch …` of a workload.
pub(crate) fn fetch(node: &Node, arguments: &[&str]) -> Output {
    let socket = node.directory.path().join("public/api.sock");
    let mut command = program(&["api", "fetch"]);
    command.args(arguments).arg("-socketPath").arg(socket);
    command.output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Status and body of `path` at the listener whose address `line` tells.
pub(crate) fn get(line: &str, path: &str) -> (String, String) {
    use std::io::{Read, Write};
    let address = field(line, "address=").trim_matches('"');
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}
