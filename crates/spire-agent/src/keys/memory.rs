use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{KeyError, KeyKind, KeyManager, NodeKey, PrivateKey};

/// Keys that end with the process.
#[derive(Debug, Default)]
pub struct MemoryKeys(Mutex<BTreeMap<String, Arc<PrivateKey>>>);

impl KeyManager for MemoryKeys {
    fn name(&self) -> &str {
        "memory"
    }

    fn persists(&self) -> bool {
        false
    }

    fn generate(&self, id: &str, kind: KeyKind) -> Result<NodeKey, KeyError> {
        let key = PrivateKey::generate(kind)?;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(id.to_owned(), key.clone());
        Ok(NodeKey::Here(key))
    }

    fn keys(&self) -> Vec<(String, NodeKey)> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter()
            .map(|(id, key)| (id.clone(), NodeKey::Here(key.clone())))
            .collect()
    }
}
