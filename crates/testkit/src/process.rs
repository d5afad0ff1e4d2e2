//! Real `ah` processes, started, watched and ended by tests.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The longest that a test waits for anything. Generous: it is reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A machine of its own for `ah`: state, run and home directories that no other test and no user shares.
pub struct Host {
    program: PathBuf,
    directory: TempDir,
}

impl Host {
    /// A new machine on which `program` (`env!("CARGO_BIN_EXE_ah")`) is installed.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["state", "run", "home"] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory in it");
        }
        Self {
            program: program.into(),
            directory,
        }
    }

    /// A path on this machine.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `<state>`.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// `<run>`.
    pub fn run_directory(&self) -> PathBuf {
        self.path("run")
    }

    /// `ah` with `args`, in this machine's environment and nothing else's.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_under(&[], args)
    }

    /// As [`Self::command`], started through a wrapper such as `["ip", "netns", "exec", "x"]`.
    pub fn command_under<S: AsRef<OsStr>>(
        &self,
        wrapper: &[&str],
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("STATE_DIRECTORY", self.state())
            .env("RUNTIME_DIRECTORY", self.run_directory())
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `ah` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        Finished::from(self.command(args).output().expect("ah runs"))
    }

    /// Starts `ah` and reads along.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Process {
        Process::start(&mut self.command(args))
    }

    /// Starts an access point on a free loopback port and waits until it listens. `args` come after
    /// `agent access-point`; `--fleet-listen 127.0.0.1:0` is added unless they name one.
    pub fn access_point(&self, args: &[&str]) -> AccessPoint {
        AccessPoint::start(&mut self.command(access_point_args(args)), args)
    }

    /// Starts an executor against `address`. `args` come after `agent enroll --remote-server …`.
    pub fn executor(&self, address: SocketAddr, args: &[&str]) -> Process {
        let server = format!("https://{address}");
        let mut all = vec!["agent", "enroll", "--remote-server", &server];
        all.extend(args);
        self.start(all)
    }
}

/// The whole command line of [`Host::access_point`].
pub fn access_point_args<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["agent", "access-point"];
    if !args.contains(&"--fleet-listen") {
        all.extend(["--fleet-listen", "127.0.0.1:0"]);
    }
    all.extend(args);
    all
}

/// An access point that listens.
pub struct AccessPoint {
    /// Its process.
    pub process: Process,
    /// Where executors dial.
    pub address: SocketAddr,
    /// Where HTTP listens, when `--http-listen` was given.
    pub http: Option<SocketAddr>,
}

impl AccessPoint {
    /// Starts `command` and waits until it says where it listens.
    pub fn start(command: &mut Command, args: &[&str]) -> Self {
        let process = Process::start(command);
        let line = process.wait_for("listening for executors");
        let address = field(&line, "address=").parse().expect("an address");
        let http = args.contains(&"--http-listen").then(|| {
            let line = process.wait_for("HTTP listening");
            field(&line, "address=").parse().expect("an address")
        });
        Self {
            process,
            address,
            http,
        }
    }
}

/// The value of a field in a log line.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let start = line.find(name).map(|at| at + name.len());
    let rest = start.and_then(|at| line.get(at..)).unwrap_or_default();
    rest.split_whitespace().next().unwrap_or_default()
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails unless its standard output has each of `parts`.
    #[track_caller]
    pub fn prints(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stdout.contains(part), "no {part:?}:\n{}", self.stdout);
        }
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running process whose output is read line by line. It is killed when dropped.
pub struct Process {
    child: Child,
    output: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    open_streams: usize,
}

impl Process {
    /// Starts `command` with both output streams read.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} starts: {error}"));
        let output = Arc::new((
            Mutex::new(Lines {
                lines: Vec::new(),
                open_streams: 2,
            }),
            Condvar::new(),
        ));
        collect(child.stdout.take().expect("stdout is piped"), &output);
        collect(child.stderr.take().expect("stderr is piped"), &output);
        Self { child, output }
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Everything it has said so far.
    pub fn lines(&self) -> Vec<String> {
        self.locked().lines.clone()
    }

    /// Waits for a line that contains `text`; the first there is, also from before.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_nth(text, 1)
    }

    /// Waits until `nth` lines contain `text`, and returns the last of them.
    pub fn wait_for_nth(&self, text: &str, nth: usize) -> String {
        let matching = |lines: &Lines| {
            let mut found = lines.lines.iter().filter(|line| line.contains(text));
            found.nth(nth - 1).cloned()
        };
        match self.wait_until(DEADLINE, matching) {
            Some(line) => line,
            None => panic!(
                "no {nth}. line with {text:?}; it said:\n{}",
                self.lines().join("\n")
            ),
        }
    }

    /// How many lines contain `text` now.
    pub fn count(&self, text: &str) -> usize {
        let locked = self.locked();
        locked
            .lines
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the process is there");
    }

    /// Ends it as a power cut would, with what it runs where it is a wrapper, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself, and for the last of its output.
    pub fn wait(&mut self) -> ExitStatus {
        let closed = self.wait_until(DEADLINE, |lines| (lines.open_streams == 0).then_some(()));
        assert!(
            closed.is_some(),
            "it did not end; it said:\n{}",
            self.lines().join("\n")
        );
        self.child.wait().expect("the process can be waited for")
    }

    fn wait_until<T>(&self, deadline: Duration, found: impl Fn(&Lines) -> Option<T>) -> Option<T> {
        let end = Instant::now() + deadline;
        let (lines, changed) = &*self.output;
        let mut locked = lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = found(&locked) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            if locked.open_streams == 0 {
                return None;
            }
            let waited = changed.wait_timeout(locked, left);
            locked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.output.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(stream: impl Read + Send + 'static, output: &Arc<(Mutex<Lines>, Condvar)>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut locked = output.0.lock().unwrap_or_else(PoisonError::into_inner);
            locked.lines.push(text);
            output.1.notify_all();
        }
        let mut locked = output.0.lock().unwrap_or_else(PoisonError::into_inner);
        locked.open_streams -= 1;
        output.1.notify_all();
    });
}

/// Calls `found` until it gives something, at most [`DEADLINE`]. For state that sends no line when it changes.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
