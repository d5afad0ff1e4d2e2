//! Further roots to trust besides those of a provider (`--ca` with any provider, AP-3, EN-3).

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::files::read_roots;
use crate::{Explained, Identity, Provider, ProviderError, ProviderKind};

/// How often the file is looked at. FI-2 asks for a change to be seen within two seconds.
const POLL: Duration = Duration::from_secs(1);

/// A provider whose identities also trust the certificates of a PEM file, for any name.
pub struct ExtraRoots<P> {
    inner: P,
    file: PathBuf,
    /// What the provider gave last, as it gave it.
    last: Option<Identity>,
    /// The roots that went out with it; `None` until it went out.
    told: Option<Vec<CertificateDer<'static>>>,
}

impl<P> ExtraRoots<P> {
    /// `inner`, with the roots of `file` added to each of its identities.
    pub fn new(inner: P, file: PathBuf) -> Self {
        Self {
            inner,
            file,
            last: None,
            told: None,
        }
    }
}

impl<P: Provider> Provider for ExtraRoots<P> {
    fn kind(&self) -> ProviderKind {
        self.inner.kind()
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        loop {
            // What the provider gave and the file held back is kept: to ask again may cost a certificate.
            let held_back = self.last.is_some() && self.told.is_none();
            if !held_back {
                let mut given = pin!(self.inner.next());
                loop {
                    tokio::select! {
                        given = &mut given => {
                            self.last = Some(given?);
                            self.told = None;
                            break;
                        }
                        () = tokio::time::sleep(POLL), if self.last.is_some() => {
                            if self.told != Some(read_roots(&self.file)?) {
                                break;
                            }
                        }
                    }
                }
            }
            let roots = read_roots(&self.file)?;
            if let Some(identity) = &self.last {
                self.told = Some(roots.clone());
                return Ok(identity.clone().trusting_also(roots));
            }
        }
    }

    fn refresh(&mut self) {
        self.inner.refresh();
    }

    async fn changed(&mut self) {
        self.inner.changed().await;
    }

    fn next_renewal(&self) -> Option<std::time::SystemTime> {
        self.inner.next_renewal()
    }

    fn warning(&self) -> Option<Explained> {
        self.inner.warning()
    }
}
