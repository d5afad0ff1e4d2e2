//! The key that a WIT-SVID is bound to, and the algorithm that its holder signs with.

use ah_spire_wire::{BadKey, Jwk, KeyKind, key_kind};

/// A public key and an algorithm that fits it, as they go into `cnf` (RFC 7800 §3.2).
#[derive(Clone, Debug)]
pub struct HolderKey(Jwk);

/// A holder's key that no WIT-SVID is bound to. The texts are upstream's, where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHolderKey {
    /// No public key.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The key is of another kind than the algorithm, or of none that a WIT-SVID has.
    #[error("{0}")]
    Algorithm(String),
}

impl HolderKey {
    /// `spki` is a SubjectPublicKeyInfo in DER, `algorithm` a name of RFC 7518 §3.1.
    pub fn new(spki: &[u8], algorithm: &str) -> Result<Self, BadHolderKey> {
        let (name, fitting): (_, &[&str]) = match key_kind(spki)? {
            KeyKind::Rsa => (
                "RSA",
                &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
            ),
            KeyKind::EcP256 => ("ec-p256", &["ES256"]),
            KeyKind::EcP384 => ("ec-p384", &["ES384"]),
            KeyKind::EcP521 => ("ec-p521", &["ES512"]),
            KeyKind::Ed25519 => {
                let text = "unsupported key type 'Ed25519'";
                return Err(BadHolderKey::Algorithm(text.into()));
            }
        };
        if !fitting.contains(&algorithm) {
            return Err(BadHolderKey::Algorithm(format!(
                "unsupported signing algorithm for {name} key: {algorithm}"
            )));
        }
        Ok(Self(Jwk::new(spki, Some(algorithm))?))
    }

    pub(super) fn jwk(&self) -> &Jwk {
        &self.0
    }
}
