//! Key manager `azure_key_vault`: keys in Azure Key Vault or a Managed HSM, over its REST interface.
//!
//! Names and tags are upstream's. Each key is one of its own, `spire-key-UUID-ID`: a vault deletes no single version.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use ah_spire_wire::azure::{Azure, CallError, Caller, Proof};
use ah_spire_wire::spki_of_jwks;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use spiffe::TrustDomain;
use uuid::Uuid;

use super::identifier::{Identifier, name_of, parts_of};
use super::remote::{Held, Place, digest_of, ecdsa_der, kind_of};
use super::{KeyError, KeyType};

const VERSION: &str = "api-version=7.4";
const PREFIX: &str = "spire-key";
const SERVER: &str = "spire-server-id";
const DOMAIN: &str = "spire-server-td";

/// How often keys in use are marked: Azure keeps the time of their last change.
const MARKED_EVERY: Duration = Duration::from_hours(6);

/// At every how manieth time keys of servers that are gone are looked for: every 48 hours.
const DISPOSED_EVERY: u32 = 8;

/// A key that was not marked for this long is nobody's.
const STALE: Duration = Duration::from_hours(14 * 24);

/// More pages than this are no list.
const MOST_PAGES: usize = 1000;

/// Which vault, as whom, and whose keys they are.
#[derive(Clone)]
pub struct KeyVaultSettings {
    /// Where Azure is.
    pub azure: Azure,
    /// `key_vault_uri`, without a `/` at its end.
    pub vault: String,
    /// What tokens are for, such as `https://vault.azure.net`.
    pub resource: String,
    /// `tenant_id`
    pub tenant: String,
    /// Who calls.
    pub proof: Proof,
    /// What the server's keys are marked with.
    pub server: Identifier,
    /// Whose keys they are.
    pub trust_domain: TrustDomain,
}

/// The keys of one server in a vault.
pub struct KeyVault {
    caller: Caller,
    server: String,
    domain: String,
    marked: AtomicU32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Listed>,
    #[serde(default)]
    next_link: Option<String>,
}

/// A key in a list.
#[derive(Deserialize)]
struct Listed {
    kid: String,
    #[serde(default)]
    attributes: Attributes,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
}

impl Listed {
    fn tag(&self, name: &str) -> Option<&str> {
        self.tags.as_ref()?.get(name).map(String::as_str)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes {
    enabled: bool,
    /// Seconds since 1970.
    created: u64,
    updated: u64,
}

/// A key with its public half.
#[derive(Deserialize)]
struct Bundle {
    key: Value,
    #[serde(default)]
    attributes: Attributes,
}

fn failed(what: &str, why: impl std::fmt::Display) -> KeyError {
    KeyError::Failed(format!("{what}: {why}"))
}

/// The name in `https://…/keys/NAME` and `https://…/keys/NAME/VERSION`, and the version.
fn names(kid: &str) -> Option<(&str, &str)> {
    let (_, names) = kid.split_once("/keys/")?;
    let (name, version) = names.split_once('/').unwrap_or((names, ""));
    let fits = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    (!name.is_empty() && fits(name) && fits(version)).then_some((name, version))
}

impl KeyVault {
    /// The vault of `settings`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// The server's identifier cannot be read.
    pub fn new(settings: KeyVaultSettings) -> Result<Self, KeyError> {
        Ok(Self {
            caller: Caller::of(
                settings.azure,
                settings.vault,
                &settings.resource,
                &settings.tenant,
                settings.proof,
            ),
            server: settings.server.read()?,
            domain: settings.trust_domain.as_str().to_owned(),
            marked: AtomicU32::new(0),
        })
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, CallError> {
        let path = format!("/keys{path}?{VERSION}");
        let now = SystemTime::now();
        self.caller.call(method, &path, body, now).await
    }

    async fn keys(&self) -> Result<Vec<Listed>, String> {
        let mut page: Page = self.call(Method::GET, "", None).await?;
        let mut all = Vec::new();
        for _ in 0..MOST_PAGES {
            all.append(&mut page.value);
            let Some(next) = page.next_link.filter(|link| !link.is_empty()) else {
                return Ok(all);
            };
            page = self.caller.next(&next, SystemTime::now()).await?;
        }
        Err(format!("the list has more than {MOST_PAGES} pages"))
    }

    fn is_of_domain(&self, key: &Listed) -> bool {
        key.tag(DOMAIN) == Some(self.domain.as_str())
    }

    fn held(&self, id: &str, bundle: Bundle) -> Result<Held, KeyError> {
        let kid = bundle.key.get("kid").and_then(Value::as_str);
        let kid = kid.unwrap_or_default().to_owned();
        let strange = |why: &str| KeyError::Failed(format!("key {kid}: {why}"));
        let (name, version) = names(&kid).ok_or_else(|| strange("this is no name of a key"))?;
        let spki =
            spki(bundle.key).ok_or_else(|| strange("its public half is no RSA or EC key"))?;
        let kind = kind_of(&spki).ok_or_else(|| strange("unsupported key type"))?;
        Ok(Held {
            handle: format!("{name}/{version}"),
            id: id.to_owned(),
            kind,
            spki,
            made: SystemTime::UNIX_EPOCH + Duration::from_secs(bundle.attributes.created),
        })
    }

    async fn remove(&self, name: &str) -> Result<(), CallError> {
        let path = format!("/{name}");
        match self.call::<Value>(Method::DELETE, &path, None).await {
            Err(error) if error.status != Some(StatusCode::NOT_FOUND) => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes the keys of servers of the trust domain that are gone.
    async fn dispose(&self, now: SystemTime) -> Result<(), String> {
        let before = now.checked_sub(STALE).unwrap_or(SystemTime::UNIX_EPOCH);
        for key in self.keys().await? {
            let updated = SystemTime::UNIX_EPOCH + Duration::from_secs(key.attributes.updated);
            let others = key.tag(SERVER).is_some_and(|id| id != self.server);
            if !self.is_of_domain(&key) || !others || updated >= before {
                continue;
            }
            if let Some((name, _)) = names(&key.kid) {
                tracing::info!(key = name, "Stale key is deleted");
                self.remove(name).await?;
            }
        }
        Ok(())
    }
}

/// The public half of a JSON Web Key as Azure has it: keys in hardware have a type of their own.
fn spki(mut key: Value) -> Option<Vec<u8>> {
    let fields = key.as_object_mut()?;
    let kty = fields.get("kty")?.as_str()?;
    let kty = kty.strip_suffix("-HSM").unwrap_or(kty).to_owned();
    fields.insert("kty".into(), kty.into());
    spki_of_jwks(&json!({ "keys": [key] })).into_values().next()
}

#[tonic::async_trait]
impl Place for KeyVault {
    async fn list(&self) -> Result<Vec<Held>, KeyError> {
        let listed = self.keys().await;
        let listed = listed.map_err(|why| failed("failed while listing keys", why))?;
        let mut all = Vec::new();
        for key in listed {
            if !self.is_of_domain(&key) || key.tag(SERVER) != Some(self.server.as_str()) {
                continue;
            }
            let name = names(&key.kid).map(|(name, _)| name);
            let Some((name, (_, id))) = name.and_then(|it| Some((it, parts_of(PREFIX, it)?)))
            else {
                tracing::warn!(key = key.kid, "The name of a key is none of this server's");
                continue;
            };
            let bundle: Result<Bundle, _> = self.call(Method::GET, &format!("/{name}"), None).await;
            let bundle = bundle.map_err(|why| failed("failed to fetch key details", why))?;
            if !bundle.attributes.enabled {
                return Err(KeyError::Failed(format!(
                    "found disabled SPIRE key {name}: enable it, or delete it to begin with a new one"
                )));
            }
            all.push(self.held(id, bundle)?);
        }
        Ok(all)
    }

    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError> {
        let (kty, field, value) = match kind {
            KeyType::Rsa2048 => ("RSA", "key_size", json!(2048)),
            KeyType::Rsa4096 => ("RSA", "key_size", json!(4096)),
            KeyType::EcP256 => ("EC", "crv", json!("P-256")),
            KeyType::EcP384 => ("EC", "crv", json!("P-384")),
        };
        let wanted = json!({
            "kty": kty,
            field: value,
            "key_ops": ["sign", "verify"],
            "tags": { DOMAIN: self.domain, SERVER: self.server },
        });
        let path = format!("/{}/create", name_of(PREFIX, Uuid::new_v4(), id));
        let made = self.call::<Bundle>(Method::POST, &path, Some(&wanted));
        let made = made
            .await
            .map_err(|why| failed("failed to create key", why))?;
        self.held(id, made)
    }

    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        #[derive(Deserialize)]
        struct Signed {
            value: String,
        }

        let algorithm = match key.kind {
            KeyType::EcP256 => "ES256",
            KeyType::EcP384 => "ES384",
            KeyType::Rsa2048 | KeyType::Rsa4096 => "RS256",
        };
        let digest = URL_SAFE_NO_PAD.encode(digest_of(key.kind, message));
        let asked = json!({ "alg": algorithm, "value": digest });
        let path = format!("/{}/sign", key.handle);
        let signed = self.call::<Signed>(Method::POST, &path, Some(&asked));
        let signed = signed.await.map_err(|why| failed("failed to sign", why))?;
        let signature = URL_SAFE_NO_PAD.decode(signed.value.trim_end_matches('='));
        let signature = signature.map_err(|_| failed("failed to sign", "no base64"))?;
        Ok(match key.kind {
            KeyType::EcP256 | KeyType::EcP384 => ecdsa_der(&signature),
            KeyType::Rsa2048 | KeyType::Rsa4096 => signature,
        })
    }

    async fn delete(&self, handle: &str) -> Result<(), KeyError> {
        let (name, _) = handle.split_once('/').unwrap_or((handle, ""));
        let deleted = self.remove(name).await;
        deleted.map_err(|why| failed("failed to delete key", why))
    }

    fn tended_every(&self) -> Option<Duration> {
        Some(MARKED_EVERY)
    }

    async fn tend(&self, held: &[Held]) -> Result<(), KeyError> {
        let mut worst = Ok(());
        for key in held {
            // The same as before: what changes is the time of the change.
            let same = json!({ "key_ops": ["sign", "verify"] });
            let path = format!("/{}", key.handle);
            let marked = self.call::<Value>(Method::PATCH, &path, Some(&same));
            if let Err(why) = marked.await {
                worst = Err(failed(&format!("failed to refresh {}", key.handle), why));
            }
        }
        let times = self.marked.fetch_add(1, Ordering::Relaxed);
        if times > 0 && times.is_multiple_of(DISPOSED_EVERY) {
            let disposed = self.dispose(SystemTime::now()).await;
            disposed.map_err(|why| failed("failed to dispose of stale keys", why))?;
        }
        worst
    }
}
