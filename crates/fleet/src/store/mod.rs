//! Durable facts about executors (RG-1), behind one seam with two implementations.
//!
//! The store is never on a connection's path: the registry hands changes to a [`StoreWriter`], which batches
//! them, and reads only at start and for people's questions.
//!
//! Times are kept in whole microseconds: what is read back is what was applied, cut to that.

mod open;
mod plan;
mod postgres;
mod sqlite;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use ah_identity_provider::{CertificateFacts, ProviderKind};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

pub use open::{AnyStore, DbUrl};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
pub use writer::{Durability, FlushError, StoreHealth, StoreWriter, StoreWriterTask};

/// How many certificates are remembered of each executor.
pub const HISTORY_LIMIT: usize = 50;

/// Who an executor is by its certificate: a SPIFFE ID, a DNS name or an IP address, as text. Cheap to clone: whatever is
/// kept of an executor shares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutorId(Arc<str>);

impl ExecutorId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl From<String> for ExecutorId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl From<&str> for ExecutorId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for ExecutorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is remembered of the last certificate of an executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateRecord {
    /// Lower-case hex.
    pub serial: String,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
    /// End of validity.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub not_after: OffsetDateTime,
}

impl From<&CertificateFacts> for CertificateRecord {
    fn from(facts: &CertificateFacts) -> Self {
        Self {
            serial: facts.serial.clone(),
            sha256: facts.sha256.clone(),
            not_after: facts.not_after.into(),
        }
    }
}

/// What an executor said of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HostRecord {
    /// Host name.
    pub hostname: String,
    /// For example `linux`.
    pub os: String,
    /// For example `x86_64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// An enrollment or a rotation, as it is written down. A later one of the same executor replaces all but
/// `first_enrolled` and the revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// Who.
    pub id: ExecutorId,
    /// Label for people.
    pub name: String,
    /// Where its identity comes from, as it says. `None` for a word that this version does not know.
    pub provider: Option<ProviderKind>,
    /// Version of its software.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its host.
    pub host: HostRecord,
    /// The certificate that opened the session.
    pub certificate: CertificateRecord,
    /// When.
    pub at: OffsetDateTime,
}

/// Why and when an executor was barred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revocation {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// What a revocation names (FL-1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
pub enum RevocationTarget {
    /// Every certificate of this executor.
    #[schema(value_type = String)]
    Id(ExecutorId),
    /// The certificate with this serial number (lower-case hex), whoever presents it.
    Serial(String),
    /// The certificate with this SHA-256 (lower-case hex).
    Sha256(String),
}

/// One row of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorRecord {
    /// Who.
    pub id: ExecutorId,
    /// Label for people.
    pub name: String,
    /// Where its identity comes from.
    pub provider: Option<ProviderKind>,
    /// Version of its software.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its host.
    pub host: HostRecord,
    /// The last certificate.
    pub certificate: CertificateRecord,
    /// First enrollment ever.
    #[serde(with = "time::serde::rfc3339")]
    pub first_enrolled: OffsetDateTime,
    /// Last enrollment or rotation.
    #[serde(with = "time::serde::rfc3339")]
    pub last_enrolled: OffsetDateTime,
}

/// One certificate an executor enrolled with, and where it came from.
///
/// Coming back with the certificate and the provider of the entry before makes no new entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// When the executor first enrolled with it.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    /// Where the identity came from.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderKind>,
    /// The certificate.
    pub certificate: CertificateRecord,
}

impl From<&Enrollment> for HistoryEntry {
    fn from(enrollment: &Enrollment) -> Self {
        Self {
            at: enrollment.at,
            provider: enrollment.provider,
            certificate: enrollment.certificate.clone(),
        }
    }
}

/// A durable change. The writer applies many in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An executor enrolled or rotated.
    ///
    /// It replaces what is stored unless that is from later: an access point that catches up after an
    /// outage does not undo what another one wrote meanwhile. A stored time that lies in the future
    /// counts for nothing, so a clock that was set back freezes no row.
    Enrolled(Box<Enrollment>),
    /// An executor enrolled and has enrolled again since, with another certificate, before the store
    /// could take it: the history gets it, and an executor not known yet was first enrolled then.
    Seen(ExecutorId, HistoryEntry),
    /// An operator barred something.
    Revoked(RevocationTarget, Revocation),
    /// An operator lifted a bar.
    Reinstated(RevocationTarget),
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Full, locked, gone, restarting: the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The call cannot succeed: wrong URL, a schema of a newer version, a damaged file.
    #[error("{0}")]
    Broken(String),
    /// At least one of the changes can never be stored, whatever the state of the database, such as an
    /// executor id with a NUL in it. Without it the others may succeed.
    #[error("{0}")]
    Refused(String),
}

/// The durable registry. Implemented for SQLite and PostgreSQL; both pass one conformance suite.
pub trait Store: Send + Sync + 'static {
    /// Applies all changes in order, durably and as one: after `Ok` they survive a power cut, after `Err`
    /// none was applied, except that a connection lost in the commit leaves it open whether all or none
    /// were; applying the same changes again is harmless.
    ///
    /// A NUL in anything an executor says of itself becomes U+FFFD; in an id, a serial number or a hash
    /// the change is [`StoreError::Refused`].
    fn apply(&self, changes: &[Change]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Every executor ever enrolled, by id.
    fn executors(&self) -> impl Future<Output = Result<Vec<ExecutorRecord>, StoreError>> + Send;

    /// Every bar in force.
    fn revocations(
        &self,
    ) -> impl Future<Output = Result<Vec<(RevocationTarget, Revocation)>, StoreError>> + Send;

    /// A number that grows with every change to the bars, by whichever access point, and costs one row to
    /// read: re-read [`Store::revocations`] when it moved.
    fn revocation_version(&self) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// The certificates `id` enrolled with, oldest first: the last [`HISTORY_LIMIT`].
    fn history(
        &self,
        id: &ExecutorId,
    ) -> impl Future<Output = Result<Vec<HistoryEntry>, StoreError>> + Send;

    /// Answers when a write would succeed now.
    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}
