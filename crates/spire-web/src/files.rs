//! A certificate in files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::pem;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::time::{MissedTickBehavior, interval};

use crate::Shown;

/// A certificate that somebody else writes to files, and keeps new.
pub struct FileCertificate {
    cert: PathBuf,
    key: PathBuf,
    /// As it was read, to know when it is another.
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
}

impl FileCertificate {
    /// Reads both.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, String> {
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

    /// Shows it, and every newer one that the files have when they are looked at. What cannot be used is told, and the
    /// last good one serves on. `whose` it is stands in the log.
    pub async fn follow(self, every: Duration, whose: &str, shown: &Shown) {
        let mut loaded = self;
        let mut turns = interval(every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        shown.show(loaded.certified.clone());
        // The first comes at once.
        turns.tick().await;
        loop {
            turns.tick().await;
            match Self::load(&loaded.cert, &loaded.key) {
                Ok(newer) if newer.chain != loaded.chain => {
                    shown.show(newer.certified.clone());
                    loaded = newer;
                    tracing::info!(file = %loaded.cert.display(), "The {whose} has a new certificate");
                }
                Ok(_) => {}
                Err(error) => tracing::error!(
                    %error,
                    "The certificate of the {whose} cannot be read again; the last one serves on"
                ),
            }
        }
    }
}
