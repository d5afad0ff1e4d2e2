//! What the supervisor tells of its work, in the health and in the log.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Supervisor;
use crate::clock::rfc3339;
use crate::{Code, Explained, Failure, Provider};

/// The least time between two log lines about a source that changed nothing.
const UNCHANGED_GAP: Duration = Duration::from_secs(1);

impl<P: Provider> Supervisor<P> {
    /// Shows what the provider sees coming, which may change while it has nothing new to give.
    pub(super) fn look_ahead(&self) {
        let (next_renewal, warning) = (self.provider.next_renewal(), self.provider.warning());
        self.health.send_if_modified(|health| {
            let new = health.next_renewal != next_renewal || health.warning != warning;
            health.next_renewal = next_renewal;
            health.warning = warning;
            new
        });
    }

    pub(super) fn succeed(&mut self) {
        let current = self.current();
        let next_renewal = self.provider.next_renewal();
        let mut recovered = 0;
        self.health.send_modify(|health| {
            recovered = health.failures;
            health.failures = 0;
            health.last_error = None;
            health.next_renewal = next_renewal;
            if let Some(current) = current {
                health.generation = current.generation;
                health.not_after = Some(current.identity.leaf().not_after);
            }
        });
        if recovered > 0 {
            tracing::info!(
                provider = %self.provider.kind(),
                failures = recovered,
                "certificate renewal works again"
            );
        }
    }

    /// Shows a failure in the health, and in the log at a decreasing rate as long as it stays the same.
    pub(super) fn fail(&self, explained: &Explained, retry_in: Option<Duration>) {
        let mut failures = 0;
        let mut new = true;
        let next_renewal = self.provider.next_renewal();
        self.health.send_modify(|health| {
            health.failures = health.failures.saturating_add(1);
            failures = health.failures;
            let last = health.last_error.as_ref();
            new = last.is_none_or(|last| last.explained != *explained);
            health.next_renewal = next_renewal;
            health.last_error = Some(Failure {
                at: self.clock.now(),
                explained: explained.clone(),
                retry_in,
            });
        });
        let retry_in = retry_in.map(tracing::field::debug);
        let causes = explained.causes.join("; ");
        let (provider, hint) = (self.provider.kind(), explained.hint.as_deref());
        if self.publish.is_none() {
            tracing::warn!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "no certificate yet"
            );
        } else if new || failures.is_power_of_two() {
            tracing::warn!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "certificate renewal failed, the last good certificate stays in use"
            );
        } else {
            tracing::debug!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "certificate renewal failed again"
            );
        }
    }

    /// FI-2: a source that was touched or read again and holds the same.
    pub(super) fn tell_unchanged(&mut self) {
        let now = Instant::now();
        let quiet = self
            .unchanged_told
            .is_some_and(|told| now.duration_since(told) < UNCHANGED_GAP);
        if self.asked || !quiet {
            tracing::info!(provider = %self.provider.kind(), "certificate unchanged");
            self.unchanged_told = Some(now);
        } else {
            tracing::debug!(provider = %self.provider.kind(), "certificate unchanged");
        }
        self.asked = false;
    }

    /// Says once that the identity in use has expired, and forgets it when the clock is put back.
    pub(super) fn watch_expiry(&mut self) {
        let Some(current) = self.current() else {
            return;
        };
        let leaf = current.identity.leaf();
        let now = self.clock.now();
        if now < leaf.not_after {
            self.expiry_told = false;
            return;
        }
        if self.expiry_told {
            return;
        }
        self.expiry_told = true;
        let mut explained = expired(&leaf.serial, leaf.not_after, now);
        self.health.send_modify(|health| {
            if let Some(last) = &health.last_error {
                explained
                    .causes
                    .push(format!("renewal failed: {}", last.explained.text));
                explained
                    .causes
                    .extend(last.explained.causes.iter().cloned());
                explained.hint.clone_from(&last.explained.hint);
            }
            let retry_in = health.last_error.as_ref().and_then(|last| last.retry_in);
            health.failures = health.failures.max(1);
            health.last_error = Some(Failure {
                at: now,
                explained: explained.clone(),
                retry_in,
            });
        });
        tracing::error!(
            provider = %self.provider.kind(),
            generation = current.generation,
            serial = %leaf.serial,
            not_after = %rfc3339(leaf.not_after),
            causes = explained.causes.join("; "),
            error = %explained,
            "the certificate in use has expired and no other is at hand"
        );
    }
}

/// ER-4, about our own certificate.
fn expired(serial: &str, not_after: SystemTime, now: SystemTime) -> Explained {
    Explained::new(
        Code::ExpiredOrNotYetValid,
        "certificate has expired or is not yet valid",
    )
    .cause(format!(
        "this process's own certificate (serial {serial}) was valid until {}; the clock here says {}",
        rfc3339(not_after),
        rfc3339(now)
    ))
    .hint("renew the certificate where it comes from; `ah agent doctor` checks provider and clock")
}
