//! What the bundle endpoint shows in its handshakes.

use std::sync::Arc;
use std::time::Duration;

use ah_spire_web::{Acme, AcmeHealth, FileCertificate, Shown};
use rustls::crypto::aws_lc_rs;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::endpoints::ServerSvid;

/// Where it comes from.
pub(super) enum Source {
    /// `https_spiffe`: the server's X509-SVID.
    Svid {
        svids: watch::Receiver<Option<Arc<ServerSvid>>>,
        shown: Arc<Shown>,
    },
    /// `https_web` with `serving_cert_file { }`
    Files {
        loaded: FileCertificate,
        interval: Duration,
        shown: Arc<Shown>,
    },
    /// `https_web` with `acme { }`
    Acme(Box<Acme>),
}

impl Source {
    /// What handshakes show.
    pub(super) fn certificates(&self) -> Arc<dyn ResolvesServerCert> {
        match self {
            Self::Svid { shown, .. } | Self::Files { shown, .. } => shown.clone(),
            Self::Acme(acme) => acme.certificates(),
        }
    }

    /// How the certificate is that an ACME server issues.
    pub(super) fn acme(&self) -> Option<AcmeHealth> {
        match self {
            Self::Acme(acme) => Some(acme.health()),
            Self::Svid { .. } | Self::Files { .. } => None,
        }
    }

    /// Keeps what is shown in step. What cannot be used is told, and the last good one serves on.
    pub(super) async fn follow(self) {
        match self {
            Self::Svid { svids, shown } => follow_svid(svids, &shown).await,
            Self::Files {
                loaded,
                interval,
                shown,
            } => loaded.follow(interval, "bundle endpoint", &shown).await,
            Self::Acme(acme) => acme.run().await,
        }
    }
}

async fn follow_svid(mut svids: watch::Receiver<Option<Arc<ServerSvid>>>, shown: &Shown) {
    loop {
        let svid = svids.borrow_and_update().clone();
        match svid.map(|svid| certified(&svid)) {
            Some(Ok(key)) => shown.show(Arc::new(key)),
            Some(Err(error)) => {
                tracing::error!(%error, "The server's X509-SVID cannot be used for the bundle endpoint");
            }
            None => {}
        }
        if svids.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn certified(svid: &ServerSvid) -> Result<CertifiedKey, rustls::Error> {
    let chain = { svid.chain.iter() }.map(|der| CertificateDer::from(der.clone()));
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain.collect(), svid.key.der().clone_key(), &provider)
}
