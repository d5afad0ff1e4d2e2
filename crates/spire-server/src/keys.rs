//! Where the private keys of the authorities are: key managers.
//!
//! A [`KeyManager`] makes keys and finds them again; a [`SigningKey`] signs. Keys of [`MemoryKeys`] and [`DiskKeys`]
//! are in this process, those of [`ExternalKeys`] in a plugin's, those of [`RemoteKeys`] in a [`Place`] of their own.

mod aws_kms;
mod azure_key_vault;
mod disk;
mod external;
mod gcp_kms;
mod identifier;
mod local;
mod memory;
mod metered;
mod pkcs11;
mod remote;
mod transit;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

pub use ah_spire_plugin::settings::KeyType;

pub use aws_kms::{AwsKms, KmsSettings};
pub use azure_key_vault::{KeyVault, KeyVaultSettings};
pub use disk::DiskKeys;
pub use external::ExternalKeys;
pub use gcp_kms::{GcpKms, GcpKmsSettings};
pub use identifier::Identifier;
pub use local::LocalKey;
pub use memory::MemoryKeys;
pub use metered::MeteredKeys;
pub use pkcs11::{Pin, Pkcs11, Pkcs11Settings, TokenName};
pub use remote::{Held, Place, RemoteKeys};
pub use transit::{Transit, TransitSettings};

/// Why a key manager did not do it. Never holds a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The cryptography failed.
    #[error("{0}")]
    Failed(String),
    /// Keys could not be read or written.
    #[error("{0}")]
    Storage(String),
}

/// A private key that signs: RSA by PKCS #1 v1.5 with SHA-256, P-256 by ECDSA with SHA-256, P-384 with SHA-384. An
/// ECDSA signature is the DER of RFC 3279 §2.2.3.
pub trait SigningKey: Send + Sync {
    /// Its name in the key manager.
    fn id(&self) -> &str;
    /// What kind of key it is.
    fn key_type(&self) -> KeyType;
    /// SubjectPublicKeyInfo of its public half, DER.
    fn spki(&self) -> &[u8];
    /// Signs `message`. Keys of this process sign at once; a key that is elsewhere blocks its thread
    /// (`tokio::task::block_in_place`).
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
}

impl fmt::Debug for dyn SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id())
            .field("type", &self.key_type())
            .finish_non_exhaustive()
    }
}

/// Makes keys and keeps them.
pub trait KeyManager: Send + Sync + 'static {
    /// Makes a key, in place of the one with this name if there is one. The old one stays when this fails.
    fn generate_key(
        &self,
        id: &str,
        kind: KeyType,
    ) -> impl Future<Output = Result<Arc<dyn SigningKey>, KeyError>> + Send;
    /// By name.
    fn key(
        &self,
        id: &str,
    ) -> impl Future<Output = Result<Option<Arc<dyn SigningKey>>, KeyError>> + Send;
    /// All, by name.
    fn keys(&self) -> impl Future<Output = Result<Vec<Arc<dyn SigningKey>>, KeyError>> + Send;
}

#[cfg(test)]
mod tests;
