//! Upstream authority `disk`: a CA whose certificate and key are in files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::model::JwtKey;
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::local::{LocalCa, Part, unable};
use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError};

/// Signs with a CA from files, which are read anew for each CA. When they cannot be read, what was read last serves.
pub struct DiskAuthority(Arc<Inner>);

struct Inner {
    files: Files,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    last: Mutex<Arc<LocalCa>>,
}

/// Where the CA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `cert_file_path`: the CA, then its issuers.
    pub certificate: PathBuf,
    /// `key_file_path`
    pub key: PathBuf,
    /// `bundle_file_path`: the roots; `None` for a CA that signed itself.
    pub bundle: Option<PathBuf>,
}

impl DiskAuthority {
    /// Reads the files once, so that a fault is found at the start.
    pub fn open(
        files: Files,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, UpstreamError> {
        let loaded = load(&files, &trust_domain, clock.now())?;
        Ok(Self(Arc::new(Inner {
            files,
            trust_domain,
            clock,
            last: Mutex::new(Arc::new(loaded)),
        })))
    }
}

impl UpstreamAuthority for DiskAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        let inner = self.0.clone();
        let csr = csr.to_vec();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || inner.mint(&csr, ttl))
                .await
                .map_err(|error| UpstreamError(error.to_string()))?
        })
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

impl Inner {
    fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, UpstreamError> {
        let now = self.clock.now();
        self.read(now).mint(csr, ttl, &self.trust_domain, now)
    }

    fn read(&self, now: SystemTime) -> Arc<LocalCa> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match load(&self.files, &self.trust_domain, now) {
            Ok(loaded) => *last = Arc::new(loaded),
            Err(error) => tracing::warn!(%error, "the upstream CA read last is used on"),
        }
        last.clone()
    }
}

fn load(files: &Files, of: &TrustDomain, now: SystemTime) -> Result<LocalCa, UpstreamError> {
    let key = Read::file(&files.key, "key")?;
    let certificate = Read::file(&files.certificate, "cert")?;
    let bundle = files.bundle.as_deref();
    let bundle = bundle.map(|path| Read::file(path, "bundle")).transpose()?;
    LocalCa::read(
        &key.part(),
        &certificate.part(),
        bundle.as_ref().map(Read::part).as_ref(),
        "bundle_file_path",
        of,
        now,
    )
}

struct Read {
    place: String,
    pem: Zeroizing<Vec<u8>>,
}

impl Read {
    fn file(path: &Path, what: &str) -> Result<Self, UpstreamError> {
        let place = path.display().to_string();
        match std::fs::read(path) {
            Ok(pem) => Ok(Self {
                place,
                pem: Zeroizing::new(pem),
            }),
            Err(error) => Err(unable(what, &place, &error.to_string())),
        }
    }

    fn part(&self) -> Part<'_> {
        Part {
            place: &self.place,
            pem: &self.pem,
        }
    }
}
