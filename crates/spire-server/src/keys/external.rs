//! Key managers that are plugins in processes of their own.

use std::sync::Arc;

use ah_spire_plugin_host::keys::{Key, Keys, Padding};
use ah_spire_wire::KeyKind;
use tonic::Status;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{KeyError, KeyManager, KeyType, SigningKey};

/// A plugin's keys.
pub struct ExternalKeys(Keys);

impl ExternalKeys {
    /// Those of `keys`.
    pub fn new(keys: Keys) -> Self {
        Self(keys)
    }
}

struct ExternalKey {
    key: Key,
    kind: KeyType,
}

fn failed(status: &Status) -> KeyError {
    KeyError::Failed(status.message().to_owned())
}

impl ExternalKey {
    fn signing(key: Key) -> Result<Arc<dyn SigningKey>, KeyError> {
        let kind = match key.kind() {
            KeyKind::EcP256 => KeyType::EcP256,
            KeyKind::EcP384 => KeyType::EcP384,
            KeyKind::Rsa if modulus_bits(key.spki()) <= 2048 => KeyType::Rsa2048,
            // Larger ones sign alike.
            KeyKind::Rsa => KeyType::Rsa4096,
            KeyKind::EcP521 | KeyKind::Ed25519 => {
                return Err(KeyError::Failed(format!(
                    "key \"{}\" is none of RSA, EC P-256 and EC P-384",
                    key.id()
                )));
            }
        };
        Ok(Arc::new(Self { key, kind }))
    }
}

fn modulus_bits(spki: &[u8]) -> usize {
    match SubjectPublicKeyInfo::from_der(spki).map(|(_, info)| {
        info.parsed().map(|key| match key {
            PublicKey::RSA(key) => key.key_size(),
            _ => 0,
        })
    }) {
        Ok(Ok(bits)) => bits,
        _ => 0,
    }
}

impl SigningKey for ExternalKey {
    fn id(&self) -> &str {
        self.key.id()
    }

    fn key_type(&self) -> KeyType {
        self.kind
    }

    fn spki(&self) -> &[u8] {
        self.key.spki()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signed = self.key.sign_blocking(message, Padding::Pkcs1);
        signed.map_err(|status| failed(&status))
    }
}

impl KeyManager for ExternalKeys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        let key = self.0.generate(id, kind).await;
        ExternalKey::signing(key.map_err(|status| failed(&status))?)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        let key = self.0.key(id).await.map_err(|status| failed(&status))?;
        key.map(ExternalKey::signing).transpose()
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        let mut keys = self.0.keys().await.map_err(|status| failed(&status))?;
        keys.sort_by(|one, other| one.id().cmp(other.id()));
        keys.into_iter().map(ExternalKey::signing).collect()
    }
}
