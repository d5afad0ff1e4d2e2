use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{KeyError, KeyKind, KeyManager, PrivateKey};

/// Keys that end with the process.
#[derive(Debug, Default)]
pub struct MemoryKeys(Mutex<BTreeMap<String, Arc<PrivateKey>>>);

impl KeyManager for MemoryKeys {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn persists(&self) -> bool {
        false
    }

    fn generate(&self, id: &str, kind: KeyKind) -> Result<Arc<PrivateKey>, KeyError> {
        let key = PrivateKey::generate(kind)?;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(id.to_owned(), key.clone());
        Ok(key)
    }

    fn keys(&self) -> Vec<(String, Arc<PrivateKey>)> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter()
            .map(|(id, key)| (id.clone(), key.clone()))
            .collect()
    }
}
