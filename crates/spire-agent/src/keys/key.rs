use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType, SigningKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use spiffe::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::KeyError;

/// What kind of key to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// `ec-p256`, the default.
    #[default]
    EcP256,
    /// `ec-p384`
    EcP384,
    /// `rsa-2048`
    Rsa2048,
}

/// A text that is no kind of key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key type {0:?} is unknown; must be one of [rsa-2048, ec-p256, ec-p384]")]
pub struct UnknownKeyKind(String);

impl FromStr for KeyKind {
    type Err = UnknownKeyKind;

    fn from_str(text: &str) -> Result<Self, UnknownKeyKind> {
        match text.to_ascii_lowercase().as_str() {
            "rsa-2048" => Ok(Self::Rsa2048),
            "ec-p256" => Ok(Self::EcP256),
            "ec-p384" => Ok(Self::EcP384),
            _ => Err(UnknownKeyKind(text.to_owned())),
        }
    }
}

/// A private key. It is wiped when dropped and cannot be printed.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: KeyPair,
    spki: Vec<u8>,
}

impl PrivateKey {
    /// A new one.
    pub fn generate(kind: KeyKind) -> Result<Arc<Self>, KeyError> {
        let made = match kind {
            KeyKind::EcP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyKind::EcP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyKind::Rsa2048 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            }
        };
        let pair = made.map_err(|error| failed("cannot make a private key", &error))?;
        Ok(Arc::new(Self::of_pair(pair)))
    }

    /// One that was kept as PKCS#8 DER (RFC 5958).
    pub fn from_pkcs8(der: Zeroizing<Vec<u8>>) -> Result<Arc<Self>, KeyError> {
        let borrowed = PrivatePkcs8KeyDer::from(der.as_slice());
        let pair = KeyPair::try_from(&borrowed)
            .map_err(|error| failed("cannot read a private key", &error))?;
        let spki = pair.subject_public_key_info();
        Ok(Arc::new(Self {
            pkcs8: der,
            pair,
            spki,
        }))
    }

    fn of_pair(pair: KeyPair) -> Self {
        Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
            spki: pair.subject_public_key_info(),
            pair,
        }
    }

    /// PKCS#8 DER, to be kept or served and nothing else.
    pub fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    /// SubjectPublicKeyInfo of the public half, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// A certificate request (DER) for this key, with `id` as URI SAN where there is one. Servers ignore the subject.
    pub fn request(&self, id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
        request(&self.pair, id).map_err(|error| failed("cannot make a certificate request", &error))
    }
}

/// A certificate request (DER) that `key` signs, with `id` as URI SAN where there is one.
pub(super) fn request(
    key: &impl SigningKey,
    id: Option<&SpiffeId>,
) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "US");
    name.push(DnType::OrganizationName, "SPIRE");
    params.distinguished_name = name;
    if let Some(id) = id {
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    }
    Ok(params.serialize_request(key)?.der().to_vec())
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// SubjectPublicKeyInfo of a certificate, DER.
pub(crate) fn spki_of_certificate(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

fn failed(text: &str, error: &rcgen::Error) -> KeyError {
    KeyError::new(
        text,
        error,
        "keys are ec-p256, ec-p384 or rsa-2048; take the agent's keys.json away to let it make new ones",
    )
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;

    use super::*;

    #[test]
    fn every_kind_is_kept_and_signs_requests_for_its_own_public_key() {
        let id = SpiffeId::new("spiffe://example.org/w").unwrap();
        for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let again = PrivateKey::from_pkcs8(key.pkcs8().clone()).unwrap();
            assert_eq!(again.spki(), key.spki());
            let request = again.request(Some(&id)).unwrap();
            let (_, request) = X509CertificationRequest::from_der(&request).unwrap();
            request.verify_signature().unwrap();
            let info = &request.certification_request_info;
            assert_eq!(info.subject_pki.raw, key.spki());
        }
    }
}
