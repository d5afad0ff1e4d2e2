//! Child processes of the suite: servers on core 0, load on core 1, each ended when its handle is dropped.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::http;
use crate::load::stats::{Event, Report, unix_us};

/// Core of the server under test.
pub(crate) const SERVER_CORE: u32 = 0;
/// Core of the load generator and of whatever a peer has behind it.
pub(crate) const LOAD_CORE: u32 = 1;

/// `program` on one core, ended by the kernel should the suite itself be killed.
///
/// Both helpers act before the program has any thread and then become it, so the process id stays.
pub(crate) fn pinned(core: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c"]);
    command.arg(core.to_string()).arg(program);
    command
}

/// A running child, killed by its own process id and waited for on drop.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self).map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it in order.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    pub(crate) fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of a child's log with the time it was read.
#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    pub(crate) unix_us: u64,
    pub(crate) text: String,
}

/// A server that listens.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Running,
    pub(crate) address: SocketAddr,
    /// Where it serves `/metrics`, if it does.
    pub(crate) http: Option<SocketAddr>,
    log: Receiver<LogLine>,
    /// What has to live as long as the server does.
    behind: Option<Box<Self>>,
}

impl Server {
    /// What an access point's metric without labels says now.
    pub(crate) fn metric(&self, name: &str) -> io::Result<f64> {
        let address = self
            .http
            .ok_or_else(|| io::Error::other("serves no metrics"))?;
        let text = http::get(address, "/metrics")?.body;
        http::metric(&text, name).ok_or_else(|| io::Error::other(format!("no metric {name}")))
    }

    /// Starts a server that says on standard error where it listens.
    pub(crate) fn start(command: &mut Command, http: bool) -> io::Result<Self> {
        let (process, log) = Self::spawn(command)?;
        let mut address = None;
        let mut http_address = None;
        let mut last = VecDeque::new();
        let deadline = Instant::now() + Duration::from_secs(15);
        while address.is_none() || (http && http_address.is_none()) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = log.recv_timeout(left) else {
                let said: Vec<String> = last.into();
                return Err(io::Error::other(format!(
                    "no word of listening; last said: {}",
                    said.join(" | ")
                )));
            };
            if let Some(found) = listening(&line.text) {
                if line.text.contains("HTTP listening") {
                    http_address = Some(found);
                } else if address.is_none() {
                    address = Some(found);
                }
            }
            last.push_back(line.text);
            if last.len() > 3 {
                last.pop_front();
            }
        }
        let address = address.ok_or_else(|| io::Error::other("no address"))?;
        Ok(Self {
            process,
            address,
            http: http_address,
            log,
            behind: None,
        })
    }

    /// Starts a server that says nothing: it listens once a connection succeeds.
    pub(crate) fn start_silent(command: &mut Command, address: SocketAddr) -> io::Result<Self> {
        let (mut process, log) = Self::spawn(command)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(address).is_err() {
            if process.has_ended()? || Instant::now() > deadline {
                let said = log.recv_timeout(Duration::from_millis(200));
                let said = said.map_or_else(|_| "nothing".to_owned(), |line| line.text);
                return Err(io::Error::other(format!("does not listen; said: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            process,
            address,
            http: None,
            log,
            behind: None,
        })
    }

    pub(crate) fn with_behind(mut self, other: Self) -> Self {
        self.behind = Some(Box::new(other));
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The lines logged since the last call.
    pub(crate) fn log(&self) -> impl Iterator<Item = LogLine> {
        self.log.try_iter()
    }

    fn spawn(command: &mut Command) -> io::Result<(Running, Receiver<LogLine>)> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Running::start(command)?;
        let (sender, log) = channel();
        if let Some(stderr) = process.0.stderr.take() {
            // Ends with the process: its pipe closes.
            thread::spawn(move || pass_on(BufReader::new(stderr), &sender));
        }
        Ok((process, log))
    }
}

fn pass_on(lines: impl BufRead, sender: &Sender<LogLine>) {
    for text in lines.lines().map_while(Result::ok) {
        let text = without_colour(&text);
        // Nobody listening is no reason to let the pipe fill up and block the server.
        let _ = sender.send(LogLine {
            unix_us: unix_us(),
            text,
        });
    }
}

/// The address of a log line that says `listening … address=ADDR:PORT`.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening")?;
    let (_, address) = rest.split_once("address=")?;
    address
        .split_ascii_whitespace()
        .next()?
        .trim_matches('"')
        .parse()
        .ok()
}

fn without_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut pieces = line.split('\u{1b}');
    plain.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or("", |(_, text)| text));
    }
    plain
}

/// A load generator at work.
#[derive(Debug)]
pub(crate) struct LoadRun {
    events: Receiver<Event>,
    input: Option<ChildStdin>,
    /// Ends the run when the handle goes.
    _process: Running,
}

impl LoadRun {
    /// Starts `ah-bench load …` on the load core.
    pub(crate) fn start(arguments: &[String], complaints: File) -> io::Result<Self> {
        let mut command = pinned(LOAD_CORE, std::env::current_exe()?);
        command
            .arg("load")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints);
        let mut process = Running::start(&mut command)?;
        let input = process.0.stdin.take();
        let (sender, events) = channel();
        if let Some(stdout) = process.0.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(event) = serde_json::from_str(&line) {
                        let _ = sender.send(event);
                    }
                }
            });
        }
        Ok(Self {
            events,
            input,
            _process: process,
        })
    }

    /// Writes one line to a `hold` run: how many sessions to have.
    pub(crate) fn ask(&mut self, sessions: u32) -> io::Result<()> {
        match &mut self.input {
            Some(input) => writeln!(input, "{sessions}"),
            None => Err(io::Error::other("load takes no input any more")),
        }
    }

    /// The next event; `None` when the run has ended.
    pub(crate) fn next(&self, within: Duration) -> io::Result<Option<Event>> {
        match self.events.recv_timeout(within) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the load generator said nothing in time",
            )),
        }
    }

    /// Waits for the word that all sessions asked for are held, and returns their number and the time.
    pub(crate) fn held(&self, within: Duration) -> io::Result<(u32, u64)> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(Event::Held { count, unix_us }) => return Ok((count, unix_us)),
                Some(_) => {}
                None => return Err(io::Error::other("the load generator ended early")),
            }
        }
    }

    /// Collects events until the run's report.
    pub(crate) fn finish(mut self, within: Duration) -> io::Result<(Report, Vec<Event>)> {
        drop(self.input.take());
        let deadline = Instant::now() + within;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(Event::Done(report)) => return Ok((report, events)),
                Some(event) => events.push(event),
                None => {
                    return Err(io::Error::other(
                        "the load generator ended without a report",
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_a_coloured_log_line() {
        let line = "\u{1b}[2m2026-01-01T00:00:00Z\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m HTTP listening \u{1b}[3maddress\u{1b}[0m\u{1b}[2m=\u{1b}[0m127.0.0.1:99 x=1";
        let plain = without_colour(line);
        assert_eq!(listening(&plain), "127.0.0.1:99".parse().ok());
        assert_eq!(
            listening("listening address=\"[::1]:7\""),
            "[::1]:7".parse().ok()
        );
        assert_eq!(listening("starting address=127.0.0.1:1"), None);
    }
}
