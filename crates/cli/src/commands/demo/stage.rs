//! Where the demo plays: a private directory, and real processes of this same binary.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use ah_identity_provider::{Code, Explained};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// What a unix socket's path may have in bytes, with room for the name under which it is made.
const LONGEST_SOCKET_PATH: usize = 94;
/// Lines of a process's log that are shown when it failed.
const LAST_LINES: usize = 6;

/// A directory that only this user can enter, with state, run and log directories in it.
pub(super) struct Stage {
    directory: TempDir,
    program: PathBuf,
}

impl Stage {
    /// Makes the directory in the system's temporary directory.
    pub(super) fn new() -> Result<Self, Explained> {
        let program = std::env::current_exe().map_err(|error| {
            Explained::new(Code::Other, "cannot find this program's own file")
                .cause(error)
                .hint("start it by its full path")
        })?;
        let temporary = std::env::temp_dir();
        let unusable = |error: std::io::Error| {
            Explained::new(
                Code::Other,
                format!("cannot make a directory in {}", temporary.display()),
            )
            .cause(error)
            .hint("name one that you can write to: TMPDIR=/path ah agent demo")
        };
        let directory = tempfile::Builder::new()
            .prefix("ah-demo-")
            .tempdir()
            .map_err(unusable)?;
        for name in ["state", "run", "logs"] {
            fs::create_dir(directory.path().join(name)).map_err(unusable)?;
        }
        // In place of what /etc/ah may hold.
        fs::write(directory.path().join("empty.toml"), "").map_err(unusable)?;
        let stage = Self { directory, program };
        let longest = stage.status_socket("worker-1");
        if longest.as_os_str().as_bytes().len() > LONGEST_SOCKET_PATH {
            return Err(Explained::new(
                Code::Other,
                format!(
                    "the temporary directory's path is too long for a socket: {}",
                    longest.display()
                ),
            )
            .cause(format!(
                "a socket's path may have {LONGEST_SOCKET_PATH} bytes here, and this has {}",
                longest.as_os_str().as_bytes().len()
            ))
            .hint("name a shorter one: TMPDIR=/tmp ah agent demo"));
        }
        Ok(stage)
    }

    /// The directory itself.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where the processes' output goes.
    pub(super) fn logs(&self) -> PathBuf {
        self.path().join("logs")
    }

    pub(super) fn admin_socket(&self) -> PathBuf {
        self.path().join("run/access-point.sock")
    }

    pub(super) fn status_socket(&self, name: &str) -> PathBuf {
        self.path().join(format!("run/executor-{name}.sock"))
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.path().join("state/audit.jsonl")
    }

    /// Leaves the directory where it is, for a person to look at.
    pub(super) fn keep(self) -> PathBuf {
        self.directory.keep()
    }

    /// Starts `ah agent ARGS…`, called `name`, its output going to a log.
    pub(super) fn start(&self, name: &str, args: &[&str]) -> Result<Actor, Explained> {
        let log = self.logs().join(format!("{name}.log"));
        let fault = |error: std::io::Error| {
            Explained::new(Code::Other, format!("cannot start {name}"))
                .cause(error)
                .hint(format!("the program is {}", self.program.display()))
        };
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(fault)?;
        let errors = File::try_clone(&output).map_err(fault)?;
        let child = self
            .command(args)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(fault)?;
        Actor::new(name, log, child)
    }

    /// Runs `ah agent ARGS…` to its end.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Output, Explained> {
        self.command(args).output().await.map_err(|error| {
            Explained::new(
                Code::Other,
                format!("cannot run ah agent {}", args.join(" ")),
            )
            .cause(error)
        })
    }

    /// In an environment of its own: no settings of this user or machine reach a demo's process.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("agent")
            .args(args)
            .env_clear()
            .env("HOME", self.path())
            .env("STATE_DIRECTORY", self.path().join("state"))
            .env("RUNTIME_DIRECTORY", self.path().join("run"))
            .env("AH_CONFIG", self.path().join("empty.toml"))
            .env("NO_COLOR", "1")
            .current_dir(self.path())
            .stdin(Stdio::null())
            // Ctrl-C at the terminal is for the demo alone, which then ends its processes itself.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// A process on stage. It does not outlive the event loop.
pub(super) struct Actor {
    pub(super) name: String,
    pub(super) pid: i32,
    /// Whether its end is part of the story.
    pub(super) may_end: Cell<bool>,
    log: PathBuf,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Actor {
    fn new(name: &str, log: PathBuf, mut child: Child) -> Result<Self, Explained> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| {
            Explained::new(Code::Other, format!("{name} ended as it was started"))
        })?;
        let (ended, exit) = watch::channel(None);
        // The task owns the child, so that it is reaped when it ends and killed when the event loop goes.
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                ended.send_replace(Some(status));
            }
        });
        Ok(Self {
            name: name.to_owned(),
            pid,
            may_end: Cell::new(false),
            log,
            exit,
        })
    }

    /// How it ended, if it has.
    pub(super) fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal, unless it has ended and its number may be another's.
    pub(super) fn signal(&self, signal: Signal) {
        if self.exit().is_none() {
            // It may end in this very moment; what is waited for next tells.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status)
    }

    /// Why the demo cannot go on: this process ended and should not have.
    pub(super) fn fallen(&self) -> Explained {
        let mut explained = Explained::new(
            Code::Other,
            format!("{} ended unexpectedly: {}", self.name, told(self.exit())),
        );
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().collect::<Vec<_>>();
        let last = lines.iter().rev().take(LAST_LINES).rev();
        for line in last {
            explained = explained.cause(line.trim());
        }
        explained
    }
}

/// How a process ended, in words.
pub(super) fn told(status: Option<ExitStatus>) -> String {
    match status {
        None => "still running".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => format!("signal {signal}"),
                Err(_) => format!("signal {signal}"),
            },
            (None, None) => "unknown".to_owned(),
        },
    }
}
