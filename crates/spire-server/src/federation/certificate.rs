//! What the bundle endpoint shows in its handshakes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::pem;
use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::endpoints::ServerSvid;

/// The certificate of the moment.
#[derive(Default)]
pub(super) struct Shown(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// Where it comes from.
pub(super) enum Source {
    /// `https_spiffe`: the server's X509-SVID.
    Svid(watch::Receiver<Option<Arc<ServerSvid>>>),
    /// `https_web` with `serving_cert_file { }`
    Files {
        loaded: FileCertificate,
        interval: Duration,
    },
}

impl Source {
    /// Keeps `shown` in step. What cannot be used is told, and the last good one serves on.
    pub(super) async fn follow(self, shown: &Shown) {
        match self {
            Self::Svid(svids) => follow_svid(svids, shown).await,
            Self::Files { loaded, interval } => follow_files(loaded, interval, shown).await,
        }
    }
}

async fn follow_svid(mut svids: watch::Receiver<Option<Arc<ServerSvid>>>, shown: &Shown) {
    loop {
        let svid = svids.borrow_and_update().clone();
        match svid.map(|svid| certified(&svid)) {
            Some(Ok(key)) => shown.0.store(Some(Arc::new(key))),
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

/// A certificate that somebody else writes to files, and keeps new.
pub(super) struct FileCertificate {
    cert: PathBuf,
    key: PathBuf,
    /// As it was read, to know when it is another.
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
}

impl FileCertificate {
    /// Reads both.
    pub(super) fn load(cert: &Path, key: &Path) -> Result<Self, String> {
        let failed = |file: &Path, why: &dyn fmt::Display| {
            format!("failed to load certificate: {}: {why}", file.display())
        };
        let read = |file: &Path| std::fs::read(file).map_err(|error| failed(file, &error));
        let chain = pem::certificates(&read(cert)?).map_err(|error| failed(cert, &error))?;
        let secret = zeroize::Zeroizing::new(read(key)?);
        let secret = pem::private_key(&secret, None).map_err(|error| failed(key, &error))?;
        let provider = aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain.clone(), secret.der().clone_key(), &provider);
        let certified = certified.map_err(|error| failed(cert, &error))?;
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            chain,
            certified: Arc::new(certified),
        })
    }
}

async fn follow_files(mut loaded: FileCertificate, every: Duration, shown: &Shown) {
    let mut turns = interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    shown.0.store(Some(loaded.certified.clone()));
    // The first comes at once.
    turns.tick().await;
    loop {
        turns.tick().await;
        match FileCertificate::load(&loaded.cert, &loaded.key) {
            Ok(newer) if newer.chain != loaded.chain => {
                shown.0.store(Some(newer.certified.clone()));
                loaded = newer;
                tracing::info!(
                    file = %loaded.cert.display(),
                    "The bundle endpoint has a new certificate"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!(
                %error,
                "The bundle endpoint's certificate cannot be read again; the last one serves on"
            ),
        }
    }
}
