//! Database servers that tests run: started as a user who may, and ended with the tests.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

/// How long a server may take to answer before the test fails.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The server that `slot` has while any test holds it, or a new one.
pub(crate) fn shared<T>(
    slot: &Mutex<Weak<T>>,
    start: impl FnOnce() -> Option<T>,
) -> Option<Arc<T>> {
    let mut shared = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = shared.upgrade() {
        return Some(running);
    }
    let started = Arc::new(start()?);
    *shared = Arc::downgrade(&started);
    Some(started)
}

/// Databases refuse to run as root, or had better not: then it is `name`.
pub(crate) fn user(name: &str) -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    match User::from_name(name) {
        Ok(Some(user)) => Some(user),
        other => panic!("user {name}: {other:?}"),
    }
}

/// A temporary folder that `user` may write to.
pub(crate) fn folder(prefix: &str, user: Option<&User>) -> TempDir {
    let folder = match TempDir::with_prefix(prefix) {
        Ok(folder) => folder,
        Err(e) => panic!("temporary folder: {e}"),
    };
    if let Some(user) = user {
        let owned = std::os::unix::fs::chown(
            folder.path(),
            Some(user.uid.as_raw()),
            Some(user.gid.as_raw()),
        );
        assert!(
            owned.is_ok(),
            "chown {}: {owned:?}",
            folder.path().display()
        );
    }
    folder
}

/// `program` as `user`, which gets `signal` when the thread that starts it ends.
pub(crate) fn unprivileged(program: &Path, user: Option<&User>, signal: Signal) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command.arg(format!("--reuid={}", user.uid));
        command.arg(format!("--regid={}", user.gid));
        command.arg("--clear-groups");
    }
    let signal = signal.as_str().trim_start_matches("SIG");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command.current_dir("/");
    command
}

/// Starts the server `name`, whose standard error is piped, and waits until it says `ready`. A server that is not wanted any
/// more gets `signal`.
///
/// The signal that ends it with its parent is bound to the starting thread, so that is one that stays
/// as long as the server: it reads what the server says.
pub(crate) fn watched(
    name: &'static str,
    mut command: Command,
    ready: &'static str,
    signal: Signal,
) -> Child {
    let (started, start) = mpsc::channel();
    std::thread::spawn(move || {
        let mut server = match command.spawn() {
            Ok(server) => server,
            Err(e) => panic!("{name}: {e}"),
        };
        let stderr = server.stderr.take();
        let mut server = Some(server);
        let mut said = Vec::new();
        for line in stderr.into_iter().flat_map(|s| BufReader::new(s).lines()) {
            let line = line.unwrap_or_default();
            if line.contains(ready)
                && let Some(server) = server.take()
                && let Err(mpsc::SendError(mut unwanted)) = started.send(server)
            {
                end(&mut unwanted, signal);
            }
            if server.is_some() {
                said.push(line);
            }
        }
        if let Some(mut failed) = server {
            end(&mut failed, signal);
            panic!("{name} did not start: {}", said.join("\n"));
        }
    });
    match start.recv_timeout(START_DEADLINE) {
        Ok(server) => server,
        Err(e) => panic!("{name} did not start: {e}"),
    }
}

pub(crate) fn end(server: &mut Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(server.id()) {
        // It may be gone already; then waiting returns at once.
        let _sent = kill(Pid::from_raw(pid), signal);
    }
    let _status = server.wait();
}

pub(crate) fn free_port() -> u16 {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    match bound {
        Ok(address) => address.port(),
        Err(e) => panic!("no free port: {e}"),
    }
}

/// Whether a test goes on without the server `name`: one line then says that `test` is skipped, and how to have the server.
/// With `CI=true` in the environment that is a failure instead.
pub(crate) fn skipped(test: &str, name: &str, remedy: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: {name} is not installed, and CI=true"
    );
    println!("skipped: {test}: {name} is not installed ({remedy})");
}
