//! Public keys that signatures are judged by.

use ah_spire_wire::{KeyKind, key_kind};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use time::OffsetDateTime;

/// A public key; its signatures are over SHA-256, but those of Ed25519.
#[derive(Clone)]
pub(super) struct PublicKey {
    spki: Vec<u8>,
    algorithm: &'static dyn VerificationAlgorithm,
}

impl PublicKey {
    /// The key of a SubjectPublicKeyInfo.
    pub(super) fn new(spki: &[u8]) -> Result<Self, String> {
        let kind = key_kind(spki).map_err(|error| error.to_string())?;
        let algorithm: &'static dyn VerificationAlgorithm = match kind {
            KeyKind::Rsa => &signature::RSA_PKCS1_2048_8192_SHA256,
            KeyKind::EcP256 => &signature::ECDSA_P256_SHA256_ASN1,
            KeyKind::EcP384 => &signature::ECDSA_P384_SHA256_ASN1,
            KeyKind::EcP521 => &signature::ECDSA_P521_SHA256_ASN1,
            KeyKind::Ed25519 => &signature::ED25519,
        };
        Ok(Self {
            spki: spki.to_vec(),
            algorithm,
        })
    }

    /// Whether it made `signature` over `message`.
    pub(super) fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.spki);
        key.verify(message, signature).is_ok()
    }

    /// What a log that has it is called (RFC 6962 §3.2).
    pub(super) fn log_id(&self) -> [u8; 32] {
        sha256(&self.spki)
    }
}

/// The key of a log, and when it was in use.
#[derive(Clone)]
pub(super) struct LogKey {
    pub(super) key: PublicKey,
    pub(super) life: Life,
}

/// From when to when something counts; without an end where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    pub(super) start: Option<OffsetDateTime>,
    pub(super) end: Option<OffsetDateTime>,
}

impl Life {
    pub(super) fn includes(&self, moment: OffsetDateTime) -> bool {
        self.start.is_none_or(|start| start <= moment) && self.end.is_none_or(|end| moment <= end)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
