//! Key manager `memory`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{KeyError, KeyManager, KeyType, LocalKey, SigningKey};

/// Keys that end with the process: its next start makes new authorities.
#[derive(Default)]
pub struct MemoryKeys {
    keys: RwLock<BTreeMap<String, Arc<LocalKey>>>,
}

impl KeyManager for MemoryKeys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        let name = id.to_owned();
        let made = tokio::task::spawn_blocking(move || LocalKey::generate(&name, kind));
        let key = made
            .await
            .map_err(|error| KeyError::Failed(error.to_string()))??;
        let key = Arc::new(key);
        self.keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned(), key.clone());
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(|key| key.clone() as Arc<dyn SigningKey>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys
            .values()
            .map(|key| key.clone() as Arc<dyn SigningKey>)
            .collect())
    }
}
