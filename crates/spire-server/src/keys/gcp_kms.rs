//! Key manager `gcp_kms`: keys in Google's Cloud Key Management Service, over its REST interface.
//!
//! Names and labels are upstream's. For each name of a key there is a `CryptoKey`, `spire-key-SERVER-ID`, and the keys
//! that it had one after the other are its versions.

mod ring;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use ah_spire_attest::node::gcp_iit::Account;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};
use spiffe::TrustDomain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tokio::time::sleep;

pub(super) use self::ring::crc32c;
use self::ring::{CryptoKey, Ring, Version};
use super::identifier::Identifier;
use super::remote::{Held, Place, digest_of};
use super::{KeyError, KeyType};
use crate::google::{GoogleApi, GoogleError};

const PREFIX: &str = "spire-key";
const SERVER: &str = "spire-server-id";
const DOMAIN: &str = "spire-server-td";
const ACTIVE: &str = "spire-active";
const LAST_UPDATE: &str = "spire-last-update";

/// How often keys in use are marked.
const MARKED_EVERY: Duration = Duration::from_hours(6);

/// At every how manieth time keys of servers that are gone are looked for: every 48 hours.
const DISPOSED_EVERY: u32 = 8;

/// A key that was not marked for this long is nobody's.
const STALE: Duration = Duration::from_hours(14 * 24);

/// The first wait for a key that is being made, the longest, and how often it is waited.
const MADE_WITHIN: (Duration, Duration, u32) =
    (Duration::from_millis(20), Duration::from_secs(1), 12);

const KINDS: [(KeyType, &str); 4] = [
    (KeyType::Rsa2048, "RSA_SIGN_PKCS1_2048_SHA256"),
    (KeyType::Rsa4096, "RSA_SIGN_PKCS1_4096_SHA256"),
    (KeyType::EcP256, "EC_SIGN_P256_SHA256"),
    (KeyType::EcP384, "EC_SIGN_P384_SHA384"),
];

/// Which key ring, as whom, and whose keys they are.
#[derive(Clone, Debug)]
pub struct GcpKmsSettings {
    /// Before `/v1/…`: `https://cloudkms.googleapis.com`, but in tests.
    pub api: String,
    /// As whom.
    pub account: Account,
    /// `key_ring`: `projects/…/locations/…/keyRings/…`
    pub ring: String,
    /// `key_policy_file`; without it the account itself may sign.
    pub policy: Option<PathBuf>,
    /// Small letters, digits, `_` and `-`, at most 40.
    pub server: Identifier,
    /// Whose keys they are.
    pub trust_domain: TrustDomain,
}

/// The keys of one server in a key ring.
pub struct GcpKms {
    ring: Ring,
    account: Account,
    policy: Option<Value>,
    server: String,
    /// Hexadecimal SHA-1 of the trust domain's name.
    domain: String,
    /// By name of the key.
    known: Mutex<BTreeMap<String, CryptoKey>>,
    marked: AtomicU32,
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> KeyError {
    KeyError::Failed(format!("{what}: {why}"))
}

impl GcpKms {
    /// The key ring of `settings`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// The server's identifier or the policy cannot be read.
    pub fn new(settings: GcpKmsSettings) -> Result<Self, KeyError> {
        let policy = settings.policy.map(|path| {
            let unusable = |why: &dyn std::fmt::Display| {
                let path = path.display();
                KeyError::Storage(format!("key_policy_file {path}: {why}"))
            };
            let text = std::fs::read_to_string(&path).map_err(|error| unusable(&error))?;
            let policy = serde_json::from_str::<Value>(&text).map_err(|error| unusable(&error))?;
            match policy.is_object() {
                true => Ok(policy),
                false => Err(unusable(
                    &"it is no policy: `{\"bindings\": […], \"version\": 3}`",
                )),
            }
        });
        let domain = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            settings.trust_domain.as_str().as_bytes(),
        );
        let domain = domain.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            ring: Ring {
                api: GoogleApi::new(settings.api, settings.account.clone()),
                name: settings.ring,
            },
            account: settings.account,
            policy: policy.transpose()?,
            server: settings.server.read()?,
            domain: domain.collect(),
            known: Mutex::default(),
            marked: AtomicU32::new(0),
        })
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let all = [
            (DOMAIN, self.domain.as_str()),
            (SERVER, self.server.as_str()),
            (ACTIVE, "true"),
            (LAST_UPDATE, unix(SystemTime::now()).to_string().as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        all.into()
    }

    /// A version as the key of a name. One that is being made is waited for.
    async fn held(&self, mut version: Version, id: &str) -> Result<Held, KeyError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Public {
            pem: String,
            #[serde(default)]
            pem_crc32c: String,
        }

        let what = "failed to get public key";
        let path = format!("{}/publicKey", version.name);
        let (mut wait, longest, times) = MADE_WITHIN;
        let mut left = times;
        let public = loop {
            let error = match self.ring.api.get::<Public>(&path).await {
                Ok(public) => break public,
                Err(error) => error,
            };
            let now = self.ring.api.get::<Version>(&version.name).await;
            version = now.map_err(|error| failed(what, &error))?;
            let comes = ["PENDING_GENERATION", "ENABLED"].contains(&version.state.as_str());
            if !comes || left == 0 {
                return Err(failed(what, &error));
            }
            left -= 1;
            sleep(wait).await;
            wait = wait.saturating_mul(2).min(longest);
        };
        let strange = |why: &str| failed(what, &format!("{}: {why}", version.name));
        if public.pem_crc32c != crc32c(public.pem.as_bytes()).to_string() {
            return Err(strange("response corrupted in-transit"));
        }
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(public.pem.as_bytes());
        let spki = spki.map_err(|_| strange("it is not PEM"))?;
        let kind = KINDS.iter().find(|(_, told)| *told == version.algorithm);
        let (kind, _) =
            kind.ok_or_else(|| strange(&format!("unsupported algorithm {}", version.algorithm)))?;
        let made = OffsetDateTime::parse(&version.create_time, &Rfc3339);
        let made = made.map_err(|_| strange("its createTime cannot be read"))?;
        Ok(Held {
            handle: version.name,
            id: id.to_owned(),
            kind: *kind,
            spki: spki.to_vec(),
            made: SystemTime::from(made),
        })
    }

    /// A key with its first version; `None` where there is one of this name.
    async fn first_version(
        &self,
        id: &str,
        algorithm: &str,
    ) -> Result<Option<(CryptoKey, Version)>, KeyError> {
        let (ring, server) = (&self.ring.name, &self.server);
        let path = format!("{ring}/cryptoKeys?cryptoKeyId={PREFIX}-{server}-{id}");
        let wanted = json!({
            "purpose": "ASYMMETRIC_SIGN",
            "labels": self.labels(),
            "versionTemplate": { "algorithm": algorithm },
        });
        let made = self
            .ring
            .api
            .call::<CryptoKey>(Method::POST, &path, Some(&wanted));
        let key = match made.await {
            Err(error) if error.status == Some(StatusCode::CONFLICT) => return Ok(None),
            made => made.map_err(|error| failed("failed to create CryptoKey", &error))?,
        };
        self.set_policy(&key).await?;
        let first = format!("{}/cryptoKeyVersions/1", key.name);
        let first = self.ring.api.get(&first).await;
        let first = first.map_err(|error| failed("failed to get CryptoKeyVersion", &error))?;
        Ok(Some((key, first)))
    }

    /// A key of this server without a version that can sign: it was found stale, or its policy could not be set.
    async fn left_behind(&self, id: &str) -> Result<CryptoKey, KeyError> {
        let name = format!(
            "{}/cryptoKeys/{PREFIX}-{}-{id}",
            self.ring.name, self.server
        );
        let told = |error: GoogleError| failed("failed to take CryptoKey up again", &error);
        let key = self.ring.api.get::<CryptoKey>(&name).await.map_err(told)?;
        let ours = self.labels();
        if [DOMAIN, SERVER].map(|label| key.labels.get(label) == ours.get(label)) != [true; 2] {
            let why = "it is of another server or trust domain; set another key_identifier_value";
            return Err(failed(&format!("CryptoKey {name}"), &why));
        }
        let labels = json!({ "labels": ours });
        self.ring
            .update(&key, "labels", labels)
            .await
            .map_err(told)?;
        self.set_policy(&key).await?;
        Ok(key)
    }

    async fn next_version(
        &self,
        key: &mut CryptoKey,
        algorithm: &str,
    ) -> Result<Version, KeyError> {
        if key.version_template.algorithm != algorithm {
            let change = json!({ "versionTemplate": { "algorithm": algorithm } });
            let changed = self
                .ring
                .update(key, "versionTemplate.algorithm", change)
                .await;
            changed.map_err(|error| failed("failed to update CryptoKey", &error))?;
            key.version_template.algorithm = algorithm.to_owned();
        }
        let path = format!("{}/cryptoKeyVersions", key.name);
        let wanted = json!({ "state": "ENABLED" });
        let made = self.ring.api.call(Method::POST, &path, Some(&wanted)).await;
        made.map_err(|error| failed("failed to create CryptoKeyVersion", &error))
    }

    /// Whoever has set a policy, keeps it.
    async fn set_policy(&self, key: &CryptoKey) -> Result<(), KeyError> {
        let told = |error: GoogleError| failed("failed to set IAM policy", &error);
        let name = &key.name;
        let path = format!("{name}:getIamPolicy?options.requestedPolicyVersion=3");
        let mut policy = self.ring.api.get::<Value>(&path).await.map_err(told)?;
        let bindings = policy.get("bindings").and_then(Value::as_array);
        if bindings.is_some_and(|bindings| !bindings.is_empty()) {
            tracing::warn!(
                key = name,
                "The CryptoKey already has a policy. No policy will be set."
            );
            return Ok(());
        }
        if let Some(own) = &self.policy {
            policy = own.clone();
        } else {
            let email = self.account.email().await;
            let email = email.map_err(|why| failed("failed to get current identity", &why))?;
            let binding = json!({
                "role": "roles/cloudkms.signerVerifier",
                "members": [format!("serviceAccount:{email}")],
            });
            if let Some(fields) = policy.as_object_mut() {
                fields.insert("bindings".into(), json!([binding]));
                fields.insert("version".into(), 3.into());
            }
        }
        let path = format!("{name}:setIamPolicy");
        let body = json!({ "policy": policy });
        let set = self
            .ring
            .api
            .call::<Value>(Method::POST, &path, Some(&body));
        set.await.map(drop).map_err(told)
    }

    /// Destroys the keys of servers of the trust domain that are gone.
    async fn dispose(&self, now: SystemTime) -> Result<(), GoogleError> {
        let before = unix(now.checked_sub(STALE).unwrap_or(SystemTime::UNIX_EPOCH));
        let (domain, server) = (self.domain.as_str(), self.server.as_str());
        let stale = format!(
            "labels.{DOMAIN} = {domain} AND labels.{SERVER} != {server} AND labels.{ACTIVE} = true AND labels.{LAST_UPDATE} < {before}"
        );
        for mut key in self.ring.keys(&stale).await? {
            // What is destroyed is gone for good: no filter is trusted with it.
            let label = |name: &str| key.labels.get(name).map(String::as_str);
            let marked = label(LAST_UPDATE).and_then(|it| it.parse::<u64>().ok());
            let is_stale = label(DOMAIN) == Some(domain)
                && label(SERVER).is_some_and(|other| other != server)
                && marked.is_some_and(|marked| marked < before);
            if !is_stale {
                continue;
            }
            for version in self.ring.versions(&key).await? {
                tracing::info!(key = version.name, "Stale key is destroyed");
                self.ring.destroy(&version.name).await?;
            }
            key.labels.insert(ACTIVE.into(), "false".into());
            let labels = json!({ "labels": key.labels });
            self.ring.update(&key, "labels", labels).await?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Place for GcpKms {
    async fn list(&self) -> Result<Vec<Held>, KeyError> {
        let told = |error: GoogleError| failed("failed to list keys in Cloud KMS", &error);
        let (domain, server) = (self.domain.as_str(), self.server.as_str());
        let ours = format!(
            "labels.{DOMAIN} = {domain} AND labels.{SERVER} = {server} AND labels.{ACTIVE} = true"
        );
        let mut known = self.known.lock().await;
        let mut all = Vec::new();
        let prefix = format!("{}/cryptoKeys/{PREFIX}-{server}-", self.ring.name);
        for key in self.ring.keys(&ours).await.map_err(told)? {
            let Some(id) = key.name.strip_prefix(&prefix).filter(|id| !id.is_empty()) else {
                tracing::warn!(
                    key = key.name,
                    "The name of a CryptoKey is none of this server's"
                );
                continue;
            };
            for version in self.ring.versions(&key).await.map_err(told)? {
                all.push(self.held(version, id).await?);
            }
            known.insert(id.to_owned(), key.clone());
        }
        Ok(all)
    }

    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError> {
        let algorithm = KINDS.iter().find(|(one, _)| *one == kind);
        let algorithm = algorithm.map_or("", |(_, told)| told);
        let mut known = self.known.lock().await;
        let version = match known.get_mut(id) {
            Some(key) => self.next_version(key, algorithm).await?,
            None => {
                let (key, version) = match self.first_version(id, algorithm).await? {
                    Some(made) => made,
                    None => {
                        let mut key = self.left_behind(id).await?;
                        let version = self.next_version(&mut key, algorithm).await?;
                        (key, version)
                    }
                };
                known.insert(id.to_owned(), key);
                version
            }
        };
        self.held(version, id).await
    }

    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Signed {
            signature: String,
            #[serde(default)]
            signature_crc32c: String,
            #[serde(default)]
            verified_digest_crc32c: bool,
        }

        let by = match key.kind {
            KeyType::EcP384 => "sha384",
            KeyType::EcP256 | KeyType::Rsa2048 | KeyType::Rsa4096 => "sha256",
        };
        let digest = digest_of(key.kind, message);
        let asked = json!({
            "digest": { by: STANDARD.encode(&digest) },
            "digestCrc32c": crc32c(&digest).to_string(),
        });
        let path = format!("{}:asymmetricSign", key.handle);
        let signed = self
            .ring
            .api
            .call::<Signed>(Method::POST, &path, Some(&asked));
        let signed = signed
            .await
            .map_err(|error| failed("failed to sign", &error))?;
        let corrupted = || KeyError::Failed("error signing: response corrupted in-transit".into());
        let signature = STANDARD
            .decode(&signed.signature)
            .map_err(|_| corrupted())?;
        if signed.signature_crc32c != crc32c(&signature).to_string()
            || !signed.verified_digest_crc32c
        {
            return Err(corrupted());
        }
        Ok(signature)
    }

    async fn delete(&self, handle: &str) -> Result<(), KeyError> {
        let destroyed = self.ring.destroy(handle).await;
        destroyed.map_err(|error| failed("failed to destroy CryptoKeyVersion", &error))
    }

    fn tended_every(&self) -> Option<Duration> {
        Some(MARKED_EVERY)
    }

    async fn tend(&self, _held: &[Held]) -> Result<(), KeyError> {
        let now = SystemTime::now();
        let mut worst = Ok(());
        for key in self.known.lock().await.values_mut() {
            key.labels.insert(LAST_UPDATE.into(), unix(now).to_string());
            let labels = json!({ "labels": key.labels });
            if let Err(error) = self.ring.update(key, "labels", labels).await {
                worst = Err(failed(&format!("failed to update {}", key.name), &error));
            }
        }
        let times = self.marked.fetch_add(1, Ordering::Relaxed);
        if times > 0 && times.is_multiple_of(DISPOSED_EVERY) {
            let disposed = self.dispose(now).await;
            disposed.map_err(|error| failed("failed to dispose of stale keys", &error))?;
        }
        worst
    }
}

fn unix(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
