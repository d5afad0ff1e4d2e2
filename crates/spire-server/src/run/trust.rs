//! The bundles that client certificates are judged by, as the store has them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::TrustBundles;
use ah_spire_wire::model::Bundle;
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::store::{Bundles, SqlStore, StoreError};

/// How old a bundle may be that a certificate is judged by, as with upstream.
const INTERVAL: Duration = Duration::from_secs(1);

/// Follows the bundles of the own trust domain and of those that administrators and Prometheus come from.
pub(super) struct Follower {
    store: SqlStore,
    ours: TrustDomain,
    domains: BTreeSet<TrustDomain>,
    newest: watch::Sender<Arc<TrustBundles>>,
    own: watch::Sender<Option<Arc<Bundle>>>,
}

impl Follower {
    /// Of `ours`, and of the trust domains of `known`.
    pub(super) async fn start<'a>(
        store: SqlStore,
        ours: TrustDomain,
        known: impl IntoIterator<Item = &'a SpiffeId>,
    ) -> Result<Self, String> {
        let foreign = known.into_iter().map(|id| id.trust_domain().clone());
        let domains = foreign.chain([ours.clone()]).collect();
        let follower = Self {
            store,
            ours,
            domains,
            newest: watch::Sender::new(Arc::new(TrustBundles::default())),
            own: watch::Sender::new(None),
        };
        let first = follower.read().await;
        let first = first.map_err(|error| format!("cannot read the trust bundles: {error}"))?;
        follower.newest.send_replace(Arc::new(first));
        Ok(follower)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.newest.subscribe()
    }

    /// All of the own bundle, as it is served to other trust domains.
    pub(super) fn own_bundle(&self) -> watch::Receiver<Option<Arc<Bundle>>> {
        self.own.subscribe()
    }

    /// Follows until it is dropped. While the store does not answer the last bundles serve on.
    pub(super) async fn run(self) {
        let mut turns = interval(INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            turns.tick().await;
            match self.read().await {
                Ok(bundles) => {
                    failing = false;
                    self.newest.send_if_modified(|newest| {
                        let changed = **newest != bundles;
                        if changed {
                            *newest = Arc::new(bundles);
                        }
                        changed
                    });
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(%error, "Cannot read the trust bundles; the last ones serve on");
                    }
                    failing = true;
                }
            }
        }
    }

    async fn read(&self) -> Result<TrustBundles, StoreError> {
        let mut bundles = TrustBundles::default();
        for domain in &self.domains {
            // Without a bundle there is nobody to trust in that domain.
            let bundle = self.store.bundle(domain).await?;
            if *domain == self.ours {
                self.own.send_if_modified(|own| {
                    let changed = own.as_deref() != bundle.as_ref();
                    if changed {
                        *own = bundle.clone().map(Arc::new);
                    }
                    changed
                });
            }
            let authorities = bundle.into_iter().flat_map(|bundle| bundle.x509);
            let roots = authorities.map(|ca| CertificateDer::from(ca.der)).collect();
            bundles.domains.insert(domain.clone(), roots);
        }
        Ok(bundles)
    }
}
