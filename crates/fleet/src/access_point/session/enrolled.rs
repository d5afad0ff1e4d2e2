//! An enrolled session in the registry: its clock, its records, and its end.

use std::future::Future;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use tokio::time::Instant;

use super::super::Shared;
use super::super::attempts::Attempt;
use super::super::comebacks::{OFTEN, WINDOW};
use super::super::registry::{Admission, Session};
use crate::audit::{Entry, Event, Outcome};
use crate::moment::rfc3339;
use crate::proto::Heartbeat;
use crate::proto::access_point_message::Kind as Outgoing;
use crate::store::{Change, Durability, Enrollment};

/// What there is once the welcome was sent. Dropping it takes the executor out of the registry.
pub(super) struct Enrolled {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) sent: u64,
    pub(super) sent_at: Instant,
    /// Set when the session only waits for its peer to close it.
    pub(super) leaving_by: Option<Instant>,
    pub(super) why: &'static str,
    pub(super) reason: Option<String>,
}

impl Enrolled {
    /// Until when there is nothing to do by the clock. `None` when it is time to close in order.
    pub(super) fn check_time(&mut self) -> Result<Option<Instant>, Explained> {
        let now = Instant::now();
        if let Some(by) = self.leaving_by {
            return Ok((now < by).then_some(by));
        }
        let patience = self.session.patience();
        let silence = self.session.silence();
        if silence >= patience {
            return Err(Explained::new(
                Code::Unavailable,
                format!("no heartbeat for {:.1}s", silence.as_secs_f64()),
            ));
        }
        let life = self
            .session
            .not_after()
            .duration_since(self.shared.clock.now())
            .unwrap_or_default();
        if life.is_zero() {
            return Err(expired(&self.session));
        }
        Ok(Some(now + life.min(patience.saturating_sub(silence))))
    }

    pub(super) fn heartbeat(&mut self) -> Outgoing {
        self.sent += 1;
        self.sent_at = Instant::now();
        self.shared.metrics.heartbeat_sent();
        let last = self.session.round_trip().unwrap_or_default();
        Outgoing::Heartbeat(Heartbeat {
            sequence: self.sent,
            last_round_trip_us: u64::try_from(last.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Tells of the enrollment and writes it down. The future waits until it is durable, unless the store is
    /// in trouble; all else is done without it.
    pub(super) fn record(
        &self,
        admission: Admission,
    ) -> impl Future<Output = Durability> + Send + use<> {
        let session = &self.session;
        let event = match admission {
            Admission::First => Event::Enrolled,
            Admission::Moved {
                new_certificate: true,
            } => Event::Rotated,
            Admission::Again
            | Admission::Moved {
                new_certificate: false,
            } => Event::ReEnrolled,
        };
        let written = self
            .shared
            .writer
            .submit(Change::Enrolled(Box::new(Enrollment {
                id: session.executor.clone(),
                name: session.greeting.name.clone(),
                provider: session.greeting.provider,
                version: session.greeting.version.clone(),
                labels: session.greeting.labels.to_map(),
                host: session.greeting.host.clone(),
                certificate: session.certificate(),
                at: session.enrolled_at.into(),
            })));
        let what = match event {
            Event::Rotated => "executor certificate rotated",
            Event::Enrolled => "executor enrolled",
            _ => "executor enrolled again",
        };
        tracing::info!(
            executor.id = %session.executor,
            executor.name = %session.greeting.name,
            peer = %session.remote,
            cert.serial = %session.peer.leaf().serial,
            cert.not_after = %rfc3339(session.not_after()),
            "{what}"
        );
        self.shared.metrics.session_opened(event);
        if admission == Admission::Again && self.shared.comebacks.note(&session.executor) {
            tracing::warn!(
                executor.id = %session.executor,
                executor.name = %session.greeting.name,
                peer = %session.remote,
                "executor came back {OFTEN} times within {} minutes",
                WINDOW.as_secs() / 60
            );
        }
        self.shared.attempts.note(Attempt {
            executor: Some(session.executor.clone()),
            vouched: true,
            name: Some(session.greeting.name.clone()),
            certificate: Some(session.peer.shared_leaf()),
            ..Attempt::new(session.enrolled_at, session.remote)
        });
        self.announce(event, None);
        self.shared.audit.record(self.entry(event, None));
        written
    }

    fn announce(&self, event: Event, reason: Option<&str>) {
        let greeting = Some(&self.session.greeting);
        self.shared
            .announce(event, self.session.executor.as_str(), greeting, reason);
    }

    fn entry(&self, event: Event, reason: Option<String>) -> Entry {
        Entry {
            event,
            outcome: Outcome::Success,
            executor_id: Some(self.session.executor.clone()),
            peer: Some(self.session.remote),
            certificate: Some(self.session.certificate()),
            provider: self.session.greeting.provider,
            reason,
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let was_live = self.shared.registry.leave(&self.session);
        self.shared.metrics.session_closed(self.why);
        let reason = match self.reason.take() {
            Some(detail) => format!("{}: {detail}", self.why),
            None => self.why.to_owned(),
        };
        // Who was pushed out by another process was disconnected too; who moved on by itself was not.
        if was_live || !self.session.is_superseded() {
            tracing::info!(
                executor.id = %self.session.executor,
                peer = %self.session.remote,
                reason,
                "executor disconnected"
            );
            self.announce(Event::Disconnected, Some(&reason));
            self.shared
                .audit
                .record(self.entry(Event::Disconnected, Some(reason)));
        }
    }
}

fn expired(session: &Session) -> Explained {
    Explained::new(
        Code::ClientExpired,
        "client certificate rejected: certificate has expired or is not yet valid",
    )
    .cause(format!(
        "the certificate that opened this session ended at {}",
        session.certificate().not_after
    ))
    .hint(
        "renew the executor's certificate; the executor reconnects by itself once it has a new one",
    )
}
