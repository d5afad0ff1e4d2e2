//! A real server in a folder of its own.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{AgentX509svidParams, AttestAgentRequest, attest_agent_request};
use ah_spire_wire::{Channel, types};
use ah_testkit::process::eventually;
use tempfile::TempDir;

/// A server that ends with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_spire-server");

/// A folder with `conf` in it. The ports 8081, 9988 and 9989 become free ones, the guide's places folders of the test.
pub(crate) fn place(conf: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut conf = here(conf, folder.path());
    for port in ["8081", "9988", "9989"] {
        conf = conf.replace(port, &free_port().to_string());
    }
    for part in ["etc", "run", "var"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
    }
    std::fs::write(folder.path().join("etc/server.conf"), conf).unwrap();
    folder
}

impl Server {
    /// Waits until it is healthy.
    pub(crate) fn start(conf: &str, environment: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.envs(environment.iter().copied());
        Self::start_in(place(conf), command)
    }

    /// In a folder that [`place`] made; `command` ends with the program.
    pub(crate) fn start_in(folder: TempDir, command: Command) -> Self {
        let child = spawn(folder.path(), command);
        let mut server = Self { child, folder };
        server.healthy();
        server
    }

    /// Starts it anew after its end.
    pub(crate) fn restart(&mut self, command: Command) {
        self.child = spawn(self.folder.path(), command);
        self.healthy();
    }

    /// Kills it with SIGKILL and starts it again where it was.
    pub(crate) fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.restart(Command::new(PROGRAM));
    }

    fn healthy(&mut self) {
        eventually("the server is healthy", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", self.log());
            let checked = self.sh("spire-server healthcheck -socketPath /run/spire/server.sock");
            checked.status.success().then_some(())
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Runs lines of the guide in a shell.
    pub(crate) fn sh(&self, lines: &str) -> Output {
        let bin = Path::new(PROGRAM).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Command::new("bash")
            .args(["-euc", &here(lines, self.folder.path())])
            .env("PATH", path)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a command of the server's own prints.
    pub(crate) fn command(&self, command: &str) -> String {
        self.ok(&format!(
            "spire-server {command} -socketPath /run/spire/server.sock"
        ))
    }

    /// The same as JSON.
    pub(crate) fn json(&self, command: &str) -> serde_json::Value {
        serde_json::from_str(&self.command(&format!("{command} -output json"))).unwrap()
    }

    pub(crate) fn ok(&self, lines: &str) -> String {
        let output = self.sh(lines);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{lines}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }
}

fn spawn(folder: &Path, mut command: Command) -> Child {
    let log = folder.join("log");
    let log = File::options().create(true).append(true).open(log).unwrap();
    command
        .args(["run", "-config"])
        .arg(folder.join("etc/server.conf"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The guide's places as folders of the test.
pub(crate) fn here(text: &str, folder: &Path) -> String {
    let folder = folder.display();
    text.replace("/run/spire", &format!("{folder}/run"))
        .replace("/etc/spire", &format!("{folder}/etc"))
        .replace("/var/lib/spire", &format!("{folder}/var"))
}

/// A new join token, of what `token generate` `told`.
pub(crate) fn token(told: &str) -> &str {
    let line = told.lines().next().unwrap();
    line.strip_prefix("Token: ").unwrap()
}

/// The begin of an attestation, with a new key.
pub(crate) fn params(kind: &str, payload: &[u8]) -> AttestAgentRequest {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    AttestAgentRequest {
        step: Some(attest_agent_request::Step::Params(
            attest_agent_request::Params {
                data: Some(types::AttestationData {
                    r#type: kind.into(),
                    payload: payload.to_owned().into(),
                }),
                params: Some(AgentX509svidParams {
                    csr: csr.der().to_vec(),
                }),
            },
        )),
    }
}

/// Attests with a join token.
pub(crate) async fn attest(socket: &Path, token: &str) {
    let channel = Channel::unix(socket).await.unwrap();
    let mut client = AgentClient::with_origin(channel, Channel::origin());
    let request = params("join_token", token.as_bytes());
    let answers = client
        .attest_agent(tokio_stream::once(request))
        .await
        .unwrap();
    assert!(answers.into_inner().message().await.unwrap().is_some());
}
