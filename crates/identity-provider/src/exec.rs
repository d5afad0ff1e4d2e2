//! The `exec` provider: an identity from the output of a command (EX-1 to EX-4).
//!
//! Four things are kept apart: `command` is what was typed, `run` starts it and bounds what it can do to this
//! process, `output` makes an identity of what it printed, and the provider here decides when to ask.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use crate::clock::rfc3339;
use crate::{Clock, Identity, Provider, ProviderError, ProviderKind};

pub use command::{ExecCommand, NoCommand};

use fault::{OutputFault, Told};
use run::{Ran, RunFault};

mod command;
mod fault;
mod output;
mod run;
mod stderr;

/// The longest sleep between two looks at the wall clock, which may have been moved.
const TICK: Duration = Duration::from_secs(5);

/// For whom the command is asked (`AH_ROLE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecRole {
    /// `access-point`
    AccessPoint,
    /// `executor`
    Executor,
}

/// Which command, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    /// `--exec-command`
    pub command: ExecCommand,
    /// `--exec-refresh-interval`: ask at least this often. Two thirds of the certificate's life bound it in any case.
    pub refresh_interval: Option<Duration>,
    /// `--exec-timeout`: for one run.
    pub timeout: Duration,
    /// `AH_ROLE`
    pub role: ExecRole,
    /// `AH_NAME`
    pub name: String,
    /// `AH_REMOTE_SERVER`, comma separated. Empty for an access point.
    pub remote_servers: Vec<String>,
    /// Whether authorities are also given elsewhere (`--ca`), so that the output need not have any.
    pub roots_elsewhere: bool,
}

impl ExecConfig {
    /// How long one run may take unless something else is said (EX-1).
    pub const TIMEOUT: Duration = Duration::from_secs(30);
}

/// Identities from a command's output.
pub struct ExecProvider {
    config: ExecConfig,
    clock: Arc<dyn Clock>,
    /// The run under way. It outlives a dropped [`Provider::next`], and its processes do not outlive it.
    running: Option<Running>,
    /// What was given last.
    current: Option<Current>,
    /// Whether to ask at the next call whatever the time: at first, after an error, after a refresh.
    due: bool,
    /// What the log was told of the last output.
    noted: Vec<String>,
}

/// A run of the command.
struct Running(Pin<Box<dyn Future<Output = Result<Ran, RunFault>> + Send>>);

/// The certificate in use and when it is time for another.
#[derive(Clone, Copy)]
struct Current {
    not_after: SystemTime,
    /// By the life of the certificate.
    renew_at: SystemTime,
    /// By `--exec-refresh-interval`.
    refresh_at: Option<Instant>,
}

/// Why the command is run (`AH_REASON`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Initial,
    Refresh,
    Expiring,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Refresh => "refresh",
            Self::Expiring => "expiring",
        }
    }
}

impl ExecProvider {
    /// A provider of what `config.command` prints. Runs nothing yet.
    pub fn new(config: ExecConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            clock,
            running: None,
            current: None,
            due: true,
            noted: Vec::new(),
        }
    }

    /// Returns when it is time to ask.
    async fn until_due(&mut self) {
        while !self.due
            && let Some(current) = self.current
        {
            let life_left = current.renew_at.duration_since(self.clock.now());
            let life_left = life_left.unwrap_or_default();
            let now = Instant::now();
            if life_left.is_zero() || current.refresh_at.is_some_and(|at| at <= now) {
                return;
            }
            let look_again = now + life_left.min(TICK);
            sleep_until(
                current
                    .refresh_at
                    .map_or(look_again, |at| at.min(look_again)),
            )
            .await;
        }
    }

    fn reason(&self) -> Reason {
        match self.current {
            None => Reason::Initial,
            Some(current) if current.renew_at <= self.clock.now() => Reason::Expiring,
            Some(_) => Reason::Refresh,
        }
    }

    fn start(&self) -> Running {
        let reason = self.reason();
        let mut command = self.config.command.to_process();
        command
            .env("AH_ROLE", self.config.role.as_str())
            .env("AH_NAME", &self.config.name)
            .env("AH_REASON", reason.as_str());
        match self.config.remote_servers.as_slice() {
            [] => command.env_remove("AH_REMOTE_SERVER"),
            servers => command.env("AH_REMOTE_SERVER", servers.join(",")),
        };
        match self.current {
            None => command.env_remove("AH_CURRENT_NOT_AFTER"),
            Some(current) => command.env("AH_CURRENT_NOT_AFTER", rfc3339(current.not_after)),
        };
        tracing::debug!(
            command = self.config.command.program(),
            reason = reason.as_str(),
            "running the identity command"
        );
        Running(Box::pin(run::run(command, self.config.timeout)))
    }

    /// The identity in what a run printed. On a fault, what is left of the run is ended.
    fn identity(&mut self, ran: Ran) -> Result<Identity, ProviderError> {
        let now = self.clock.now();
        let taken = output::identity(&ran.stdout, self.config.roots_elsewhere).and_then(|taken| {
            let leaf = taken.identity.leaf();
            if leaf.not_after <= now {
                return Err(OutputFault::Expired {
                    serial: leaf.serial.clone(),
                    not_after: leaf.not_after,
                    now,
                });
            }
            Ok(taken)
        });
        let taken = taken.map_err(|fault| self.tells().bad_output(&fault, &ran.stderr))?;
        ran.succeeded();
        if taken.notes != self.noted {
            for note in &taken.notes {
                tracing::warn!(command = self.config.command.program(), "{note}");
            }
            self.noted = taken.notes;
        }
        let leaf = taken.identity.leaf();
        self.current = Some(Current {
            not_after: leaf.not_after,
            renew_at: renew_at(leaf.not_before, leaf.not_after, now),
            refresh_at: self.config.refresh_interval.map(|interval| {
                Instant::now() + interval.mul_f64(1.0 - rand::random_range(0.0..0.05))
            }),
        });
        Ok(taken.identity)
    }

    fn tells(&self) -> Told<'_> {
        Told {
            command: &self.config.command,
        }
    }
}

impl Provider for ExecProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Exec
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        let under_way = match self.running.take() {
            Some(running) => running,
            None => {
                self.until_due().await;
                self.start()
            }
        };
        // Kept in place while it is awaited, so that a dropped future does not end it.
        let ran = self.running.insert(under_way).0.as_mut().await;
        self.running = None;
        // Until this run has given an identity, the next call runs the command again.
        self.due = true;
        let ran = ran.map_err(|fault| self.tells().failed_run(&fault))?;
        let identity = self.identity(ran)?;
        self.due = false;
        Ok(identity)
    }

    /// A run under way began before whatever made somebody ask: it is ended, and the next call begins another.
    fn refresh(&mut self) {
        self.running = None;
        self.due = true;
    }

    fn next_renewal(&self) -> Option<SystemTime> {
        let current = self.current?;
        let refresh_at = current.refresh_at.and_then(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            self.clock.now().checked_add(wait)
        });
        Some(refresh_at.map_or(current.renew_at, |at| at.min(current.renew_at)))
    }
}

impl ExecRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::AccessPoint => "access-point",
            Self::Executor => "executor",
        }
    }
}

/// Two thirds of the life, up to a twentieth of it earlier, so that processes started together do not stay so.
///
/// A certificate that is past that already, because the command hands out what something else renews, is asked
/// about again after a tenth of what is left of it, and never more than once a second.
fn renew_at(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let share = 2.0 / 3.0 - rand::random_range(0.0..0.05);
    let by_life = not_before.checked_add(life.mul_f64(share));
    let left = not_after.duration_since(now).unwrap_or_default();
    let earliest = now.checked_add((left / 10).max(Duration::from_secs(1)));
    by_life.max(earliest).unwrap_or(not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    // EX-1
    #[test]
    fn ex_1_asks_at_two_thirds_of_the_life_and_little_by_little_after_that() {
        let start = SystemTime::UNIX_EPOCH + 1000 * HOUR;
        let end = start + 24 * HOUR;
        let at = renew_at(start, end, start).duration_since(start).unwrap();
        assert!(at > 14 * HOUR && at <= 16 * HOUR, "{at:?}");
        let late = start + 22 * HOUR;
        assert_eq!(renew_at(start, end, late), late + HOUR / 5);
        let last = end - Duration::from_secs(2);
        assert_eq!(renew_at(start, end, last), last + Duration::from_secs(1));
    }
}
