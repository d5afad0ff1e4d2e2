use ah_spire_telemetry::{CallCounter, Metrics};
use tonic::Code;

use super::{KeyError, KeyKind, KeyManager, NodeKey};

/// A key manager whose calls are counted.
pub struct MeteredKeys<K> {
    keys: K,
    generate: CallCounter,
    list: CallCounter,
    /// Of those that keep what they make. Upstream documents it and never counts it.
    store: CallCounter,
}

impl<K> MeteredKeys<K> {
    /// Counts the calls to `keys`.
    pub fn new(keys: K, metrics: &Metrics) -> Self {
        let calls = |name| metrics.calls(&["agent_key_manager", name], &[]);
        Self {
            keys,
            generate: calls("generate_key"),
            list: calls("get_keys"),
            store: calls("store_private_key"),
        }
    }
}

impl<K: KeyManager> KeyManager for MeteredKeys<K> {
    fn name(&self) -> &str {
        self.keys.name()
    }

    fn persists(&self) -> bool {
        self.keys.persists()
    }

    fn reveals(&self) -> bool {
        self.keys.reveals()
    }

    fn generate(&self, id: &str, kind: KeyKind) -> Result<NodeKey, KeyError> {
        let call = self.generate.start();
        let stored = self.keys.persists().then(|| self.store.start());
        let made = self.keys.generate(id, kind);
        let code = made.as_ref().map_or(Code::Unknown, |_| Code::Ok);
        call.done(code);
        if let Some(stored) = stored {
            stored.done(code);
        }
        made
    }

    fn keys(&self) -> Vec<(String, NodeKey)> {
        let call = self.list.start();
        let keys = self.keys.keys();
        call.done(Code::Ok);
        keys
    }
}
