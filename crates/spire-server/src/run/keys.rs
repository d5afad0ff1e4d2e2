//! The key manager that the configuration names.

use std::sync::Arc;

use crate::keys::{DiskKeys, ExternalKeys, KeyError, KeyManager, KeyType, MemoryKeys, SigningKey};

/// Whichever key manager is configured.
pub(super) enum Keys {
    Disk(DiskKeys),
    Memory(MemoryKeys),
    External(ExternalKeys),
}

impl KeyManager for Keys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        match self {
            Self::Disk(keys) => keys.generate_key(id, kind).await,
            Self::Memory(keys) => keys.generate_key(id, kind).await,
            Self::External(keys) => keys.generate_key(id, kind).await,
        }
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.key(id).await,
            Self::Memory(keys) => keys.key(id).await,
            Self::External(keys) => keys.key(id).await,
        }
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.keys().await,
            Self::Memory(keys) => keys.keys().await,
            Self::External(keys) => keys.keys().await,
        }
    }
}
