//! The seam every source of identity implements.

use std::fmt;
use std::future::{self, Future};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Explained, Identity};

/// Which kind of source an identity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Development CA of this machine (DV-1).
    Dev,
    /// PEM files (FI-1).
    Files,
    /// SPIFFE Workload API (SP-1).
    Spiffe,
    /// HashiCorp Vault or OpenBao (VA-1).
    Vault,
    /// A command's output (EX-1).
    Exec,
}

impl ProviderKind {
    /// The name used on the command line, in audit lines and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Files => "files",
            Self::Spiffe => "spiffe",
            Self::Vault => "vault",
            Self::Exec => "exec",
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a provider has no identity to give, named by what its caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Likely to pass: ask again after a backoff.
    #[error("{0}")]
    Retry(Explained),
    /// Passes when an operator mends something (a file, a permission): ask again when the source changes,
    /// and now and then. At start-up this ends the process, so that the operator sees it.
    #[error("{0}")]
    Operator(Explained),
    /// Cannot pass within this process: give up.
    #[error("{0}")]
    Fatal(Explained),
}

impl ProviderError {
    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Retry(e) | Self::Operator(e) | Self::Fatal(e) => e,
        }
    }
}

/// A source of identities. It produces material and nothing else: no TLS, no policy.
///
/// One shape serves sources that push (files, Workload API) and sources that are asked (Vault, exec).
pub trait Provider: Send + 'static {
    /// Which kind this is.
    fn kind(&self) -> ProviderKind;

    /// The next identity: on the first call as soon as one can be had, later when there is a new one or
    /// it is time for one. Cancel safe: dropping the future loses nothing.
    ///
    /// After an error the caller waits as the error says and calls again.
    fn next(&mut self) -> impl Future<Output = Result<Identity, ProviderError>> + Send;

    /// Makes the next call of [`Provider::next`] read the source at once (SIGHUP, FI-2), whether or not
    /// anything is known to have changed.
    ///
    /// That call gives the identity even when it is the same as before; the supervisor tells the two apart.
    fn refresh(&mut self);

    /// Waits until the source looks different from when it was last read: after an error the caller need not
    /// wait out its backoff. Never resolves where nothing can be known without asking. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        future::pending()
    }

    /// When [`Provider::next`] is expected to give the next identity, where that is known.
    fn next_renewal(&self) -> Option<SystemTime> {
        None
    }

    /// Something that will stop the identity from being renewed unless a person acts in time, while all is well still.
    fn warning(&self) -> Option<Explained> {
        None
    }
}
