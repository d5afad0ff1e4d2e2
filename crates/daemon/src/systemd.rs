//! What a service manager wants to hear, and the sockets it hands over (AP-1, AP-19).
//!
//! Every message is a no-op when no manager listens (`NOTIFY_SOCKET` is not set).

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// Tells that start-up or a reload is finished, with a line for people.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(one_line(status))]);
}

/// Tells that a reload has begun; [`ready`] ends it. Carries `MONOTONIC_USEC`, as `Type=notify-reload`
/// asks.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the monotonic clock"),
    }
}

/// Tells that the process is ending.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(one_line(status))]);
}

/// Shows a line in `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(one_line(status))]);
}

/// Feeds the watchdog at half of its interval for as long as `alive` says so, until `stop`.
///
/// Returns at once when the manager wants no watchdog.
pub async fn feed_watchdog(alive: impl Fn() -> bool, stop: CancellationToken) {
    match sd_notify::watchdog_enabled() {
        Some(interval) if interval > Duration::ZERO => {
            let feed = || send(&[NotifyState::Watchdog]);
            at_half_of(interval, alive, feed, stop).await;
        }
        _ => {}
    }
}

async fn at_half_of(
    interval: Duration,
    alive: impl Fn() -> bool,
    feed: impl Fn(),
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => if alive() { feed() },
        }
    }
}

/// The sockets that were handed over, nonblocking, in their order.
#[derive(Debug, Default)]
pub struct Inherited {
    /// TCP listeners.
    pub tcp: Vec<TcpListener>,
    /// Unix stream listeners.
    pub unix: Vec<UnixListener>,
}

/// A socket that was handed over cannot be used.
#[derive(Debug)]
pub struct BadSocket {
    /// Its place in the list, from 0; its descriptor is this plus 3.
    pub index: usize,
    /// What is wrong.
    pub source: io::Error,
}

impl fmt::Display for BadSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "socket {} handed over by the service manager (descriptor {}) is of no use: {}",
            self.index,
            self.index + 3,
            self.source
        )
    }
}

impl std::error::Error for BadSocket {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Takes the sockets of `LISTEN_FDS`. A process without any gets empty lists. Call it once, before
/// anything else opens descriptors.
pub fn inherited_sockets() -> Result<Inherited, BadSocket> {
    let mut handed_over = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for index in 0..handed_over.len() {
        let bad = |source| BadSocket { index, source };
        // A TCP listener is tried first; what is none stays in its slot for the second try.
        if let Ok(Some(socket)) = handed_over.take_tcp_listener(index) {
            socket.set_nonblocking(true).map_err(bad)?;
            inherited.tcp.push(socket);
        } else if let Some(socket) = handed_over.take_unix_listener(index).map_err(bad)? {
            socket.set_nonblocking(true).map_err(bad)?;
            inherited.unix.push(socket);
        }
    }
    Ok(inherited)
}

/// A line break would begin another field of the message.
fn one_line(status: &str) -> &str {
    status.lines().next().unwrap_or_default()
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Set in a process that a test starts to play the part in which the environment differs.
    const CHILD: &str = "AH_TEST_CHILD";

    /// The test `test` once more, in a process of its own that plays the other part.
    fn child(test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture"]).env(CHILD, "1");
        command.arg(format!("systemd::tests::{test}"));
        command
    }

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    // AP-19
    #[test]
    fn the_manager_hears_ready_reloading_with_its_time_status_and_stopping() {
        if is_child() {
            ready("serving\nFDSTORE=1");
            reloading();
            status("3 executors");
            stopping("bye");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let done = child("the_manager_hears_ready_reloading_with_its_time_status_and_stopping")
            .env("NOTIFY_SOCKET", &path)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        assert_eq!(heard[0].trim_end(), "READY=1\nSTATUS=serving");
        let (reloading, time) = heard[1].trim_end().split_once('\n').unwrap();
        assert_eq!(reloading, "RELOADING=1");
        let time = time.strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        assert_eq!(heard[2].trim_end(), "STATUS=3 executors");
        assert_eq!(heard[3].trim_end(), "STOPPING=1\nSTATUS=bye");
        assert_eq!(heard.len(), 4);
    }

    // AP-1: takes sockets handed over by systemd.
    #[test]
    fn a_handed_over_listener_is_taken_and_does_not_block() {
        if is_child() {
            let inherited = inherited_sockets().unwrap();
            assert_eq!((inherited.tcp.len(), inherited.unix.len()), (1, 0));
            let socket = &inherited.tcp[0];
            let error = socket.accept().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            println!("port={}", socket.local_addr().unwrap().port());
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = child("a_handed_over_listener_is_taken_and_does_not_block");
        // The shell moves the listener to descriptor 3 and tells its own pid, as the protocol asks.
        let done = Command::new("sh")
            .arg("-c")
            .arg("exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"")
            .arg("sh")
            .arg(inner.get_program())
            .args(inner.get_args())
            .env(CHILD, "1")
            .stdin(OwnedFd::from(listener))
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{done:?}");
        assert!(out.contains(&format!("port={port}")), "{out}");
    }

    // AP-19
    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_at_half_its_interval_and_only_while_alive() {
        let fed = Cell::new(0);
        let stop = CancellationToken::new();
        let begun = tokio::time::Instant::now();
        let feed = || {
            fed.set(fed.get() + 1);
            if fed.get() == 4 {
                stop.cancel();
            }
        };
        at_half_of(Duration::from_secs(10), || true, feed, stop.clone()).await;
        // At 0, 5, 10 and 15 seconds.
        assert_eq!(begun.elapsed(), Duration::from_secs(15));

        let hung = at_half_of(
            Duration::from_secs(10),
            || false,
            || panic!("fed although hung"),
            CancellationToken::new(),
        );
        assert!(
            tokio::time::timeout(Duration::from_secs(60), hung)
                .await
                .is_err()
        );
    }
}
