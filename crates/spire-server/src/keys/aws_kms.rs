//! Key manager `aws_kms`: keys in AWS Key Management Service.
//!
//! A key is found by its alias, `alias/SPIRE_SERVER/DOMAIN/SERVER/ID`, or by tags as well. Names, tags and times are
//! upstream's, so that either server finds the other's keys.

mod find;
mod upkeep;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::aws::{Caller, Fault, Service};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use tokio::sync::OnceCell;

use self::upkeep::Due;
use self::wire::{Described, Metadata, Public, Signed};
use super::identifier::Identifier;
use super::remote::{Held, Place, digest_of};
use super::{KeyError, KeyType};

const KINDS: [(KeyType, &str); 4] = [
    (KeyType::Rsa2048, "RSA_2048"),
    (KeyType::Rsa4096, "RSA_4096"),
    (KeyType::EcP256, "ECC_NIST_P256"),
    (KeyType::EcP384, "ECC_NIST_P384"),
];

/// How long AWS keeps a key that is to be deleted, in days. It is the shortest that it takes.
const DELETED_AFTER: u32 = 7;

/// Tags of keys: the trust domain, the server, the id, whether the key is in use, and when its server last said so.
const DOMAIN: &str = "spire-server-td";
const SERVER: &str = "spire-server-id";
const ID: &str = "spire-key-id";
const ACTIVE: &str = "spire-active";
const LAST_UPDATE: &str = "spire-last-update";

/// Who calls, and whose keys they are.
#[derive(Clone)]
pub struct KmsSettings {
    /// Who calls AWS.
    pub caller: Arc<Caller>,
    /// Of the server.
    pub trust_domain: TrustDomain,
    /// Letters, digits, `/`, `_` and `-`: it is part of all aliases.
    pub server: Identifier,
    /// `key_policy_file`: the policy of new keys; without it one that lets the server's role do all, if it has a role.
    pub policy: Option<PathBuf>,
    /// `key_tags` of new keys.
    pub tags: BTreeMap<String, String>,
    /// `enable_tag_based_key_discovery`
    pub by_tags: bool,
}

impl fmt::Debug for KmsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsSettings")
            .field("server", &self.server)
            .field("policy", &self.policy)
            .field("tags", &self.tags)
            .field("by_tags", &self.by_tags)
            .finish_non_exhaustive()
    }
}

/// The keys of one server in a region of KMS. Their handles are ARNs.
pub struct AwsKms {
    caller: Arc<Caller>,
    clock: Arc<dyn Clock>,
    trust_domain: String,
    server: String,
    /// What aliases of the trust domain begin with, and those of the server.
    aliases_of_domain: String,
    aliases: String,
    /// What descriptions begin with.
    description: String,
    policy: OnceCell<Option<String>>,
    tags: BTreeMap<String, String>,
    by_tags: bool,
    due: Mutex<Due>,
}

fn failed(what: &str, fault: &Fault) -> KeyError {
    KeyError::Failed(format!("{what}: {fault}"))
}

impl AwsKms {
    /// Key Management Service
    pub const SERVICE: Service = Service::regional("KMS", "kms");
    const TAGGING: Service = Service::regional("RESOURCE_GROUPS_TAGGING_API", "tagging");

    /// For the keys of `settings`. Files are read; nothing is asked.
    ///
    /// # Errors
    /// A file cannot be read, or the identifier's cannot be made.
    pub fn new(settings: KmsSettings, clock: Arc<dyn Clock>) -> Result<Self, KeyError> {
        let policy = match &settings.policy {
            None => OnceCell::new(),
            Some(path) => {
                let read = std::fs::read_to_string(path);
                let read = read.map_err(|error| {
                    KeyError::Storage(format!(
                        "failed to read key_policy_file {}: {error}",
                        path.display()
                    ))
                })?;
                OnceCell::new_with(Some(Some(read)))
            }
        };
        let trust_domain = settings.trust_domain.as_str().to_owned();
        // Aliases have no dots.
        let domain = trust_domain.replace('.', "_");
        let server = settings.server.read()?;
        let steps: Vec<&str> = server.split('/').filter(|step| !step.is_empty()).collect();
        let aliases_of_domain = format!("alias/SPIRE_SERVER/{domain}/");
        Ok(Self {
            aliases: format!("{aliases_of_domain}{}/", steps.join("/")),
            aliases_of_domain,
            description: format!("SPIRE_SERVER_KEY/{domain}/"),
            caller: settings.caller,
            due: Mutex::new(Due::from(clock.now())),
            clock,
            trust_domain,
            server,
            policy,
            tags: settings.tags,
            by_tags: settings.by_tags,
        })
    }

    async fn ask<T: DeserializeOwned>(&self, operation: &str, fields: &Value) -> Result<T, Fault> {
        let operation = format!("TrentService.{operation}");
        let now = self.clock.now();
        self.caller
            .ask(Self::SERVICE, &operation, fields, now)
            .await
    }

    /// An operation that tells nothing that is wanted.
    async fn tell(&self, operation: &str, fields: &Value) -> Result<(), Fault> {
        self.ask::<IgnoredAny>(operation, fields).await.map(|_| ())
    }

    async fn describe(&self, key: &str) -> Result<Metadata, Fault> {
        let fields = json!({"KeyId": key});
        let described = self.ask::<Described>("DescribeKey", &fields).await;
        described.map(|it| it.key_metadata)
    }

    /// The key `key`, an ARN, an alias or its ARN, as that of `id`; `None` where it is not enabled.
    async fn held(&self, key: &str, id: &str) -> Result<Option<Held>, KeyError> {
        let described = self.describe(key).await;
        let Metadata {
            arn,
            key_spec,
            enabled,
            creation_date,
            ..
        } = described.map_err(|fault| failed("failed to describe key", &fault))?;
        if !enabled {
            return Ok(None);
        }
        let kind = KINDS.iter().find(|(_, spec)| *spec == key_spec);
        let (kind, _) = kind.ok_or_else(|| {
            KeyError::Failed(format!("key {arn} has an unsupported key spec: {key_spec}"))
        })?;
        let fields = json!({"KeyId": arn});
        let public = self.ask::<Public>("GetPublicKey", &fields).await;
        let public = public.map_err(|fault| failed("failed to get public key", &fault))?;
        let spki = STANDARD.decode(public.public_key);
        let spki =
            spki.map_err(|_| KeyError::Failed(format!("the public key of {arn} is not base64")))?;
        Ok(Some(Held {
            handle: arn,
            id: id.to_owned(),
            kind: *kind,
            spki,
            made: wire::time(creation_date),
        }))
    }

    fn alias(&self, id: &str) -> String {
        format!(
            "{}{}",
            self.aliases,
            id.replace('.', "_2e").replace('+', "_2b")
        )
    }

    /// Whose alias it is, if it is one of this server's.
    fn id_of(&self, alias: &str) -> Option<String> {
        let id = alias.strip_prefix(&self.aliases)?;
        // With further steps it is another server's, whose name begins alike.
        let own = !id.is_empty() && !id.contains('/');
        own.then(|| id.replace("_2e", ".").replace("_2b", "+"))
    }

    /// The tags of a key of this server.
    fn own_tags(&self, id: &str) -> Vec<(&str, String)> {
        vec![
            (DOMAIN, self.trust_domain.clone()),
            (SERVER, self.server.clone()),
            (ACTIVE, "true".into()),
            (ID, id.into()),
            (LAST_UPDATE, wire::seconds(self.clock.now())),
        ]
    }

    async fn tag(&self, key: &str, tags: &[(&str, String)]) -> Result<(), Fault> {
        let fields = json!({"KeyId": key, "Tags": wire::tags(tags)});
        self.tell("TagResource", &fields).await
    }

    /// The policy of new keys; `None` is KMS's own.
    async fn policy(&self) -> Result<Option<&str>, KeyError> {
        let policy = self.policy.get_or_try_init(async || {
            let identity = self.caller.identity(self.clock.now()).await;
            let (arn, account) =
                identity.map_err(|fault| failed("unable to create policy", &fault))?;
            let policy = wire::policy(&arn, &account);
            if policy.is_none() {
                tracing::warn!(
                    arn,
                    "The server has no role in AWS: its keys get KMS's default policy, which lets all of the account use them that IAM lets; give the server a role, or name a key_policy_file"
                );
            }
            Ok(policy)
        });
        policy.await.map(Option::as_deref)
    }

    /// Has the alias of `id` mean `key`.
    async fn point(&self, id: &str, key: &str) -> Result<(), KeyError> {
        let fields = json!({"AliasName": self.alias(id), "TargetKeyId": key});
        match self.tell("UpdateAlias", &fields).await {
            Err(fault) if fault.is("NotFoundException") => {
                let created = self.tell("CreateAlias", &fields).await;
                created.map_err(|fault| failed("failed to create alias", &fault))
            }
            told => told.map_err(|fault| failed("failed to update alias", &fault)),
        }
    }

    async fn finish(&self, arn: &str, id: &str) -> Result<Held, KeyError> {
        let held = self.held(arn, id).await?;
        let held = held.ok_or_else(|| KeyError::Failed(format!("new key {arn} is not enabled")))?;
        self.point(id, arn).await?;
        Ok(held)
    }
}

#[tonic::async_trait]
impl Place for AwsKms {
    async fn list(&self) -> Result<Vec<Held>, KeyError> {
        let mut all = Vec::new();
        let aliases = self.aliases(None).await;
        for alias in aliases.map_err(|fault| failed("failed to fetch aliases", &fault))? {
            let Some(id) = self.id_of(&alias.alias_name) else {
                continue;
            };
            let held = self.held(&alias.alias_arn, &id).await?;
            all.push(held.ok_or_else(|| {
                KeyError::Failed(format!(
                    "found disabled SPIRE key: {} of {}; enable it (or cancel its deletion), or delete the alias to begin with a new key",
                    alias.target_key_id.unwrap_or_default(),
                    alias.alias_name
                ))
            })?);
        }
        if !self.by_tags {
            tracing::warn!(
                "Keys are found by their aliases, which needs kms:ListKeys and kms:DescribeKey for all keys of the account; upstream is about to give this up for enable_tag_based_key_discovery = true"
            );
            return Ok(all);
        }
        let tagged = self.tagged(Some((SERVER, &self.server))).await?;
        for held in &all {
            if tagged.iter().any(|it| it.resource_arn == held.handle) {
                continue;
            }
            tracing::info!(key_arn = held.handle, "Key without tags gets them");
            if let Err(fault) = self.tag(&held.handle, &self.own_tags(&held.id)).await {
                tracing::warn!(key_arn = held.handle, %fault, "Key without tags did not get them, which is tried again at the next start");
            }
        }
        for resource in tagged {
            let Some(id) = resource.tag(ID).filter(|id| !id.is_empty()) else {
                tracing::warn!(
                    key_arn = resource.resource_arn,
                    "Key has no tag spire-key-id"
                );
                continue;
            };
            // What an alias says counts: beside it there are keys that were replaced, or never put in place.
            if all.iter().any(|held| held.id == id) {
                continue;
            }
            all.extend(self.held(&resource.resource_arn, id).await?);
        }
        Ok(all)
    }

    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError> {
        let spec = KINDS.iter().find(|(one, _)| *one == kind);
        let own = match self.by_tags {
            true => self.own_tags(id),
            false => Vec::new(),
        };
        let given = self.tags.iter();
        let given = given.map(|(key, value)| (key.as_str(), value.clone()));
        let tags: Vec<_> = own.into_iter().chain(given).collect();
        let fields = wire::fields([
            (
                "Description",
                Some(json!(format!("{}{id}", self.description))),
            ),
            ("KeyUsage", Some(json!("SIGN_VERIFY"))),
            ("KeySpec", spec.map(|(_, spec)| json!(spec))),
            ("Policy", self.policy().await?.map(Value::from)),
            ("Tags", (!tags.is_empty()).then(|| wire::tags(&tags))),
        ]);
        let created = self.ask::<Described>("CreateKey", &fields).await;
        let created = created.map_err(|fault| failed("failed to create key", &fault))?;
        let arn = created.key_metadata.arn;
        let finished = self.finish(&arn, id).await;
        if finished.is_err() {
            // Nobody will ever use it. If this fails too, the disposal of keys without an alias finds it.
            let _ = self.delete(&arn).await;
        }
        finished
    }

    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let algorithm = match key.kind {
            KeyType::EcP256 => "ECDSA_SHA_256",
            KeyType::EcP384 => "ECDSA_SHA_384",
            KeyType::Rsa2048 | KeyType::Rsa4096 => "RSASSA_PKCS1_V1_5_SHA_256",
        };
        let fields = json!({
            "KeyId": key.handle,
            "Message": STANDARD.encode(digest_of(key.kind, message)),
            "MessageType": "DIGEST",
            "SigningAlgorithm": algorithm,
        });
        let signed = self.ask::<Signed>("Sign", &fields).await;
        let signed = signed.map_err(|fault| failed("failed to sign", &fault))?;
        let strange = |_| KeyError::Failed("KMS's signature is not base64".into());
        STANDARD.decode(signed.signature).map_err(strange)
    }

    async fn delete(&self, handle: &str) -> Result<(), KeyError> {
        let fields = json!({"KeyId": handle, "PendingWindowInDays": DELETED_AFTER});
        match self.tell("ScheduleKeyDeletion", &fields).await {
            // It is gone, or about to go.
            Err(fault) if fault.is("NotFoundException") || fault.is("KMSInvalidStateException") => {
                Ok(())
            }
            told => told.map_err(|fault| failed("failed to schedule key deletion", &fault)),
        }
    }

    fn tended_every(&self) -> Option<Duration> {
        Some(upkeep::EVERY)
    }

    async fn tend(&self, held: &[Held]) -> Result<(), KeyError> {
        self.upkeep(held).await
    }
}

/// How long ago `then` was; nothing where it lies ahead.
fn since(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}
