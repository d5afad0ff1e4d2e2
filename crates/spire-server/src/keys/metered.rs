//! A key manager whose calls are counted as `server_key_manager.*`, under upstream's names.

use std::sync::Arc;

use ah_spire_telemetry::{CallCounter, Metrics};
use tonic::Code;

use super::{KeyError, KeyManager, KeyType, SigningKey};

/// Counts around `keys`.
pub struct MeteredKeys<K> {
    keys: K,
    generate: CallCounter,
    find: CallCounter,
    list: CallCounter,
    sign: CallCounter,
}

impl<K> MeteredKeys<K> {
    /// Counts in `metrics`.
    pub fn new(keys: K, metrics: &Metrics) -> Self {
        let calls = |operation| metrics.calls(&["server_key_manager", operation], &[]);
        Self {
            keys,
            generate: calls("generate_key"),
            find: calls("get_public_key"),
            list: calls("get_public_keys"),
            sign: calls("sign_data"),
        }
    }

    fn metered(&self, key: Arc<dyn SigningKey>) -> Arc<dyn SigningKey> {
        Arc::new(MeteredKey {
            key,
            sign: self.sign.clone(),
        })
    }
}

impl<K: KeyManager> KeyManager for MeteredKeys<K> {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        let call = self.generate.start();
        let made = self.keys.generate_key(id, kind).await;
        call.done(code(&made));
        Ok(self.metered(made?))
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        let call = self.find.start();
        let found = self.keys.key(id).await;
        call.done(match &found {
            Ok(None) => Code::NotFound,
            found => code(found),
        });
        Ok(found?.map(|key| self.metered(key)))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        let call = self.list.start();
        let all = self.keys.keys().await;
        call.done(code(&all));
        Ok(all?.into_iter().map(|key| self.metered(key)).collect())
    }
}

struct MeteredKey {
    key: Arc<dyn SigningKey>,
    sign: CallCounter,
}

impl SigningKey for MeteredKey {
    fn id(&self) -> &str {
        self.key.id()
    }

    fn key_type(&self) -> KeyType {
        self.key.key_type()
    }

    fn spki(&self) -> &[u8] {
        self.key.spki()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let call = self.sign.start();
        let signed = self.key.sign(message);
        call.done(code(&signed));
        signed
    }
}

fn code<T>(outcome: &Result<T, KeyError>) -> Code {
    match outcome {
        Ok(_) => Code::Ok,
        Err(KeyError::Failed(_) | KeyError::Storage(_)) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_plugin::telemetry::{Prometheus, TelemetryConfig};
    use ah_spire_telemetry::Program;

    use super::*;
    use crate::keys::MemoryKeys;

    fn metrics() -> Metrics {
        let config = TelemetryConfig {
            prometheus: Some(Prometheus {
                host: "localhost".into(),
                port: 0,
                tls: None,
            }),
            ..TelemetryConfig::default()
        };
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        Metrics::new(&config, Program::Server, &domain).unwrap().0
    }

    /// Fails at everything.
    struct Broken;

    impl KeyManager for Broken {
        async fn generate_key(&self, _: &str, _: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
            Err(KeyError::Failed("broken".into()))
        }

        async fn key(&self, _: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
            Err(KeyError::Failed("broken".into()))
        }

        async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
            Err(KeyError::Storage("broken".into()))
        }
    }

    // Upstream: telemetry/server/keymanager
    #[tokio::test]
    async fn each_call_is_counted_by_its_outcome() {
        let metrics = metrics();
        let keys = MeteredKeys::new(MemoryKeys::default(), &metrics);
        let made = keys.generate_key("a", KeyType::EcP256).await.unwrap();
        made.sign(b"m").unwrap();
        let found = keys.key("a").await.unwrap().unwrap();
        assert_eq!((found.id(), found.spki()), ("a", made.spki()));
        assert!(keys.key("b").await.unwrap().is_none());
        for key in keys.keys().await.unwrap() {
            key.sign(b"m").unwrap();
        }
        let broken = MeteredKeys::new(Broken, &metrics);
        broken.generate_key("a", KeyType::EcP256).await.unwrap_err();

        let text = metrics.text();
        for (call, status, times) in [
            ("generate_key", "OK", 1),
            ("generate_key", "Internal", 1),
            ("get_public_key", "OK", 1),
            ("get_public_key", "NotFound", 1),
            ("get_public_keys", "OK", 1),
            ("sign_data", "OK", 2),
        ] {
            let line = format!("server_key_manager_{call}{{status=\"{status}\"}} {times}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
}
