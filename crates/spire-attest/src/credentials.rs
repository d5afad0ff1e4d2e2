//! What is shown to services, and what theirs is judged by, from files.

use std::path::Path;

use ah_identity_provider::pem;
use http::HeaderValue;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = tokio::fs::read(path).await;
    bytes.map_err(|error| format!("{}: {error}", path.display()))
}

/// Those of `pem`, which errors call `what`.
pub(crate) fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    pem::certificates(pem).map_err(|error| format!("{what}: {error}"))
}

/// A chain and its key, each with what errors call it.
pub(crate) fn identity(
    (what, chain): (&str, &[u8]),
    (what_key, key): (&str, &[u8]),
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = certificates(what, chain)?;
    let key = pem::private_key(key, None).map_err(|error| format!("{what_key}: {error}"))?;
    Ok((chain, key.der().clone_key()))
}

/// `Authorization` with a token (RFC 6750 §2.1).
pub(crate) fn bearer(token: &[u8]) -> Result<HeaderValue, String> {
    let token = std::str::from_utf8(token).map_err(|_| "the token is not text")?;
    authorization("Bearer", token.trim())
}

/// `Authorization`, which is not logged.
pub(crate) fn authorization(scheme: &str, secret: &str) -> Result<HeaderValue, String> {
    let text = Zeroizing::new(format!("{scheme} {secret}"));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "the token has characters that no token has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
