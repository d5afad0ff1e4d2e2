//! `gcp_kms` against a stand-in for Google's services (inventory section 7).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use ah_spire_attest::node::gcp_iit::Account;
use ah_spire_wire::bundle::pem_block;
use ah_testkit::process::eventually;
use ah_testkit::web::{Asked, Web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use super::cloud::{CloudKey, answer, refusal};
use super::*;
use crate::keys::gcp_kms::crc32c;

const RING: &str = "projects/p/locations/l/keyRings/r";

/// `example.org`, as upstream hashes it.
const DOMAIN: &str = "20116dfd6774a9e7b32eddfea3f6cb094e38fc3f";

#[derive(Default)]
struct Ring {
    keys: BTreeMap<String, CryptoKey>,
    /// Questions for a public key that are answered with "not yet".
    slow: usize,
    corrupts: bool,
}

struct CryptoKey {
    labels: Value,
    algorithm: String,
    policy: Value,
    versions: Vec<Version>,
}

struct Version {
    state: &'static str,
    algorithm: String,
    key: CloudKey,
}

impl CryptoKey {
    fn new(labels: Value, algorithm: &str) -> Self {
        let mut key = Self {
            labels,
            algorithm: algorithm.to_owned(),
            policy: json!({ "etag": "ACAB" }),
            versions: Vec::new(),
        };
        key.add();
        key
    }

    fn add(&mut self) {
        self.versions.push(Version {
            state: "ENABLED",
            algorithm: self.algorithm.clone(),
            key: match self.algorithm.as_str() {
                "RSA_SIGN_PKCS1_2048_SHA256" => CloudKey::rsa(2048),
                "RSA_SIGN_PKCS1_4096_SHA256" => CloudKey::rsa(4096),
                "EC_SIGN_P256_SHA256" => CloudKey::ec(256, false),
                "EC_SIGN_P384_SHA384" => CloudKey::ec(384, false),
                other => panic!("{other}"),
            },
        });
    }

    fn told(&self, name: &str) -> Value {
        json!({
            "name": name,
            "labels": self.labels,
            "purpose": "ASYMMETRIC_SIGN",
            "versionTemplate": { "algorithm": self.algorithm },
        })
    }

    fn version(&self, name: &str, number: usize) -> Value {
        let version = &self.versions[number - 1];
        json!({
            "name": format!("{name}/cryptoKeyVersions/{number}"),
            "state": version.state,
            "algorithm": version.algorithm,
            "createTime": format!("2026-01-01T00:00:{number:02}.25Z"),
        })
    }

    /// `labels.NAME (=|!=|<) VALUE` with `AND` between.
    fn fits(&self, filter: &str) -> bool {
        filter.split(" AND ").all(|term| {
            let [name, by, value] =
                <[_; 3]>::try_from(term.split(' ').collect::<Vec<_>>()).unwrap();
            let label = self.labels[name.strip_prefix("labels.").unwrap()].as_str();
            match by {
                "=" => label == Some(value),
                "!=" => label != Some(value),
                "<" => label
                    .is_some_and(|label| label.parse::<u64>().unwrap() < value.parse().unwrap()),
                other => panic!("{other}"),
            }
        })
    }
}

impl Ring {
    fn answers(&mut self, asked: &Asked) -> Response<Bytes> {
        assert_eq!(asked.header("authorization"), "Bearer ya29.token");
        let url = url::Url::parse(&format!("http://kms{}", asked.target)).unwrap();
        let query = |name: &str| {
            let mut all = url.query_pairs();
            all.find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        let path = url.path().strip_prefix("/v1/").unwrap();
        let (path, verb) = path.split_once(':').unwrap_or((path, ""));
        let below = path.strip_prefix(&format!("{RING}/cryptoKeys")).unwrap();
        let parts: Vec<&str> = below.split('/').skip(1).collect();
        let known = parts.first().map(|id| format!("{RING}/cryptoKeys/{id}"));
        let number = |text: &str| text.parse::<usize>().unwrap();
        match (asked.method.as_str(), parts.as_slice(), verb) {
            ("GET", [], "") => {
                let filter = query("filter").unwrap();
                let all = self.keys.iter().filter(|(_, key)| key.fits(&filter));
                let all: Vec<_> = all.map(|(name, key)| key.told(name)).collect();
                answer(json!({ "cryptoKeys": all, "totalSize": all.len() }))
            }
            ("POST", [], "") => {
                let name = format!("{RING}/cryptoKeys/{}", query("cryptoKeyId").unwrap());
                if self.keys.contains_key(&name) {
                    return refusal(StatusCode::CONFLICT, "there is one");
                }
                assert_eq!(body["purpose"], "ASYMMETRIC_SIGN");
                let algorithm = body["versionTemplate"]["algorithm"].as_str().unwrap();
                let key = CryptoKey::new(body["labels"].clone(), algorithm);
                let told = key.told(&name);
                self.keys.insert(name, key);
                answer(told)
            }
            (method, [_], "") => {
                let name = known.unwrap();
                let key = self.keys.get_mut(&name).unwrap();
                if method == "PATCH" {
                    match query("updateMask").unwrap().as_str() {
                        "labels" => key.labels = body["labels"].clone(),
                        "versionTemplate.algorithm" => {
                            let algorithm = body["versionTemplate"]["algorithm"].as_str();
                            key.algorithm = algorithm.unwrap().to_owned();
                        }
                        other => panic!("{other}"),
                    }
                }
                answer(key.told(&name))
            }
            ("GET", [_], "getIamPolicy") => answer(self.keys[&known.unwrap()].policy.clone()),
            ("POST", [_], "setIamPolicy") => {
                let key = self.keys.get_mut(&known.unwrap()).unwrap();
                key.policy = body["policy"].clone();
                answer(key.policy.clone())
            }
            ("GET", [_, "cryptoKeyVersions"], "") => {
                assert_eq!(query("filter").unwrap(), "state = ENABLED");
                let name = known.unwrap();
                let key = &self.keys[&name];
                let enabled = (1..=key.versions.len())
                    .filter(|number| key.versions[number - 1].state == "ENABLED");
                let all: Vec<_> = enabled.map(|number| key.version(&name, number)).collect();
                answer(json!({ "cryptoKeyVersions": all }))
            }
            ("POST", [_, "cryptoKeyVersions"], "") => {
                let name = known.unwrap();
                let key = self.keys.get_mut(&name).unwrap();
                key.add();
                answer(key.version(&name, key.versions.len()))
            }
            ("GET", [_, _, at], "") => {
                let name = known.unwrap();
                answer(self.keys[&name].version(&name, number(at)))
            }
            ("GET", [_, _, at, "publicKey"], "") => {
                if let Some(left) = self.slow.checked_sub(1) {
                    self.slow = left;
                    return refusal(StatusCode::BAD_REQUEST, "it is being made");
                }
                let version = &self.keys[&known.unwrap()].versions[number(at) - 1];
                let pem = pem_block("PUBLIC KEY", &version.key.spki());
                let sum = crc32c(pem.as_bytes()) ^ u32::from(self.corrupts);
                answer(json!({ "pem": pem, "pemCrc32c": sum.to_string() }))
            }
            ("POST", [_, _, at], "asymmetricSign") => {
                let version = &self.keys[&known.unwrap()].versions[number(at) - 1];
                let by = match version.algorithm.as_str() {
                    "EC_SIGN_P384_SHA384" => "sha384",
                    _ => "sha256",
                };
                let digest = STANDARD
                    .decode(body["digest"][by].as_str().unwrap())
                    .unwrap();
                assert_eq!(body["digestCrc32c"], crc32c(&digest).to_string());
                let signature = version.key.sign(&digest);
                let sum = crc32c(&signature) ^ u32::from(self.corrupts);
                answer(json!({
                    "signature": STANDARD.encode(signature),
                    "signatureCrc32c": sum.to_string(),
                    "verifiedDigestCrc32c": true,
                }))
            }
            ("POST", [_, _, at], "destroy") => {
                let name = known.unwrap();
                let key = self.keys.get_mut(&name).unwrap();
                key.versions[number(at) - 1].state = "DESTROY_SCHEDULED";
                answer(key.version(&name, number(at)))
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Kms {
    web: Web,
    ring: Arc<Mutex<Ring>>,
}

impl Kms {
    async fn start() -> Self {
        let web = Web::start().await;
        let account = "/computeMetadata/v1/instance/service-accounts/default";
        let token = json!({ "access_token": "ya29.token", "expires_in": 3599 });
        web.answers(&format!("{account}/token"), token);
        web.answers(
            &format!("{account}/email"),
            "spire@p.iam.gserviceaccount.com\n",
        );
        let ring = Arc::new(Mutex::new(Ring::default()));
        let served = ring.clone();
        web.answers_others(move |asked| served.lock().unwrap().answers(asked));
        Self { web, ring }
    }

    fn place(&self, server: &str, policy: Option<&Path>) -> Result<GcpKms, KeyError> {
        GcpKms::new(GcpKmsSettings {
            api: self.web.url(""),
            account: Account::new(None, self.web.url("")),
            ring: RING.into(),
            policy: policy.map(Into::into),
            server: Identifier::Value(server.into()),
            trust_domain: TrustDomain::new("example.org").unwrap(),
        })
    }

    async fn open(&self, server: &str) -> Result<RemoteKeys, KeyError> {
        RemoteKeys::open(self.place(server, None)?).await
    }

    /// The versions of a key that can sign.
    fn enabled(&self, name: &str) -> usize {
        let ring = self.ring.lock().unwrap();
        let versions = &ring.keys[&format!("{RING}/cryptoKeys/{name}")].versions;
        versions.iter().filter(|it| it.state == "ENABLED").count()
    }

    fn label(&self, name: &str, label: &str) -> Value {
        let ring = self.ring.lock().unwrap();
        ring.keys[&format!("{RING}/cryptoKeys/{name}")].labels[label].clone()
    }
}

fn unix() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[test]
fn checksums_are_those_of_rfc_3720() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_cloud_kms_come_back_and_none_is_left_behind() {
    let kms = Kms::start().await;
    let keys = kms.open("one").await.unwrap();
    conforms(&keys).await;
    eventually("what was replaced is destroyed", || {
        (kms.enabled("spire-key-one-k") == 1).then_some(())
    });
    let before = public(&keys.keys().await.unwrap());
    // Upstream's labels, and the policy that it sets where there is none.
    for (label, value) in [
        ("spire-server-td", DOMAIN),
        ("spire-server-id", "one"),
        ("spire-active", "true"),
    ] {
        assert_eq!(kms.label("spire-key-one-a", label), value);
    }
    let policy = kms.ring.lock().unwrap().keys[&format!("{RING}/cryptoKeys/spire-key-one-a")]
        .policy
        .clone();
    assert_eq!(
        policy,
        json!({
            "etag": "ACAB",
            "version": 3,
            "bindings": [{
                "role": "roles/cloudkms.signerVerifier",
                "members": ["serviceAccount:spire@p.iam.gserviceaccount.com"],
            }],
        })
    );
    // One token for all.
    let tokens = |it: &&Asked| it.target.contains("/token?");
    assert_eq!(kms.web.asked().iter().filter(tokens).count(), 1);
    drop(keys);
    let again = kms.open("one").await.unwrap();
    let found = again.keys().await.unwrap();
    assert_eq!(public(&found), before);
    found[0].sign(b"message").unwrap();
    // Keys of another server are none of this one's.
    let other = kms.open("two").await.unwrap();
    assert!(other.keys().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_takes_its_time_is_waited_for_and_a_damaged_answer_is_not_taken() {
    let kms = Kms::start().await;
    let keys = kms.open("one").await.unwrap();
    kms.ring.lock().unwrap().slow = 2;
    let key = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    key.sign(b"message").unwrap();
    kms.ring.lock().unwrap().corrupts = true;
    let error = key.sign(b"message").unwrap_err().to_string();
    assert_eq!(error, "error signing: response corrupted in-transit");
    let error = keys.generate_key("k", KeyType::EcP256).await.err().unwrap();
    let error = error.to_string();
    assert!(error.ends_with("response corrupted in-transit"), "{error}");
    // The old one stays.
    kms.ring.lock().unwrap().corrupts = false;
    key.sign(b"message").unwrap();
}

// A process that was killed between making a key and destroying its predecessor; and one whose key was given up.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_left_are_taken_up_again() {
    let kms = Kms::start().await;
    let labels = |active: &str| json!({ "spire-server-td": DOMAIN, "spire-server-id": "one", "spire-active": active });
    let mut twice = CryptoKey::new(labels("true"), "EC_SIGN_P256_SHA256");
    twice.add();
    let newest = twice.versions[1].key.spki();
    let mut given_up = CryptoKey::new(labels("false"), "EC_SIGN_P256_SHA256");
    given_up.versions[0].state = "DESTROYED";
    let foreign = CryptoKey::new(json!({ "spire-server-id": "two" }), "EC_SIGN_P256_SHA256");
    for (id, key) in [("twice", twice), ("gone", given_up), ("foreign", foreign)] {
        let name = format!("{RING}/cryptoKeys/spire-key-one-{id}");
        kms.ring.lock().unwrap().keys.insert(name, key);
    }
    let keys = kms.open("one").await.unwrap();
    let found = keys.keys().await.unwrap();
    assert_eq!(public(&found), [newest]);
    eventually("the older version is destroyed", || {
        (kms.enabled("spire-key-one-twice") == 1).then_some(())
    });
    let key = keys.generate_key("gone", KeyType::EcP384).await.unwrap();
    key.sign(b"message").unwrap();
    assert_eq!(kms.label("spire-key-one-gone", "spire-active"), "true");
    assert_eq!(kms.enabled("spire-key-one-gone"), 1);
    let error = keys.generate_key("foreign", KeyType::EcP256).await;
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("set another key_identifier_value"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_use_are_marked_and_those_of_servers_that_are_gone_destroyed() {
    let kms = Kms::start().await;
    let other = |domain: &str, server: &str, marked: Option<u64>| {
        let mut labels =
            json!({ "spire-server-td": domain, "spire-server-id": server, "spire-active": "true" });
        if let Some(marked) = marked {
            labels["spire-last-update"] = marked.to_string().into();
        }
        CryptoKey::new(labels, "EC_SIGN_P256_SHA256")
    };
    let (long_ago, day) = (unix() - 15 * 24 * 3600, unix() - 24 * 3600);
    for (id, key) in [
        ("spire-key-gone-a", other(DOMAIN, "gone", Some(long_ago))),
        ("spire-key-two-a", other(DOMAIN, "two", Some(day))),
        ("spire-key-old-a", other(DOMAIN, "old", None)),
        (
            "spire-key-away-a",
            other("other-domain", "away", Some(long_ago)),
        ),
        ("spire-key-one-a", other(DOMAIN, "one", Some(long_ago))),
    ] {
        let name = format!("{RING}/cryptoKeys/{id}");
        kms.ring.lock().unwrap().keys.insert(name, key);
    }
    let place = kms.place("one", None).unwrap();
    let held = place.list().await.unwrap();
    assert_eq!(place.tended_every(), Some(Duration::from_secs(6 * 3600)));
    place.tend(&held).await.unwrap();
    let marked = kms.label("spire-key-one-a", "spire-last-update");
    assert!(marked.as_str().unwrap().parse::<u64>().unwrap() > day);
    assert_eq!(kms.enabled("spire-key-gone-a"), 1);
    // Every 48 hours.
    for _ in 0..8 {
        place.tend(&held).await.unwrap();
    }
    assert_eq!(kms.enabled("spire-key-gone-a"), 0);
    assert_eq!(kms.label("spire-key-gone-a", "spire-active"), "false");
    for kept in [
        "spire-key-two-a",
        "spire-key-old-a",
        "spire-key-away-a",
        "spire-key-one-a",
    ] {
        assert_eq!(kms.enabled(kept), 1, "{kept}");
        assert_eq!(kms.label(kept, "spire-active"), "true", "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_policy_is_set_and_what_google_refuses_is_told() {
    let kms = Kms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        kms.place("one", Some(&path)).err().unwrap().to_string()
    };
    for text in ["{", "[]"] {
        let told = refused(text);
        assert!(
            told.starts_with(&format!("key_policy_file {}: ", path.display())),
            "{told}"
        );
    }
    let policy = json!({ "version": 3, "bindings": [{ "role": "roles/viewer", "members": ["user:a@example.org"] }] });
    std::fs::write(&path, policy.to_string()).unwrap();
    let keys = RemoteKeys::open(kms.place("one", Some(&path)).unwrap())
        .await
        .unwrap();
    keys.generate_key("k", KeyType::EcP256).await.unwrap();
    let name = format!("{RING}/cryptoKeys/spire-key-one-k");
    assert_eq!(kms.ring.lock().unwrap().keys[&name].policy, policy);

    let list = format!("/v1/{RING}/cryptoKeys");
    kms.web
        .answers_with(&list, refusal(StatusCode::FORBIDDEN, "no rights"));
    let error = kms.open("two").await.err().unwrap().to_string();
    assert_eq!(
        error,
        "failed to list keys in Cloud KMS: 403 Forbidden: no rights"
    );
    let error = keys
        .generate_key("new", KeyType::EcP256)
        .await
        .err()
        .unwrap()
        .to_string();
    assert_eq!(
        error,
        "failed to create CryptoKey: 403 Forbidden: no rights"
    );
    assert_eq!(kms.web.asked().pop().unwrap().method, Method::POST);
}
