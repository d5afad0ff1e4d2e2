//! The seam between the cache and the Workload API: what a workload is entitled to, as it changes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_wire::model::{Bundle, Entry, Selector};
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// One X509-SVID that is ready to be served.
pub struct X509Identity {
    /// What it was issued for.
    pub entry: Arc<Entry>,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// End of the leaf.
    pub not_after: SystemTime,
}

/// All that a workload is entitled to, at one moment.
#[derive(Clone)]
pub struct WorkloadUpdate {
    /// In the order of their entries' creation: the first is the default. Empty when no entry matches.
    pub identities: Vec<Arc<X509Identity>>,
    /// Of our own trust domain.
    pub bundle: Arc<Bundle>,
    /// Of the trust domains that its entries federate with.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

/// A JWT-SVID that is ready to be served.
#[derive(Clone)]
pub struct JwtIdentity {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// Compact serialization.
    pub token: String,
    /// `iat`
    pub issued_at: SystemTime,
    /// `exp`
    pub expires_at: SystemTime,
    /// The entry's hint.
    pub hint: String,
}

/// Why there is no JWT-SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// No entry matches, or none with the SPIFFE ID that was asked for.
    #[error("no identity issued")]
    NoIdentity,
    /// The server cannot be reached and nothing that is still valid is cached.
    #[error("{0}")]
    Unavailable(String),
    /// The server refused.
    #[error("{0}")]
    Refused(String),
}

/// What the Workload API serves.
pub trait Identities: Send + Sync + 'static {
    /// The present set for a workload with `selectors`, and every later one. Sets that are equal to the one before are
    /// not published. X509-SVIDs that are being made when this is called are waited for: the first set is whole.
    fn subscribe(
        &self,
        selectors: &[Selector],
    ) -> impl Future<Output = watch::Receiver<Arc<WorkloadUpdate>>> + Send;

    /// One for each entry that matches, or for those with `spiffe_id` alone; from the cache where that is still good.
    fn jwt_svids(
        &self,
        selectors: &[Selector],
        audience: &[String],
        spiffe_id: Option<&SpiffeId>,
    ) -> impl Future<Output = Result<Vec<JwtIdentity>, JwtError>> + Send;

    /// Why workloads cannot be served now; `None` when they can. For health checks.
    fn not_ready(&self) -> Option<String> {
        None
    }

    /// Every entry that this agent may serve: what explains why a workload has no identity.
    fn entries(&self) -> Vec<Arc<Entry>>;
}
