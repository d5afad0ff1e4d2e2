//! `azure_key_vault` against a stand-in for Azure's services (inventory section 7).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use ah_spire_wire::azure::{Azure, Proof};
use ah_testkit::process::eventually;
use ah_testkit::web::{Asked, Web};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use super::cloud::{CloudKey, answer, refusal};
use super::*;

#[derive(Default)]
struct Vault {
    url: String,
    keys: BTreeMap<String, Key>,
    /// The types of keys end in `-HSM`.
    hsm: bool,
}

struct Key {
    pair: CloudKey,
    kty: &'static str,
    crv: Option<String>,
    tags: Value,
    enabled: bool,
    created: u64,
    updated: u64,
}

impl Key {
    fn new(kty: &str, size: u64, tags: Value, created: u64) -> Self {
        let (pair, kty, crv) = match kty {
            "RSA" => (CloudKey::rsa(size), "RSA", None),
            _ => (CloudKey::ec(size, true), "EC", Some(format!("P-{size}"))),
        };
        Self {
            pair,
            kty,
            crv,
            tags,
            enabled: true,
            created,
            updated: created,
        }
    }
}

impl Vault {
    fn kid(&self, name: &str) -> String {
        format!("{}/keys/{name}", self.url)
    }

    /// A `KeyBundle`.
    fn bundle(&self, name: &str) -> Value {
        let key = &self.keys[name];
        let encode = |bytes: &[u8]| Value::from(URL_SAFE_NO_PAD.encode(bytes));
        let spki = key.pair.spki();
        let (_, info) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
        let kty = format!("{}{}", key.kty, if self.hsm { "-HSM" } else { "" });
        let mut jwk = json!({
            "kid": format!("{}/0123456789abcdef", self.kid(name)),
            "kty": kty,
            "key_ops": ["sign", "verify"],
        });
        match info.parsed().unwrap() {
            PublicKey::RSA(rsa) => {
                let unsigned = |bytes: &[u8]| encode(&bytes[usize::from(bytes[0] == 0)..]);
                jwk["n"] = unsigned(rsa.modulus);
                jwk["e"] = unsigned(rsa.exponent);
            }
            PublicKey::EC(point) => {
                let (x, y) = point.data()[1..].split_at(point.data().len() / 2);
                (jwk["x"], jwk["y"]) = (encode(x), encode(y));
                jwk["crv"] = key.crv.clone().unwrap().into();
            }
            other => panic!("{other:?}"),
        }
        json!({ "key": jwk, "attributes": self.attributes(name), "tags": key.tags })
    }

    fn attributes(&self, name: &str) -> Value {
        let key = &self.keys[name];
        json!({ "enabled": key.enabled, "created": key.created, "updated": key.updated })
    }

    fn answers(&mut self, asked: &Asked) -> Response<Bytes> {
        assert_eq!(asked.header("authorization"), "Bearer vault-token");
        let (path, query) = asked.target.split_once('?').unwrap();
        assert!(query.starts_with("api-version=7.4"), "{query}");
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        let parts: Vec<&str> = path
            .strip_prefix("/keys")
            .unwrap()
            .split('/')
            .skip(1)
            .collect();
        match (asked.method.as_str(), parts.as_slice()) {
            // In pages of one.
            ("GET", []) => {
                let at: usize = query
                    .split_once("&skip=")
                    .map_or(0, |(_, at)| at.parse().unwrap());
                let listed = self.keys.iter().skip(at).take(1).map(|(name, key)| {
                    json!({ "kid": self.kid(name), "attributes": self.attributes(name), "tags": key.tags })
                });
                let next = at + 1;
                let next = (next < self.keys.len())
                    .then(|| format!("{}/keys?api-version=7.4&skip={next}", self.url));
                answer(json!({ "value": listed.collect::<Vec<_>>(), "nextLink": next }))
            }
            ("POST", [name, "create"]) => {
                assert_eq!(body["key_ops"], json!(["sign", "verify"]));
                let size = body["key_size"].as_u64();
                let size = size.or_else(|| body["crv"].as_str()?.strip_prefix("P-")?.parse().ok());
                let kty = body["kty"].as_str().unwrap();
                let made = Key::new(kty, size.unwrap(), body["tags"].clone(), unix());
                assert!(self.keys.insert((*name).to_owned(), made).is_none());
                answer(self.bundle(name))
            }
            ("GET", [name]) => answer(self.bundle(name)),
            ("PATCH", [name, "0123456789abcdef"]) => {
                assert_eq!(body, json!({ "key_ops": ["sign", "verify"] }));
                self.keys.get_mut(*name).unwrap().updated = unix();
                answer(self.bundle(name))
            }
            ("DELETE", [name]) => {
                let gone = self.keys.contains_key(*name).then(|| self.bundle(name));
                self.keys.remove(*name);
                gone.map_or_else(|| refusal(StatusCode::NOT_FOUND, "no such key"), answer)
            }
            ("POST", [name, "0123456789abcdef", "sign"]) => {
                let key = &self.keys[*name];
                let algorithm = match key.crv.as_deref() {
                    Some("P-256") => "ES256",
                    Some(_) => "ES384",
                    None => "RS256",
                };
                assert_eq!(body["alg"], algorithm);
                let digest = URL_SAFE_NO_PAD.decode(body["value"].as_str().unwrap());
                let signature = key.pair.sign(&digest.unwrap());
                answer(json!({ "kid": self.kid(name), "value": URL_SAFE_NO_PAD.encode(signature) }))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn unix() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

struct Service {
    web: Web,
    vault: Arc<Mutex<Vault>>,
}

impl Service {
    async fn start() -> Self {
        let web = Web::start().await;
        let token = json!({ "access_token": "vault-token", "expires_in": 3599 });
        web.answers("/tenant/oauth2/v2.0/token", token);
        let vault = Arc::new(Mutex::new(Vault {
            url: web.url(""),
            ..Vault::default()
        }));
        let served = vault.clone();
        web.answers_others(move |asked| served.lock().unwrap().answers(asked));
        Self { web, vault }
    }

    fn place(&self, server: &str) -> KeyVault {
        let azure = Azure {
            authority: self.web.url(""),
            ..Azure::of_process()
        };
        let proof = Proof::Secret {
            app_id: "app".into(),
            secret: Zeroizing::new("pass word".into()),
        };
        let made = KeyVault::new(KeyVaultSettings {
            azure,
            vault: self.web.url(""),
            resource: "https://vault.azure.net".into(),
            tenant: "tenant".into(),
            proof,
            server: Identifier::Value(server.into()),
            trust_domain: TrustDomain::new("example.org").unwrap(),
        });
        made.unwrap()
    }

    async fn open(&self, server: &str) -> Result<RemoteKeys, KeyError> {
        RemoteKeys::open(self.place(server)).await
    }

    fn names(&self) -> Vec<String> {
        self.vault.lock().unwrap().keys.keys().cloned().collect()
    }
}

fn tags(domain: &str, server: &str) -> Value {
    json!({ "spire-server-td": domain, "spire-server-id": server })
}

/// The name of the key called `a` whose number this is.
fn named(number: u8) -> String {
    format!("spire-key-00000000-0000-4000-8000-0000000000{number:02}-a")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_a_vault_come_back_and_none_is_left_behind() {
    let service = Service::start().await;
    let keys = service.open("server one").await.unwrap();
    conforms(&keys).await;
    eventually("what was replaced is deleted", || {
        (service.names().len() == 2).then_some(())
    });
    let before = public(&keys.keys().await.unwrap());
    for (name, key) in &service.vault.lock().unwrap().keys {
        // Upstream's names and tags.
        assert!(
            name.starts_with("spire-key-") && name.len() == "spire-key-".len() + 38,
            "{name}"
        );
        assert_eq!(key.tags, tags("example.org", "server one"));
    }
    let asked = service.web.asked();
    let tokens: Vec<_> = asked
        .iter()
        .filter(|it| it.target.ends_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1);
    for part in [
        "client_id=app",
        "client_secret=pass%20word",
        "scope=https%3A%2F%2Fvault.azure.net%2F.default",
    ] {
        assert!(tokens[0].body.contains(part), "{part}");
    }
    drop(keys);
    // Of a Managed HSM.
    service.vault.lock().unwrap().hsm = true;
    let again = service.open("server one").await.unwrap();
    let found = again.keys().await.unwrap();
    assert_eq!(public(&found), before);
    found[0].sign(b"message").unwrap();
    let other = service.open("two").await.unwrap();
    assert!(other.keys().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_is_deleted_and_a_disabled_key_is_told() {
    let service = Service::start().await;
    let put = |name: &str, mut key: Key, enabled: bool| {
        key.enabled = enabled;
        service.vault.lock().unwrap().keys.insert(name.into(), key);
    };
    let ours = |created| Key::new("EC", 256, tags("example.org", "one"), created);
    put(&named(1), ours(100), true);
    put(&named(2), ours(200), true);
    // Not ours, and not even of a key manager.
    put("somebody", Key::new("EC", 256, Value::Null, 1), false);
    put("spire-key-strange", ours(300), true);
    let keys = service.open("one").await.unwrap();
    let newest = service.vault.lock().unwrap().keys[&named(2)].pair.spki();
    assert_eq!(public(&keys.keys().await.unwrap()), [newest]);
    eventually("the older key is deleted", || {
        (!service.names().contains(&named(1))).then_some(())
    });
    // Deleted by somebody else is deleted.
    service
        .place("one")
        .delete(&format!("{}/0123456789abcdef", named(1)))
        .await
        .unwrap();

    put(&named(3), ours(400), false);
    let error = service.open("one").await.err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("found disabled SPIRE key {}: enable it", named(3))),
        "{error}"
    );
    service
        .web
        .answers_with("/keys", refusal(StatusCode::FORBIDDEN, "no rights"));
    let error = service.open("one").await.err().unwrap().to_string();
    assert!(
        error.starts_with("failed while listing keys: 127.0.0.1:"),
        "{error}"
    );
    assert!(
        error.contains("403 Forbidden") && error.contains("no rights"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_use_are_marked_and_those_of_servers_that_are_gone_deleted() {
    let service = Service::start().await;
    let (long_ago, day) = (unix() - 15 * 24 * 3600, unix() - 24 * 3600);
    for (number, tags, created) in [
        (1, tags("example.org", "one"), long_ago),
        (2, tags("example.org", "gone"), long_ago),
        (3, tags("example.org", "two"), day),
        (4, tags("other.org", "away"), long_ago),
        (5, json!({ "spire-server-td": "example.org" }), long_ago),
    ] {
        let key = Key::new("EC", 256, tags, created);
        service
            .vault
            .lock()
            .unwrap()
            .keys
            .insert(named(number), key);
    }
    let place = service.place("one");
    assert_eq!(place.tended_every(), Some(Duration::from_secs(6 * 3600)));
    let held = place.list().await.unwrap();
    place.tend(&held).await.unwrap();
    assert!(service.vault.lock().unwrap().keys[&named(1)].updated > day);
    assert_eq!(service.names().len(), 5);
    // Every 48 hours.
    for _ in 0..8 {
        place.tend(&held).await.unwrap();
    }
    assert_eq!(service.names(), [1, 3, 4, 5].map(named));
}
