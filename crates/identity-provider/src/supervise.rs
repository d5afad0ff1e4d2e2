//! The one writer of the identity: vets what a provider gives, keeps the last good one, retries.

use std::time::{Duration, SystemTime};

use crate::{Explained, Identity, ProviderKind};

/// Says whether an identity may be put to use, with the checks its peers will make.
pub trait Vet: Send + Sync + 'static {
    /// `Err` says why peers would refuse `candidate` at the time `now`.
    fn vet(&self, candidate: &Identity, now: SystemTime) -> Result<(), Explained>;
}

/// How the identity is doing, for status, metrics, readiness and audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Which provider.
    pub provider: ProviderKind,
    /// Generation in use; 0 before the first.
    pub generation: u64,
    /// How often a new identity replaced an old one.
    pub rotations: u64,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, until a success clears it.
    pub last_error: Option<Failure>,
    /// When the provider is expected to give the next identity, where it knows.
    pub next_renewal: Option<SystemTime>,
    /// End of validity of the identity in use.
    pub not_after: Option<SystemTime>,
}

/// One failure to get or to use a new identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: SystemTime,
    /// What and why.
    pub explained: Explained,
    /// How long until the next attempt; `None` when the source's next change is awaited.
    pub retry_in: Option<Duration>,
}
