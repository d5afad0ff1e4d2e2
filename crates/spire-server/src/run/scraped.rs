//! What Prometheus is shown, and judged by.

use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Clock, TrustBundles};
use ah_spire_telemetry::Known;
use ah_tls::OwnKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::endpoints::ServerSvid;

/// The server's own SVID, and the bundles that it follows.
pub(super) struct OfServer {
    pub(super) svids: watch::Receiver<Option<Arc<ServerSvid>>>,
    pub(super) bundles: watch::Receiver<Arc<TrustBundles>>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Known for OfServer {
    fn svid(&self) -> Option<(Vec<CertificateDer<'static>>, OwnKey)> {
        let svid = self.svids.borrow().clone()?;
        let chain = { svid.chain.iter() }.map(|der| CertificateDer::from(der.clone()));
        Some((chain.collect(), OwnKey::Here(svid.key.clone())))
    }

    fn bundles(&self) -> TrustBundles {
        (**self.bundles.borrow()).clone()
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }
}
