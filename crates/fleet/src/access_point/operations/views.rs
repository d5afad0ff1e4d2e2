//! What operators are shown: executors, sessions, events, the access point itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ah_identity_provider::{Explained, ProviderKind};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::access_point::http::ErrorBody;
use crate::access_point::registry::Session;
use crate::audit::Event;
use crate::store::{
    CertificateRecord, ExecutorRecord, HistoryEntry, HostRecord, Revocation, RevocationTarget,
};

/// An executor as operators see it: what is remembered, and what is live.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecutorView {
    /// Who it is by its certificate.
    pub id: String,
    /// Label for people.
    pub name: String,
    /// Where its identity comes from.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderKind>,
    /// Version of its software.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its host.
    pub host: HostRecord,
    /// The last certificate it enrolled with.
    pub certificate: CertificateRecord,
    /// First enrollment ever; absent while the store has not answered for it.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_enrolled: Option<OffsetDateTime>,
    /// Last enrollment or rotation.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub last_enrolled: OffsetDateTime,
    /// The bar in force, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revocation: Option<Revocation>,
    /// The live session at this access point, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub live: Option<LiveView>,
    /// The certificates it enrolled with, oldest first. Only when one executor is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<HistoryEntry>,
}

impl ExecutorView {
    /// `revoked`, `enrolled` or `offline`: what is barred is called so, live or not.
    pub fn state(&self) -> &'static str {
        match (&self.revocation, &self.live) {
            (Some(_), _) => "revoked",
            (None, Some(_)) => "enrolled",
            (None, None) => "offline",
        }
    }
}

/// The live session of an executor.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LiveView {
    /// Identifies the session in logs of both sides.
    pub session_id: String,
    /// Where it connects from.
    #[schema(value_type = String)]
    pub peer: SocketAddr,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: OffsetDateTime,
    /// Milliseconds since it was last heard.
    pub last_heard_ms: u64,
    /// Last round trip in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
}

/// A bar in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BarView {
    /// What it names.
    #[serde(flatten)]
    pub target: RevocationTarget,
    /// When and why.
    #[serde(flatten)]
    pub revocation: Revocation,
}

/// All executors, and whether that is really all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// By id.
    pub executors: Vec<ExecutorView>,
    /// The bars in force, also those on serial numbers, on certificates and on executors that never enrolled. Only when
    /// revoked executors are asked for, and nothing else.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub bars: Vec<BarView>,
    /// Set when the store did not answer: then only live executors are listed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store_error: Option<String>,
}

/// Something happened to an executor (`fleet watch`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FleetEvent {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    /// What.
    #[schema(value_type = String)]
    pub event: Event,
    /// To whom.
    pub id: String,
    /// Its label, where known.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// Its labels, where known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
    /// Why, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// An access point as it sees itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AccessPointView {
    /// Version of this software.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Since when it runs.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub started: OffsetDateTime,
    /// Where executors dial, with the real ports.
    #[schema(value_type = Vec<String>)]
    pub listening: Vec<SocketAddr>,
    /// The certificate that new connections are shown.
    pub certificate: CertificateRecord,
    /// Begin of that certificate's validity.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub certificate_not_before: OffsetDateTime,
    /// Where its identity comes from.
    #[schema(value_type = String)]
    pub provider: ProviderKind,
    /// How often a new identity replaced an old one.
    pub rotations: u64,
    /// Failures to renew it since the last success.
    pub renewal_failures: u32,
    /// What will end the renewals of the certificate unless somebody acts in time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<ErrorBody>)]
    pub identity_warning: Option<Explained>,
    /// The SAN rules in force. None: every certificate that chains to a trusted root is admitted.
    pub rules: Vec<String>,
    /// Where the audit log goes.
    pub audit_log: String,
    /// When `/metrics` was last read over `--http-listen`; absent when it never was.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub metrics_read: Option<OffsetDateTime>,
    /// Executors enrolled now.
    pub executors: usize,
}

/// An executor as the store knows it.
pub(super) fn remembered(record: ExecutorRecord, revocation: Option<Revocation>) -> ExecutorView {
    ExecutorView {
        id: record.id.to_string(),
        name: record.name,
        provider: record.provider,
        version: record.version,
        labels: record.labels,
        host: record.host,
        certificate: record.certificate,
        first_enrolled: Some(record.first_enrolled),
        last_enrolled: record.last_enrolled,
        revocation,
        live: None,
        history: Vec::new(),
    }
}

/// A live executor that the store does not know yet.
pub(super) fn unwritten(session: &Session) -> ExecutorView {
    ExecutorView {
        id: session.executor.to_string(),
        name: session.greeting.name.clone(),
        provider: session.greeting.provider,
        version: session.greeting.version.clone(),
        labels: session.greeting.labels.to_map(),
        host: session.greeting.host.clone(),
        certificate: session.certificate(),
        first_enrolled: None,
        last_enrolled: session.enrolled_at.into(),
        revocation: None,
        live: None,
        history: Vec::new(),
    }
}

/// A session as it is now.
pub(super) fn live(session: &Session) -> LiveView {
    LiveView {
        session_id: session.id.to_string(),
        peer: session.remote,
        since: session.enrolled_at.into(),
        last_heard_ms: whole(session.silence(), Duration::as_millis),
        round_trip_us: session
            .round_trip()
            .map(|trip| whole(trip, Duration::as_micros)),
    }
}

fn whole(duration: Duration, unit: fn(&Duration) -> u128) -> u64 {
    u64::try_from(unit(&duration)).unwrap_or(u64::MAX)
}
