//! The proof that a name is ours: a certificate shown to the ACME server alone (RFC 8737 §3).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The protocol by which the ACME server asks for the proof.
pub const PROTOCOL: &[u8] = b"acme-tls/1";

/// The proofs of orders under way, by name.
#[derive(Default)]
pub(super) struct Challenges(RwLock<BTreeMap<String, Arc<CertifiedKey>>>);

impl Challenges {
    pub(super) fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let proofs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        proofs.get(name).cloned()
    }

    pub(super) fn put(&self, name: &str, digest: &[u8]) -> Result<(), String> {
        let proof = Arc::new(proof(name, digest)?);
        let mut proofs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        proofs.insert(name.to_owned(), proof);
        Ok(())
    }

    pub(super) fn forget(&self, name: &str) {
        let mut proofs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        proofs.remove(name);
    }
}

/// `digest` is the SHA-256 of the key authorization.
fn proof(name: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    let told = |error: rcgen::Error| format!("no proof can be made: {error}");
    let mut params = CertificateParams::new([name.to_owned()]).map_err(told)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(told)?;
    let certificate = params.self_signed(&key).map_err(told)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| format!("no proof can be made: {error}"))?;
    // Not looked at by rustls, which does not know the extension that makes it the proof.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}
