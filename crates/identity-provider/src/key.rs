//! Which public key a private key has, and whether it is the one in a certificate (ER-6).

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::cert::hex;
use crate::{CertificateError, CertificateFacts, KeyKind, PrivateKey};

/// A key that cannot serve here. The key kinds of FI-1 are RSA 2048 to 4096, ECDSA P-256 and P-384, and Ed25519.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Of a kind that is not served, by its name.
    #[error(
        "{0} keys are not supported; use RSA with 2048 to 4096 bits, ECDSA P-256 or P-384, or Ed25519"
    )]
    Unsupported(String),
    /// Not a private key of a kind that is served, or damaged.
    #[error(
        "the private key cannot be read: it is damaged, or none of RSA 2048 to 4096, ECDSA P-256, ECDSA P-384 and Ed25519"
    )]
    Unreadable,
    /// The certificate to compare with cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The public half of a key: SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) and the bits inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicSide {
    /// DER of the whole SubjectPublicKeyInfo.
    spki: Vec<u8>,
    /// Content of its BIT STRING.
    bits: Vec<u8>,
}

impl PublicSide {
    /// The public half of `key`.
    pub fn of_key(key: &PrivateKey) -> Result<Self, KeyError> {
        let der = key.der();
        if let Some(rsa) = rsa(&der) {
            let bits = rsa.public_modulus_len().saturating_mul(8);
            supported(&KeyKind::Rsa(bits))?;
            return Self::from_public(rsa.public_key());
        }
        for curve in [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P384_SHA384_ASN1_SIGNING,
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der.secret_der()) {
                return Self::from_public(pair.public_key());
            }
        }
        if let PrivateKeyDer::Pkcs8(pkcs8) = &der
            && let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.secret_pkcs8_der())
        {
            return Self::from_public(pair.public_key());
        }
        Err(KeyError::Unreadable)
    }

    /// The public key in `certificate`.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, KeyError> {
        let facts = CertificateFacts::from_der(certificate)?;
        supported(&facts.key)?;
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|e| CertificateError::new(e.to_string()))?;
        let spki = parsed.public_key();
        Ok(Self {
            spki: spki.raw.to_vec(),
            bits: spki.subject_public_key.data.to_vec(),
        })
    }

    /// SHA-256 of the SubjectPublicKeyInfo in lower-case hex: what
    /// `openssl pkey -pubout -outform DER | openssl sha256` prints.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.spki))
    }

    /// Whether both are the same key. The bits decide, so that a certificate which spells the algorithm's
    /// parameters in another allowed way still matches.
    pub fn matches(&self, other: &Self) -> bool {
        self.bits == other.bits
    }

    fn from_public<K>(public: &K) -> Result<Self, KeyError>
    where
        K: AsDer<PublicKeyX509Der<'static>> + AsRef<[u8]>,
    {
        let spki: PublicKeyX509Der<'static> = public.as_der().map_err(|_| KeyError::Unreadable)?;
        Ok(Self {
            spki: spki.as_ref().to_vec(),
            bits: public.as_ref().to_vec(),
        })
    }
}

/// Whether `key` is the private key of `certificate`, by comparing public keys.
///
/// # Errors
/// When either cannot be read or is of a kind outside FI-1.
pub fn keys_match(key: &PrivateKey, certificate: &CertificateDer<'_>) -> Result<bool, KeyError> {
    Ok(PublicSide::of_key(key)?.matches(&PublicSide::of_certificate(certificate)?))
}

fn rsa(der: &PrivateKeyDer<'_>) -> Option<RsaKeyPair> {
    match der {
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
        _ => None,
    }
}

/// FI-1, by name.
pub(crate) fn supported(kind: &KeyKind) -> Result<(), KeyError> {
    match kind {
        KeyKind::Rsa(2048..=4096) | KeyKind::Ecdsa(256 | 384) | KeyKind::Ed25519 => Ok(()),
        other => Err(KeyError::Unsupported(other.to_string())),
    }
}
