//! The key manager that the configuration names.

use std::sync::Arc;

use ah_identity_provider::Clock;

use crate::keys::{
    AwsKms, DiskKeys, ExternalKeys, GcpKms, KeyError, KeyManager, KeyType, KeyVault, MemoryKeys,
    Pkcs11, RemoteKeys, SigningKey, Transit,
};
use crate::plugins::KeysWanted;
use crate::plugins::external::Running;

/// Whichever key manager is configured.
pub(super) enum Keys {
    Disk(DiskKeys),
    Memory(MemoryKeys),
    External(ExternalKeys),
    Remote(RemoteKeys),
}

impl Keys {
    /// Opens what `wanted` names.
    pub(super) async fn open(
        wanted: KeysWanted,
        running: &Running,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let told = |error: KeyError| error.to_string();
        match wanted {
            KeysWanted::Disk(path) => DiskKeys::open(&path).map(Self::Disk).map_err(told),
            KeysWanted::Memory => Ok(Self::Memory(MemoryKeys::default())),
            KeysWanted::External(name) => {
                Ok(Self::External(ExternalKeys::new(running.keys(&name)?)))
            }
            KeysWanted::Kms(settings) => {
                let opened = async { RemoteKeys::open(AwsKms::new(*settings, clock)?).await };
                remote("aws_kms", opened.await)
            }
            KeysWanted::Transit(settings) => {
                let opened = async { RemoteKeys::open(Transit::new(*settings, clock)?).await };
                remote("hashicorp_vault", opened.await)
            }
            KeysWanted::GcpKms(settings) => {
                let opened = async { RemoteKeys::open(GcpKms::new(*settings)?).await };
                remote("gcp_kms", opened.await)
            }
            KeysWanted::KeyVault(settings) => {
                let opened = async { RemoteKeys::open(KeyVault::new(*settings)?).await };
                remote("azure_key_vault", opened.await)
            }
            KeysWanted::Pkcs11(settings) => {
                let loaded = tokio::task::spawn_blocking(|| Pkcs11::new(settings)).await;
                let loaded = loaded.map_err(|error| KeyError::Failed(error.to_string()));
                let opened = async { RemoteKeys::open(loaded.and_then(|it| it)?).await };
                remote("pkcs11", opened.await)
            }
        }
    }
}

fn remote(name: &str, opened: Result<RemoteKeys, KeyError>) -> Result<Keys, String> {
    let named = |error| format!("KeyManager \"{name}\": {error}");
    opened.map(Keys::Remote).map_err(named)
}

impl KeyManager for Keys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        match self {
            Self::Disk(keys) => keys.generate_key(id, kind).await,
            Self::Memory(keys) => keys.generate_key(id, kind).await,
            Self::External(keys) => keys.generate_key(id, kind).await,
            Self::Remote(keys) => keys.generate_key(id, kind).await,
        }
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.key(id).await,
            Self::Memory(keys) => keys.key(id).await,
            Self::External(keys) => keys.key(id).await,
            Self::Remote(keys) => keys.key(id).await,
        }
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.keys().await,
            Self::Memory(keys) => keys.keys().await,
            Self::External(keys) => keys.keys().await,
            Self::Remote(keys) => keys.keys().await,
        }
    }
}
