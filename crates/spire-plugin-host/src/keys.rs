//! Key managers of server and agent, which speak the same under two names.

use ah_spire_plugin::settings::KeyType;
use ah_spire_wire::{Channel, KeyKind, key_kind};
use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tonic::{Code, Status};

use crate::Plugin;
use crate::packages::spire::plugin::agent::keymanager::v1 as agent;
use crate::packages::spire::plugin::server::keymanager::v1 as server;

/// What makes a plugin a key manager of the agent.
pub const AGENT_SERVICE: &str = "spire.plugin.agent.keymanager.v1.KeyManager";

/// What makes a plugin a key manager of the server.
pub const SERVER_SERVICE: &str = "spire.plugin.server.keymanager.v1.KeyManager";

/// SHA-256 as it is numbered on the wire.
const WIRE_SHA256: i32 = 5;

/// SHA-384 as it is numbered on the wire.
const WIRE_SHA384: i32 = 6;

/// Whose key manager it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of [`AGENT_SERVICE`].
    Agent,
    /// Of [`SERVER_SERVICE`].
    Server,
}

/// Keys in a process of its own.
#[derive(Clone)]
pub struct Keys {
    plugin: Plugin,
    side: Side,
}

/// The public half of a key, and the way to its signatures.
#[derive(Clone)]
pub struct Key {
    keys: Keys,
    id: String,
    fingerprint: String,
    kind: KeyKind,
    spki: Vec<u8>,
}

/// How an RSA key signs. Others have one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// PKCS #1 v1.5
    Pkcs1,
    /// PSS with a salt of 32 bytes, as TLS 1.3 wants it.
    Pss,
}

/// What the wire has of a public key.
struct Told {
    id: String,
    fingerprint: String,
    spki: Vec<u8>,
}

/// What a key is asked to sign.
struct Ask {
    id: String,
    digest: Vec<u8>,
    hash: i32,
    /// In bytes, for PSS.
    salt: Option<i32>,
}

/// The calls of one side.
macro_rules! calls {
    ($module:ident, $wire:ident) => {
        mod $module {
            use super::$wire as wire;
            use super::{Ask, Channel, Plugin, Status, Told};
            use wire::key_manager_client::KeyManagerClient;
            use wire::sign_data_request::{PssOptions, SignerOpts};

            fn client(channel: Channel) -> KeyManagerClient<Channel> {
                KeyManagerClient::with_origin(channel, Channel::origin())
            }

            fn told(key: wire::PublicKey) -> Told {
                Told {
                    id: key.id,
                    fingerprint: key.fingerprint,
                    spki: key.pkix_data,
                }
            }

            pub(super) async fn generate(
                plugin: &Plugin,
                key_id: &str,
                key_type: i32,
            ) -> Result<Option<Told>, Status> {
                let request = wire::GenerateKeyRequest {
                    key_id: key_id.to_owned(),
                    key_type,
                };
                let answer =
                    plugin.call(async |channel| client(channel).generate_key(request).await);
                Ok(answer.await?.public_key.map(told))
            }

            pub(super) async fn key(plugin: &Plugin, id: &str) -> Result<Option<Told>, Status> {
                let request = wire::GetPublicKeyRequest {
                    key_id: id.to_owned(),
                };
                let answer =
                    plugin.call(async |channel| client(channel).get_public_key(request).await);
                Ok(answer.await?.public_key.map(told))
            }

            pub(super) async fn keys(plugin: &Plugin) -> Result<Vec<Told>, Status> {
                let request = wire::GetPublicKeysRequest {};
                let answer =
                    plugin.call(async |channel| client(channel).get_public_keys(request).await);
                Ok(answer.await?.public_keys.into_iter().map(told).collect())
            }

            /// The signature, and the fingerprint of the key that made it.
            pub(super) async fn sign(
                plugin: &Plugin,
                ask: Ask,
            ) -> Result<(Vec<u8>, String), Status> {
                let options = match ask.salt {
                    None => SignerOpts::HashAlgorithm(ask.hash),
                    Some(salt_length) => SignerOpts::PssOptions(PssOptions {
                        salt_length,
                        hash_algorithm: ask.hash,
                    }),
                };
                let request = wire::SignDataRequest {
                    key_id: ask.id,
                    data: ask.digest,
                    signer_opts: Some(options),
                };
                let answer = plugin.call(async |channel| client(channel).sign_data(request).await);
                let answer = answer.await?;
                Ok((answer.signature, answer.key_fingerprint))
            }
        }
    };
}

calls!(of_agent, agent);
calls!(of_server, server);

impl Keys {
    /// `plugin` has to be one of the service of `side`.
    pub fn new(plugin: Plugin, side: Side) -> Self {
        Self { plugin, side }
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.plugin.name()
    }

    /// Makes a key, in place of the one with this name if there is one.
    ///
    /// # Errors
    /// What the plugin says, or that its answer makes no sense.
    pub async fn generate(&self, id: &str, kind: KeyType) -> Result<Key, Status> {
        let (number, expected) = match kind {
            KeyType::EcP256 => (1, KeyKind::EcP256),
            KeyType::EcP384 => (2, KeyKind::EcP384),
            KeyType::Rsa2048 => (3, KeyKind::Rsa),
            KeyType::Rsa4096 => (4, KeyKind::Rsa),
        };
        let told = match self.side {
            Side::Agent => of_agent::generate(&self.plugin, id, number).await,
            Side::Server => of_server::generate(&self.plugin, id, number).await,
        };
        let told = told?.ok_or_else(|| {
            let why = format!("plugin response empty for key {id:?}");
            self.plugin.failed(&why)
        })?;
        let key = self.key_of(id, told)?;
        if key.kind != expected {
            let why = format!(
                "plugin made a key {id:?} of another type than {}",
                kind.as_str()
            );
            return Err(self.plugin.failed(&why));
        }
        Ok(key)
    }

    /// The key called `id`, if there is one.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn key(&self, id: &str) -> Result<Option<Key>, Status> {
        let told = match self.side {
            Side::Agent => of_agent::key(&self.plugin, id).await,
            Side::Server => of_server::key(&self.plugin, id).await,
        };
        match told {
            Ok(told) => told.map(|told| self.key_of(id, told)).transpose(),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// All keys, in the plugin's order.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn keys(&self) -> Result<Vec<Key>, Status> {
        let told = match self.side {
            Side::Agent => of_agent::keys(&self.plugin).await,
            Side::Server => of_server::keys(&self.plugin).await,
        };
        let keys = told?.into_iter().map(|told| {
            let id = told.id.clone();
            self.key_of(&id, told)
        });
        keys.collect()
    }

    fn key_of(&self, id: &str, told: Told) -> Result<Key, Status> {
        let failed = |why: String| self.plugin.failed(&why);
        if told.id != id {
            return Err(failed(format!(
                "plugin response has unexpected key id {:?} for key {id:?}",
                told.id
            )));
        }
        if told.spki.is_empty() {
            return Err(failed(format!(
                "plugin response missing public key PKIX data for key {id:?}"
            )));
        }
        let kind = key_kind(&told.spki).map_err(|error| {
            failed(format!(
                "unable to parse public key PKIX data for key {id:?}: {error}"
            ))
        })?;
        Ok(Key {
            keys: self.clone(),
            id: told.id,
            fingerprint: told.fingerprint,
            kind,
            spki: told.spki,
        })
    }
}

impl Key {
    /// Its name in the key manager.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Signs `message`: RSA with SHA-256, P-256 with SHA-256, P-384 with SHA-384. An ECDSA signature is the DER of RFC
    /// 3279 §2.2.3. What does not verify is no signature.
    ///
    /// # Errors
    /// As [`Keys::generate`].
    pub async fn sign(&self, message: &[u8], padding: Padding) -> Result<Vec<u8>, Status> {
        let plugin = &self.keys.plugin;
        let failed = |why: String| plugin.failed(&why);
        let (algorithm, hash, salt): (&dyn VerificationAlgorithm, _, _) = match (self.kind, padding)
        {
            (KeyKind::EcP256, _) => (&ECDSA_P256_SHA256_ASN1, WIRE_SHA256, None),
            (KeyKind::EcP384, _) => (&ECDSA_P384_SHA384_ASN1, WIRE_SHA384, None),
            (KeyKind::Rsa, Padding::Pkcs1) => (&RSA_PKCS1_2048_8192_SHA256, WIRE_SHA256, None),
            (KeyKind::Rsa, Padding::Pss) => (&RSA_PSS_2048_8192_SHA256, WIRE_SHA256, Some(32)),
            (KeyKind::EcP521 | KeyKind::Ed25519, _) => {
                let why = format!("key {:?} is of a type that is not used here", self.id);
                return Err(failed(why));
            }
        };
        let digest_by = if hash == WIRE_SHA384 {
            &SHA384
        } else {
            &SHA256
        };
        let ask = Ask {
            id: self.id.clone(),
            digest: digest(digest_by, message).as_ref().to_vec(),
            hash,
            salt,
        };
        let (signature, fingerprint) = match self.keys.side {
            Side::Agent => of_agent::sign(plugin, ask).await?,
            Side::Server => of_server::sign(plugin, ask).await?,
        };
        if signature.is_empty() {
            return Err(failed("plugin returned empty signature data".to_owned()));
        }
        if fingerprint != self.fingerprint {
            return Err(failed(format!(
                "fingerprint {:?} on key {:?} does not match {fingerprint:?}",
                self.fingerprint, self.id
            )));
        }
        let verified = UnparsedPublicKey::new(algorithm, &self.spki).verify(message, &signature);
        verified.map_err(|_| failed(format!("the signature of key {:?} is none", self.id)))?;
        Ok(signature)
    }

    /// As [`Self::sign`] for callers that cannot wait for a future: it holds a thread of the runtime, which has to have
    /// several.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_blocking(&self, message: &[u8], padding: Padding) -> Result<Vec<u8>, Status> {
        blocking(self.sign(message, padding))
    }
}

/// The answer of `call`, with this thread held until it is there.
///
/// # Errors
/// There is no runtime that could do the rest of the work meanwhile.
pub fn blocking<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(|| runtime.block_on(call))
        }
        _ => Err(Status::internal(
            "keys of plugins can only be used in a runtime of several threads",
        )),
    }
}
