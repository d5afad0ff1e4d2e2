//! Further roots to trust besides those of a provider (`--ca` with any provider, AP-3, EN-3).

use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::files::read_roots;
use crate::{Identity, Provider, ProviderError, ProviderKind};

/// How often the file is looked at. FI-2 asks for a change to be seen within two seconds.
const POLL: Duration = Duration::from_secs(1);

/// A provider whose identities also trust the certificates of a PEM file, for any name.
pub struct ExtraRoots<P> {
    inner: P,
    file: PathBuf,
    /// What the provider gave last, and the roots that went with it.
    last: Option<(Identity, Vec<CertificateDer<'static>>)>,
}

impl<P> ExtraRoots<P> {
    /// `inner`, with the roots of `file` added to each of its identities.
    pub fn new(inner: P, file: PathBuf) -> Self {
        Self {
            inner,
            file,
            last: None,
        }
    }
}

impl<P: Provider> Provider for ExtraRoots<P> {
    fn kind(&self) -> ProviderKind {
        self.inner.kind()
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        loop {
            let given = tokio::select! {
                given = self.inner.next() => Some(given?),
                () = tokio::time::sleep(POLL), if self.last.is_some() => None,
            };
            let roots = read_roots(&self.file)?;
            let identity = match (given, &self.last) {
                (Some(identity), _) => identity,
                (None, Some((identity, before))) if *before != roots => identity.clone(),
                (None, _) => continue,
            };
            self.last = Some((identity.clone(), roots.clone()));
            return Ok(identity.trusting_also(roots));
        }
    }

    fn refresh(&mut self) {
        self.inner.refresh();
    }

    fn next_renewal(&self) -> Option<std::time::SystemTime> {
        self.inner.next_renewal()
    }
}
