//! What happened lately to the whole fleet: refusals from memory, and the end of the audit log.

use std::time::SystemTime;

use super::why::AttemptView;
use crate::access_point::Operator;
use crate::access_point::attempts::Attempt;
use crate::audit::{AuditTarget, Event, Past, tail};

/// Which lines of the audit log to read back. Every condition given has to hold.
#[derive(Clone, Debug, Default)]
pub(in crate::access_point) struct AuditFilter {
    /// Of this executor id.
    pub(in crate::access_point) executor: Option<String>,
    /// Of this kind.
    pub(in crate::access_point) event: Option<Event>,
    /// With this text somewhere in the line, in any case.
    pub(in crate::access_point) text: String,
}

impl AuditFilter {
    /// How much of the log's end to read for `most` lines: all that is ever read when lines are searched for.
    fn bytes(&self, most: usize) -> u64 {
        let everything = self.executor.is_none() && self.event.is_none() && self.text.is_empty();
        if everything {
            u64::try_from(most).unwrap_or(u64::MAX).saturating_mul(4096)
        } else {
            u64::MAX
        }
    }
}

impl Operator {
    /// What time it is.
    pub(in crate::access_point) fn now(&self) -> SystemTime {
        self.0.clock.now()
    }

    /// The `most` newest refusals that are remembered.
    pub(in crate::access_point) fn refusals(&self, most: usize) -> Vec<AttemptView> {
        self.remembered(most, |attempt| attempt.refused.is_some())
    }

    /// The `most` newest attempts, refused and accepted, that are remembered of the executor id `id`.
    pub(in crate::access_point) fn attempts_of(&self, id: &str, most: usize) -> Vec<AttemptView> {
        self.remembered(most, |attempt| attempt.id() == Some(id))
    }

    fn remembered(&self, most: usize, wanted: impl Fn(&Attempt) -> bool) -> Vec<AttemptView> {
        let rules = self.0.policy.load().rules.clone();
        let found = self.0.attempts.newest(most, wanted);
        let views = found
            .into_iter()
            .map(|attempt| AttemptView::of(attempt, &rules));
        views.collect()
    }

    /// Peers that were turned away since `since`, as many as are remembered.
    pub(in crate::access_point) fn refused_since(&self, since: SystemTime) -> usize {
        self.0
            .attempts
            .count(|attempt| attempt.refused.is_some() && attempt.at >= since)
    }

    /// Connections reset for want of a place since the start.
    pub(in crate::access_point) fn shed(&self) -> u64 {
        self.0.metrics.handshakes_shed.get()
    }

    /// The `most` newest lines of the audit log that `filter` admits; an error says why it cannot be read.
    pub(in crate::access_point) async fn audit_tail(
        &self,
        most: usize,
        filter: AuditFilter,
    ) -> Result<Vec<Past>, String> {
        let path = match self.0.audit.target() {
            AuditTarget::File(path) => path.clone(),
            target => return Err(format!("the audit log is no file (--audit-log {target})")),
        };
        let read = tokio::task::spawn_blocking(move || {
            let text = filter.text.to_lowercase();
            // As it stands in a line, so that a line of another executor is not even parsed.
            let id = filter
                .executor
                .as_ref()
                .and_then(|id| serde_json::to_string(id).ok());
            tail(
                &path,
                filter.bytes(most),
                most,
                |line| {
                    id.as_ref().is_none_or(|id| line.contains(id))
                        && (text.is_empty() || line.to_lowercase().contains(&text))
                },
                |_, entry| {
                    filter.event.is_none_or(|event| event == entry.event)
                        && filter.executor.as_ref().is_none_or(|wanted| {
                            entry
                                .executor_id
                                .as_ref()
                                .is_some_and(|id| id.as_str() == wanted)
                        })
                },
            )
        });
        let read = read.await.map_err(std::io::Error::other).flatten();
        read.map_err(|error| format!("the audit log cannot be read: {error}"))
    }
}
