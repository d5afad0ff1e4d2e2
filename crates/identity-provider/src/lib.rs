//! Where this process's identity comes from.
//!
//! A [`Provider`] produces an [`Identity`] (chain, private key, trust bundles of one moment) and nothing
//! else. The [`Supervisor`] drives it: it vets what arrives, keeps the last good identity,
//! retries with bounded backoff and publishes numbered generations through an [`IdentityWatch`].

mod backoff;
mod cert;
pub mod chain;
mod clock;
pub mod dev;
pub mod exec;
mod explain;
pub mod extra_roots;
pub mod files;
mod health;
mod identity;
mod key;
pub mod pem;
mod provider;
mod put;
pub mod spiffe;
mod supervise;
pub mod vault;

pub use backoff::Backoff;
pub use cert::{CertificateError, CertificateFacts, KeyKind, hex};
pub use clock::{Clock, SystemClock};
pub use explain::{Code, Explained};
pub use health::{Failure, Health};
pub use identity::{Identity, IdentityWatch, PrivateKey, Published, TrustBundles};
pub use key::{KeyError, PublicSide, keys_match};
pub use provider::{Provider, ProviderError, ProviderKind};
pub use supervise::{Refresher, Supervisor, Vet};
