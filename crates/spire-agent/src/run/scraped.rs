//! What Prometheus is shown, and judged by.

use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Clock, TrustBundles};
use ah_spire_telemetry::Known;
use ah_tls::OwnKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::bundles::Bundles;
use crate::own::OwnIdentity;

/// The agent's own SVID, and the bundles of its cache.
pub(super) struct OfAgent {
    pub(super) own: watch::Receiver<Option<Arc<OwnIdentity>>>,
    pub(super) bundles: watch::Receiver<Bundles>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Known for OfAgent {
    fn svid(&self) -> Option<(Vec<CertificateDer<'static>>, OwnKey)> {
        let own = self.own.borrow().clone()?;
        Some((own.svid.clone(), own.key.for_tls()))
    }

    fn bundles(&self) -> TrustBundles {
        self.bundles.borrow().trust()
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }
}
