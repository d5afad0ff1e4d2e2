//! `hashicorp_vault` against OpenBao (inventory section 6).

use std::time::Duration;

use ah_identity_provider::SystemClock;
use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, Share, VaultConfig, VaultLogin,
    VaultTls,
};
use ah_testkit::openbao::OpenBao;
use ah_testkit::process::eventually;
use serde_json::json;

use super::*;

/// A transit engine of the test's own, and a token that may use nothing else.
struct Engine<'a> {
    bao: &'a OpenBao,
    mount: String,
    token: String,
}

impl<'a> Engine<'a> {
    fn new(bao: &'a OpenBao, mount: &str) -> Self {
        bao.write(&format!("sys/mounts/{mount}"), json!({"type": "transit"}));
        // The policy of upstream's page.
        let policy = format!(
            "path \"{mount}/keys/*\" {{ capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"] }}
             path \"{mount}/keys\" {{ capabilities = [\"list\"] }}
             path \"{mount}/sign/*\" {{ capabilities = [\"update\"] }}"
        );
        let mut engine = Self {
            bao,
            mount: mount.to_owned(),
            token: String::new(),
        };
        engine.token = engine.token(&policy);
        engine
    }

    fn token(&self, policy: &str) -> String {
        let name = format!("{}-{}", self.mount, uuid::Uuid::new_v4());
        let path = format!("sys/policies/acl/{name}");
        self.bao.write(&path, json!({"policy": policy}));
        let made = self
            .bao
            .write("auth/token/create", json!({"policies": [name]}));
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    fn settings(&self, server: Identifier) -> TransitSettings {
        settings(self.bao.url(), &self.mount, &self.token, server)
    }

    async fn open(&self, server: Identifier) -> Result<RemoteKeys, KeyError> {
        RemoteKeys::open(Transit::new(self.settings(server), Arc::new(SystemClock))?).await
    }

    async fn opened(&self, server: &str) -> RemoteKeys {
        self.open(Identifier::Value(server.into())).await.unwrap()
    }

    /// The names of all keys.
    fn names(&self) -> Vec<String> {
        let path = format!("{}/keys?list=true", self.mount);
        let listed = self.bao.call("GET", &path, None).body;
        let names = listed["data"]["keys"].as_array().cloned();
        let names = names.unwrap_or_default().into_iter();
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    fn waits_for(&self, count: usize) {
        eventually("replaced keys are deleted", || {
            (self.names().len() == count).then_some(())
        });
    }
}

fn settings(url: &str, mount: &str, token: &str, server: Identifier) -> TransitSettings {
    let method = LoginMethod::Token(Material::Given(Secret::new(token.to_owned())));
    TransitSettings {
        access: VaultConfig {
            addresses: vec![url.parse().unwrap()],
            namespace: None,
            tls: VaultTls::default(),
            pki: format!("{mount}/sign/intermediate").parse().unwrap(),
            login: VaultLogin {
                method,
                mount: "token".into(),
            },
            request: CertificateRequest::default(),
            renewal_threshold: Share::TWO_THIRDS,
            retry: Retry {
                max: 1,
                delay: Duration::from_millis(100),
            },
            token_cache: None,
        },
        mount: mount.to_owned(),
        server,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_a_transit_engine_come_back_and_none_is_left_behind() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let engine = Engine::new(&bao, "transit-life");
    let keys = engine.opened("one").await;
    conforms(&keys).await;
    // Of five keys three were replaced.
    engine.waits_for(2);
    let before = public(&keys.keys().await.unwrap());
    for name in engine.names() {
        let told = bao.read(&format!("transit-life/keys/{name}"));
        assert_eq!(told["data"]["exportable"], false);
        assert_eq!(told["data"]["allow_plaintext_backup"], false);
        // Upstream's names.
        let rest = name.strip_prefix("one-").unwrap();
        assert_eq!(rest.len(), 36 + 2, "{name}");
    }
    drop(keys);
    let again = engine.opened("one").await;
    let found = again.keys().await.unwrap();
    assert_eq!(public(&found), before);
    found[0].sign(b"message").unwrap();
}

// Killed between a key and the deletion of its predecessor; keys of another server, whose name begins alike.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_left_is_deleted_and_what_others_have_is_not() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let engine = Engine::new(&bao, "transit-stale");
    let made = |name: &str| {
        let path = format!("transit-stale/keys/{name}");
        bao.write(&path, json!({"type": "ecdsa-p256"}));
        name.to_owned()
    };
    let old = made("one-7c4a3a5e-3d3c-4d1e-9a53-0c0a3b0a9f01-x509-CA-A");
    let new = made("one-1b0e7c1a-8f53-4b8e-8d8f-5f0b7f2c1d02-x509-CA-A");
    let others = [
        made("one-more-7c4a3a5e-3d3c-4d1e-9a53-0c0a3b0a9f03-x509-CA-A"),
        made("one-x509-CA-A"),
        made("somebody"),
    ];
    let keys = engine.opened("one").await;
    let found = keys.keys().await.unwrap();
    let ids: Vec<_> = found.iter().map(|key| key.id()).collect();
    assert_eq!(ids, ["x509-CA-A"]);
    engine.waits_for(4);
    let names = engine.names();
    assert!(names.contains(&new) && !names.contains(&old), "{names:?}");
    assert!(others.iter().all(|name| names.contains(name)), "{names:?}");
    // Rotated in the engine by somebody: the authority is of the first version.
    bao.write(&format!("transit-stale/keys/{new}/rotate"), json!({}));
    found[0].sign(b"message").unwrap();
    let again = engine.opened("one").await.keys().await.unwrap();
    assert_eq!(public(&again), public(&found));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_finds_its_keys_by_the_file_that_it_wrote() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let engine = Engine::new(&bao, "transit-file");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id");
    let file = Identifier::File(path.clone());
    let keys = engine.open(file.clone()).await.unwrap();
    let made = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let again = engine.open(file.clone()).await.unwrap();
    let found = again.key("k").await.unwrap().unwrap();
    assert_eq!(found.spki(), made.spki());
    std::fs::write(&path, "mine").unwrap();
    let told = engine.open(file).await.err().unwrap().to_string();
    assert!(told.contains("it holds no UUID"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_and_passes() {
    let Some(bao) = OpenBao::dev() else {
        return;
    };
    let engine = Engine::new(&bao, "transit");
    let keys = engine.opened("one").await;
    let key = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    bao.seal();
    let told = key.sign(b"message").unwrap_err().to_string();
    assert!(
        told.starts_with("transit engine sign call failed: vault is sealed"),
        "{told}"
    );
    let made = keys.generate_key("k", KeyType::EcP256).await;
    let told = made.err().unwrap().to_string();
    assert!(told.contains("vault is sealed"), "{told}");
    assert!(engine.open(Identifier::Value("one".into())).await.is_err());
    // The old key is still the one.
    let kept = keys.key("k").await.unwrap().unwrap();
    assert_eq!(kept.spki(), key.spki());
    bao.unseal();
    key.sign(b"message").unwrap();
    keys.generate_key("k", KeyType::EcP256).await.unwrap();

    // Several at a time, and a token that is revoked while they are at it.
    bao.write("auth/token/revoke", json!({"token": engine.token}));
    let told = key.sign(b"message").unwrap_err().to_string();
    assert!(!told.contains(&engine.token), "{told}");
    assert!(told.contains("authentication failed"), "{told}");

    let gone = settings(
        "http://127.0.0.1:1",
        "transit",
        "t",
        Identifier::Value("one".into()),
    );
    let gone = Transit::new(gone, Arc::new(SystemClock)).unwrap();
    let told = RemoteKeys::open(gone).await.err().unwrap().to_string();
    assert!(told.contains("failed to connect to vault"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_token_may_not_do_is_named() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let mut engine = Engine::new(&bao, "transit-policy");
    engine.token = engine.token("path \"transit-policy/keys*\" { capabilities = [\"create\", \"read\", \"list\", \"update\"] }");
    let keys = engine.opened("one").await;
    let key = keys.generate_key("k", KeyType::EcP384).await.unwrap();
    let told = key.sign(b"message").unwrap_err().to_string();
    assert!(
        told.contains("permission denied for path transit-policy/sign/one-"),
        "{told}"
    );
    // Not to be deleted either, and that stops nobody.
    let key = keys.generate_key("k", KeyType::EcP384).await.unwrap();
    let kept = keys.key("k").await.unwrap().unwrap();
    assert_eq!(kept.spki(), key.spki());
    engine.token = engine.token("path \"other/*\" { capabilities = [\"read\"] }");
    let told = engine.open(Identifier::Value("one".into())).await;
    let told = told.err().unwrap().to_string();
    assert!(
        told.contains("permission denied for path transit-policy/keys"),
        "{told}"
    );
}
