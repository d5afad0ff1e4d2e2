//! Unix signals as cancellation and reload (AP-19).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::tasks::Shutdown;

/// The signals this process listens to, installed but not yet acted on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reloads: watch::Sender<u64>,
}

/// The requests to read everything again (HUP). Several that come while one is worked on are one.
#[derive(Clone, Debug)]
pub struct Reloads(watch::Receiver<u64>);

/// What a signal asks for while the process runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// USR2, as who rotates logs sends it.
    ReopenLog,
    /// USR1 or HUP.
    Reload,
}

/// The signals that ask for something, installed.
#[derive(Debug)]
pub struct Requests {
    reopen: Signal,
    reconfigure: Signal,
    hangups: Reloads,
}

impl Requests {
    /// Installs the handlers: from now on neither USR1 nor USR2 ends the process.
    pub fn install(hangups: Reloads) -> io::Result<Self> {
        Ok(Self {
            reopen: signal(SignalKind::user_defined2())?,
            reconfigure: signal(SignalKind::user_defined1())?,
            hangups,
        })
    }

    /// Waits for the next one. `None` when the process ends. Cancel safe.
    pub async fn next(&mut self) -> Option<Request> {
        tokio::select! {
            asked = self.reopen.recv() => asked.map(|()| Request::ReopenLog),
            asked = self.reconfigure.recv() => asked.map(|()| Request::Reload),
            asked = self.hangups.next() => asked.map(|()| Request::Reload),
        }
    }
}

impl Signals {
    /// Installs the handlers: from now on no signal of these ends the process by itself.
    pub fn install() -> io::Result<(Self, Reloads)> {
        let (reloads, receiver) = watch::channel(0);
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            reloads,
        };
        Ok((signals, Reloads(receiver)))
    }

    /// Acts on signals until the process has been told to end at once: the first TERM or INT cancels
    /// [`Shutdown::drain`], the second [`Shutdown::now`], each HUP makes a reload.
    pub async fn act_on(mut self, shutdown: Shutdown) {
        loop {
            let name = tokio::select! {
                () = shutdown.now.cancelled() => return,
                Some(()) = self.terminate.recv() => "TERM",
                Some(()) = self.interrupt.recv() => "INT",
                Some(()) = self.hangup.recv() => {
                    tracing::info!("reload asked for by signal HUP");
                    self.reloads.send_modify(|n| *n += 1);
                    continue;
                }
                else => return,
            };
            if shutdown.drain.is_cancelled() {
                tracing::warn!(signal = name, "ending at once");
                shutdown.now.cancel();
            } else {
                tracing::info!(signal = name, "draining; a second signal ends at once");
                shutdown.drain.cancel();
            }
        }
    }
}

impl Reloads {
    /// Waits for a request that came after the last one yielded. `None` when there will be none any
    /// more. Cancel safe.
    pub async fn next(&mut self) -> Option<()> {
        self.0.changed().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Raised, raise};

    use super::*;

    // AP-19. One test, since signals belong to the whole process.
    #[tokio::test]
    async fn hup_reloads_first_term_drains_second_ends_at_once() {
        let (signals, mut reloads) = Signals::install().unwrap();
        let shutdown = Shutdown::default();
        let acting = tokio::spawn(signals.act_on(shutdown.clone()));

        raise(Raised::SIGHUP).unwrap();
        assert_eq!(reloads.next().await, Some(()));
        assert!(!shutdown.drain.is_cancelled());

        raise(Raised::SIGTERM).unwrap();
        shutdown.drain.cancelled().await;
        assert!(!shutdown.now.is_cancelled());

        raise(Raised::SIGINT).unwrap();
        shutdown.now.cancelled().await;
        acting.await.unwrap();
        assert_eq!(reloads.next().await, None);
    }
}
