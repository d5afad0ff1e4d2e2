//! The audit log: one JSON object a line, each carrying the hash of the line before it (AU-1, AU-2).
//!
//! Emitters hand an [`Entry`] to [`AuditLog::record`], which never waits. One task numbers, chains and
//! writes what has gathered. [`verify`] proves a file unbroken.

mod chain;
mod file;
mod log;
mod past;
mod sink;
mod verify;

use std::net::SocketAddr;

use ah_identity_provider::ProviderKind;
use serde::{Deserialize, Serialize};

use crate::store::{CertificateRecord, ExecutorId};

pub use log::{AuditHealth, AuditLog, AuditTarget, AuditTask, QUEUE_LIMIT};
pub(crate) use past::tail;
pub use past::{Past, past};
pub use verify::{BrokenAt, Fault, Start, Verified, verify};

/// What happened (AU-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// An executor enrolled for the first time ever.
    Enrolled,
    /// A known executor came back.
    ReEnrolled,
    /// A live executor moved to a new certificate.
    Rotated,
    /// A session ended.
    Disconnected,
    /// A peer was turned away, in the handshake or after it.
    Rejected,
    /// An operator barred an executor or a certificate.
    Revoked,
    /// An operator lifted a bar.
    Reinstated,
    /// This access point's own identity was renewed.
    IdentityRenewed,
    /// This access point's own identity could not be renewed.
    IdentityRenewalFailed,
    /// The access point started.
    Started,
    /// The access point stopped in order.
    Stopped,
    /// A line that a crash had left half written was cut from the end of the log; `reason` holds it (AU-2).
    Repaired,
    /// Events could not be written for so long that the oldest had to go; `reason` says how many (AU-2).
    EventsLost,
}

impl Event {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Enrolled,
        Self::ReEnrolled,
        Self::Rotated,
        Self::Disconnected,
        Self::Rejected,
        Self::Revoked,
        Self::Reinstated,
        Self::IdentityRenewed,
        Self::IdentityRenewalFailed,
        Self::Started,
        Self::Stopped,
        Self::Repaired,
        Self::EventsLost,
    ];

    /// The name as it is written in a line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::ReEnrolled => "re-enrolled",
            Self::Rotated => "rotated",
            Self::Disconnected => "disconnected",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::Reinstated => "reinstated",
            Self::IdentityRenewed => "identity-renewed",
            Self::IdentityRenewalFailed => "identity-renewal-failed",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Repaired => "repaired",
            Self::EventsLost => "events-lost",
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As asked.
    Success,
    /// Turned away or failed.
    Failure,
}

/// What an emitter says of one event. The log adds time, sequence and the hash of the line before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// How it ended.
    pub outcome: Outcome,
    /// Whom it concerns, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor_id: Option<ExecutorId>,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// The certificate concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateRecord>,
    /// Where the identity concerned comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderKind>,
    /// Why, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Entry {
    /// An entry that says nothing but what happened and how it ended.
    pub fn new(event: Event, outcome: Outcome) -> Self {
        Self {
            event,
            outcome,
            executor_id: None,
            peer: None,
            certificate: None,
            provider: None,
            reason: None,
        }
    }
}
