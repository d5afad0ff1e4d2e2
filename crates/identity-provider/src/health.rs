//! How the identity is doing, as the supervisor tells it.

use std::time::{Duration, SystemTime};

use crate::{Explained, ProviderKind};

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
    /// What will end the renewals unless somebody acts in time.
    pub warning: Option<Explained>,
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
    /// How long until the next attempt, which comes earlier when the source changes; `None` when there will be none.
    pub retry_in: Option<Duration>,
}
