//! Processes that are attested: this test program itself, started once more in a role.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::unix::{Unix, UnixConfig};
use ah_spire_attest::workload::{ProcRoot, WorkloadAttestor};
use ah_testkit::process::eventually;
use tokio::net::UnixListener;

const ROLE: &str = "AH_TEST_ROLE";
const ARGUMENT: &str = "AH_TEST_ARGUMENT";

/// A process that ends with this value.
pub(crate) struct Running {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A program that a test has just written is busy while another test's new process still has it open.
        let mut child = eventually("it starts", || match command.spawn() {
            Ok(child) => Some(child),
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            Err(error) => panic!("{command:?}: {error}"),
        });
        Self {
            to: child.stdin.take(),
            from: BufReader::new(child.stdout.take().expect("stdout is piped")),
            child,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The first line that begins with `start`, without that start.
    pub(crate) fn line(&mut self, start: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.from.read_line(&mut line).expect("readable output");
            assert!(read > 0, "it ended without a line {start:?}");
            // The test harness writes a test's name without a newline before its output.
            if let Some((_, rest)) = line.split_once(start) {
                return rest.trim_end().to_owned();
            }
        }
    }

    /// Lets it go on to its next step.
    pub(crate) fn go_on(&mut self) {
        let to = self.to.as_mut().expect("stdin is open");
        to.write_all(b"\n").expect("it reads");
    }

    /// Ends it, until its process id may be used again.
    pub(crate) fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A program that does nothing for as long as it is looked at.
pub(crate) fn idle(program: &Path) -> Running {
    Running::start(Command::new(program).arg("1000000"))
}

/// Where `sleep` is.
pub(crate) fn sleep() -> PathBuf {
    let found = ["/usr/bin/sleep", "/bin/sleep"]
        .into_iter()
        .map(PathBuf::from);
    let found = found.map(|path| path.canonicalize());
    found.flatten().next().expect("a system with sleep")
}

/// This program in the role `role`, with `argument`.
pub(crate) fn role(program: &Path, role: &str, argument: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", "processes::plays_its_role", "--nocapture"])
        .env(ROLE, role)
        .env(ARGUMENT, argument);
    command
}

/// A process that has connected to `listener`, which is bound to `path`, and the connection.
pub(crate) async fn caller(
    listener: &UnixListener,
    path: &Path,
) -> (Running, tokio::net::UnixStream) {
    let program = std::env::current_exe().expect("this program");
    let running = Running::start(&mut role(&program, "caller", path.to_str().expect("UTF-8")));
    let (stream, _) = listener.accept().await.expect("it connects");
    (running, stream)
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Nothing, unless this is a process that a test started.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let argument = std::env::var(ARGUMENT).expect("an argument");
    let mut input = std::io::stdin().lock();
    let mut wait = || input.read(&mut [0]).expect("stdin");
    match role.as_str() {
        // Connects, and on a word from the test becomes another user.
        "caller" => {
            let _connection = std::os::unix::net::UnixStream::connect(argument).unwrap();
            println!("\nconnected");
            if wait() > 0 {
                nix::unistd::setuid(nix::unistd::Uid::from_raw(65534)).unwrap();
                println!("\nchanged");
                wait();
            }
        }
        // Attests a process and says what came of it.
        "attestor" => {
            let peer = PeerInfo::of_process(argument.parse().unwrap()).unwrap();
            let config = UnixConfig {
                discover_workload_path: true,
                workload_size_limit: 0,
            };
            let unix = Unix::new(config, ProcRoot::own());
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let outcome = runtime.unwrap().block_on(unix.attest(&peer));
            match outcome {
                Ok(selectors) => println!("\noutcome: {selectors:?}"),
                Err(error) => {
                    println!(
                        "\noutcome: {}",
                        error.explained().report().replace('\n', " | ")
                    );
                }
            }
        }
        other => panic!("no role {other}"),
    }
}
