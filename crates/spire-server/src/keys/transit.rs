//! Key manager `hashicorp_vault`: keys in the transit engine of HashiCorp Vault or OpenBao.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::vault::{VaultAccess, VaultConfig};
use ah_identity_provider::{Clock, Explained};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::identifier::{Identifier, name_of, parts_of};
use super::remote::{Held, Place, digest_of};
use super::{KeyError, KeyType};

/// Where the transit engine is, how to log in, and whose keys they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitSettings {
    /// Addresses, TLS and login.
    pub access: VaultConfig,
    /// `transit_engine_path`
    pub mount: String,
    /// Letters, digits, `.`, `_` and `-`: it is the begin of all names.
    pub server: Identifier,
}

/// The keys of one server in a transit engine. They are called as upstream calls them, `SERVER-UUID-ID`.
pub struct Transit {
    access: VaultAccess,
    mount: String,
    server: String,
}

#[derive(Deserialize)]
struct Reply<T> {
    data: T,
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "type")]
    kind: String,
    /// By version.
    keys: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    public_key: String,
    creation_time: String,
}

#[derive(Deserialize)]
struct Signed {
    signature: String,
}

const KINDS: [(KeyType, &str); 4] = [
    (KeyType::Rsa2048, "rsa-2048"),
    (KeyType::Rsa4096, "rsa-4096"),
    (KeyType::EcP256, "ecdsa-p256"),
    (KeyType::EcP384, "ecdsa-p384"),
];

impl Transit {
    /// The engine of `settings`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub fn new(settings: TransitSettings, clock: Arc<dyn Clock>) -> Result<Self, KeyError> {
        let access = VaultAccess::new(settings.access, clock);
        Ok(Self {
            access: access.map_err(|error| failed("unusable settings", error.explained()))?,
            mount: settings.mount,
            server: settings.server.read()?,
        })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/keys/{name}", self.mount)
    }

    async fn held(&self, name: &str, id: &str) -> Result<Option<Held>, KeyError> {
        let found = self.access.get::<Reply<Key>>(&self.path(name)).await;
        let found = found.map_err(|error| failed("failed to get transit engine key", &error))?;
        let Some(Reply { data: key }) = found else {
            return Ok(None);
        };
        let strange = |why: &str| KeyError::Failed(format!("transit engine key {name}: {why}"));
        let kind = KINDS.iter().find(|(_, kind)| *kind == key.kind);
        let (kind, _) =
            kind.ok_or_else(|| strange(&format!("unsupported key type {}", key.kind)))?;
        // The one that it was made with. Others are of somebody who rotated it there, and the authority is not theirs.
        let numbered = key.keys.iter();
        let numbered =
            numbered.filter_map(|(number, key)| Some((number.parse::<u64>().ok()?, key)));
        let first = numbered.min_by_key(|(number, _)| *number);
        let (version, key) = first.ok_or_else(|| strange("it has no version"))?;
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(key.public_key.as_bytes());
        let spki = spki.map_err(|_| strange("its public key is not PEM"))?;
        let made = OffsetDateTime::parse(&key.creation_time, &Rfc3339);
        let made = made.map_err(|_| strange("its creation_time cannot be read"))?;
        Ok(Some(Held {
            handle: format!("{name}/{version}"),
            id: id.to_owned(),
            kind: *kind,
            spki: spki.to_vec(),
            made: SystemTime::from(made),
        }))
    }
}

fn failed(what: &str, why: &Explained) -> KeyError {
    KeyError::Failed(format!("{what}: {}", why.one_line()))
}

/// Name and version.
fn parts(handle: &str) -> (&str, &str) {
    handle.split_once('/').unwrap_or((handle, ""))
}

#[tonic::async_trait]
impl Place for Transit {
    async fn list(&self) -> Result<Vec<Held>, KeyError> {
        let path = format!("{}/keys?list=true", self.mount);
        let names = self.access.get::<Reply<Names>>(&path).await;
        let names =
            names.map_err(|error| failed("transit engine list keys call failed", &error))?;
        let mut all = Vec::new();
        for name in names.map(|reply| reply.data.keys).unwrap_or_default() {
            if let Some((_, id)) = parts_of(&self.server, &name) {
                all.extend(self.held(&name, id).await?);
            }
        }
        Ok(all)
    }

    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError> {
        let name = name_of(&self.server, Uuid::new_v4(), id);
        let told = KINDS.iter().find(|(one, _)| *one == kind);
        let told = told.map_or("", |(_, told)| told);
        let fields = BTreeMap::from([
            ("type", told),
            ("exportable", "false"),
            ("auto_rotate_period", "0"),
        ]);
        let made = self.access.write(&self.path(&name), &fields).await;
        made.map_err(|error| failed("failed to create transit engine key", &error))?;
        let held = self.held(&name, id).await?;
        held.ok_or_else(|| KeyError::Failed(format!("transit engine key {name} is gone again")))
    }

    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let (name, version) = parts(&key.handle);
        let input = STANDARD.encode(digest_of(key.kind, message));
        let mut fields = BTreeMap::from([
            ("input", input.as_str()),
            ("prehashed", "true"),
            ("marshaling_algorithm", "asn1"),
            ("key_version", version),
        ]);
        let hash = match key.kind {
            KeyType::EcP384 => "sha2-384",
            KeyType::EcP256 => "sha2-256",
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                fields.insert("signature_algorithm", "pkcs1v15");
                "sha2-256"
            }
        };
        let path = format!("{}/sign/{name}/{hash}", self.mount);
        let signed = self.access.post::<Reply<Signed>>(&path, &fields).await;
        let signed = signed.map_err(|error| failed("transit engine sign call failed", &error))?;
        // `vault:v1:` and base64.
        let signature = signed.data.signature.rsplit(':').next().unwrap_or_default();
        let strange = |_| KeyError::Failed("the transit engine's signature is not base64".into());
        STANDARD.decode(signature).map_err(strange)
    }

    async fn delete(&self, handle: &str) -> Result<(), KeyError> {
        let path = self.path(parts(handle).0);
        let there = self.access.get::<serde::de::IgnoredAny>(&path).await;
        let there = there.map_err(|error| failed("failed to get transit engine key", &error))?;
        if there.is_none() {
            return Ok(());
        }
        let fields = BTreeMap::from([("deletion_allowed", "true")]);
        let allowed = self.access.write(&format!("{path}/config"), &fields).await;
        allowed
            .map_err(|error| failed("failed to enable deletion of transit engine key", &error))?;
        let deleted = self.access.delete(&path).await;
        deleted.map_err(|error| failed("failed to delete transit engine key", &error))
    }
}
