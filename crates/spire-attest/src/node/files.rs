//! Files that settings name.

use std::fmt::Display;
use std::path::Path;

use ah_identity_provider::pem;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::node::x509pop::chain::Root;
use crate::{AttestError, Builtin};

/// A setting of `builtin` that cannot be used.
pub(in crate::node) fn wrong(
    builtin: Builtin,
    text: impl Display,
    hint: impl Into<String>,
) -> AttestError {
    AttestError::invalid(text, hint).of_builtin(builtin)
}

/// The bytes of the file `path`, which is `what`.
pub(in crate::node) async fn file(
    builtin: Builtin,
    what: &str,
    path: &Path,
) -> Result<Zeroizing<Vec<u8>>, AttestError> {
    let bytes = tokio::fs::read(path).await;
    let bytes = bytes.map_err(|error| unreadable(builtin, what, path, error))?;
    Ok(Zeroizing::new(bytes))
}

/// The certificates in the PEM file `path`, which is `what`.
pub(in crate::node) async fn certificates(
    builtin: Builtin,
    what: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, AttestError> {
    let bytes = file(builtin, what, path).await?;
    pem::certificates(&bytes).map_err(|error| unreadable(builtin, what, path, error))
}

/// The same, to be trusted.
pub(in crate::node) async fn roots(
    builtin: Builtin,
    what: &str,
    path: &Path,
) -> Result<Vec<Root>, AttestError> {
    let certificates = certificates(builtin, what, path).await?;
    let roots = certificates.into_iter().map(Root::new);
    let roots: Result<_, _> = roots.collect();
    roots.map_err(|error| unreadable(builtin, what, path, error))
}

/// That the file `path` is not what it should be.
pub(in crate::node) fn unreadable(
    builtin: Builtin,
    what: &str,
    path: &Path,
    error: impl Display,
) -> AttestError {
    let path = path.display();
    wrong(
        builtin,
        format!("unable to load {what} \"{path}\": {error}"),
        format!("check the file: ls -l {path}"),
    )
}
