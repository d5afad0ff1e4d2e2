//! Upstream authorities.

use std::time::Duration;

use ah_spire_wire::model::{JwtKey, X509Authority};
use ah_spire_wire::{Channel, key_kind};
use tonic::{Code, Status, Streaming};

use crate::Plugin;
use crate::packages::spire::plugin::server::upstreamauthority::v1 as wire;
use crate::packages::spire::plugin::types;
use crate::publish::key_to_wire;
use wire::upstream_authority_client::UpstreamAuthorityClient;

/// What makes a plugin an upstream authority.
pub const SERVICE: &str = "spire.plugin.server.upstreamauthority.v1.UpstreamAuthority";

const ENDED: &str = "plugin closed stream unexpectedly";

/// An upstream authority in a process of its own.
#[derive(Clone)]
pub struct Upstream(Plugin);

/// A CA that was signed.
pub struct Minted {
    /// DER: the CA, then its issuers up to a root.
    pub chain: Vec<Vec<u8>>,
    /// Its roots.
    pub roots: Vec<X509Authority>,
    /// What its roots are later.
    pub later: Later<wire::MintX509caResponse>,
}

/// JWT keys that are published upstream.
pub struct Published {
    /// All of them.
    pub keys: Vec<JwtKey>,
    /// What they are later.
    pub later: Later<wire::PublishJwtKeyResponse>,
}

/// What a plugin goes on to say for as long as it likes.
pub struct Later<T> {
    plugin: Plugin,
    stream: Streaming<T>,
}

fn client(channel: Channel) -> UpstreamAuthorityClient<Channel> {
    UpstreamAuthorityClient::with_origin(channel, Channel::origin())
}

impl Upstream {
    /// `plugin` has to be one of [`SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    /// `MintX509CAAndSubscribe`: signs the CA that `csr` (PKCS #10, DER) asks for.
    ///
    /// # Errors
    /// What the plugin says, or that its answer makes no sense.
    pub async fn mint(&self, csr: &[u8], ttl: Duration) -> Result<Minted, Status> {
        let request = wire::MintX509caRequest {
            csr: csr.to_vec(),
            preferred_ttl: i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX),
        };
        let stream = self
            .0
            .call(async |channel| client(channel).mint_x509ca_and_subscribe(request).await);
        let mut later = Later {
            plugin: self.0.clone(),
            stream: stream.await?,
        };
        let first = later.first().await?;
        if first.x509_ca_chain.is_empty() {
            return Err(self.0.failed("plugin response missing X.509 CA chain"));
        }
        Ok(Minted {
            chain: { first.x509_ca_chain }
                .into_iter()
                .map(|certificate| certificate.asn1)
                .collect(),
            roots: roots(&self.0, first.upstream_x509_roots)?,
            later,
        })
    }

    /// `PublishJWTKeyAndSubscribe`; `None` where the plugin does not deal in JWT keys.
    ///
    /// # Errors
    /// As [`Self::mint`].
    pub async fn publish(&self, key: &JwtKey) -> Result<Option<Published>, Status> {
        let request = wire::PublishJwtKeyRequest {
            jwt_key: Some(key_to_wire(key)),
        };
        let first = async {
            let stream = self
                .0
                .call(async |channel| client(channel).publish_jwt_key_and_subscribe(request).await);
            let mut later = Later {
                plugin: self.0.clone(),
                stream: stream.await?,
            };
            let first = later.first().await?;
            Ok(Published {
                keys: keys(&self.0, first.upstream_jwt_keys)?,
                later,
            })
        };
        first.await.map(Some).or_else(not_there)
    }

    /// `SubscribeToLocalBundle`; `None` where the plugin has no such thing.
    ///
    /// # Errors
    /// As [`Self::mint`].
    pub async fn bundle(
        &self,
    ) -> Result<Option<Later<wire::SubscribeToLocalBundleResponse>>, Status> {
        let request = wire::SubscribeToLocalBundleRequest {};
        let stream = self
            .0
            .call(async |channel| client(channel).subscribe_to_local_bundle(request).await);
        let later = stream.await.map(|stream| {
            Some(Later {
                plugin: self.0.clone(),
                stream,
            })
        });
        later.or_else(not_there)
    }
}

fn not_there<T>(status: Status) -> Result<Option<T>, Status> {
    match status.code() {
        Code::Unimplemented => Ok(None),
        _ => Err(status),
    }
}

impl<T> Later<T> {
    async fn first(&mut self) -> Result<T, Status> {
        let answer = self.plugin.wait(self.stream.message()).await?;
        answer.ok_or_else(|| self.plugin.failed(ENDED))
    }

    /// However long it takes; `None` once the plugin says no more.
    async fn next(&mut self) -> Result<Option<T>, Status> {
        let answer = self.stream.message().await;
        answer.map_err(|status| self.plugin.told(&status))
    }
}

impl Later<wire::MintX509caResponse> {
    /// The roots when they change. After `None` and after a stream's own error there are no more; a message that makes no
    /// sense is [`Code::DataLoss`].
    ///
    /// # Errors
    /// What the plugin says, or that it makes no sense.
    pub async fn roots(&mut self) -> Result<Option<Vec<X509Authority>>, Status> {
        let Some(answer) = self.next().await? else {
            return Ok(None);
        };
        if !answer.x509_ca_chain.is_empty() {
            let why = "plugin response has an X.509 CA chain after the first response";
            return Err(senseless(self.plugin.failed(why)));
        }
        roots(&self.plugin, answer.upstream_x509_roots)
            .map(Some)
            .map_err(senseless)
    }
}

impl Later<wire::PublishJwtKeyResponse> {
    /// The keys when they change, as [`Later::roots`].
    ///
    /// # Errors
    /// As there.
    pub async fn keys(&mut self) -> Result<Option<Vec<JwtKey>>, Status> {
        let Some(answer) = self.next().await? else {
            return Ok(None);
        };
        keys(&self.plugin, answer.upstream_jwt_keys)
            .map(Some)
            .map_err(senseless)
    }
}

impl Later<wire::SubscribeToLocalBundleResponse> {
    /// The bundle at the beginning and when it changes, as [`Later::roots`].
    ///
    /// # Errors
    /// As there.
    pub async fn bundle(&mut self) -> Result<Option<(Vec<X509Authority>, Vec<JwtKey>)>, Status> {
        let Some(answer) = self.next().await? else {
            return Ok(None);
        };
        let both = || {
            let roots = roots(&self.plugin, answer.upstream_x509_roots)?;
            Ok((roots, keys(&self.plugin, answer.upstream_jwt_keys)?))
        };
        both().map(Some).map_err(senseless)
    }
}

fn senseless(status: Status) -> Status {
    Status::data_loss(status.message())
}

fn roots(plugin: &Plugin, told: Vec<types::X509Certificate>) -> Result<Vec<X509Authority>, Status> {
    if told.is_empty() {
        return Err(plugin.failed("plugin response missing upstream X.509 roots"));
    }
    let roots = told.into_iter().map(|root| {
        ah_spire_wire::bundle::is_certificate(&root.asn1).map_err(|why| {
            plugin.failed(&format!(
                "plugin response has malformed upstream X.509 roots: {why}"
            ))
        })?;
        Ok(X509Authority {
            der: root.asn1,
            tainted: root.tainted,
        })
    });
    roots.collect()
}

fn keys(plugin: &Plugin, told: Vec<types::JwtKey>) -> Result<Vec<JwtKey>, Status> {
    let keys = told.into_iter().map(|key| {
        let wrong = |why: &str| plugin.failed(&format!("invalid plugin response: {why}"));
        if key.key_id.is_empty() {
            return Err(wrong("missing key ID for JWT key"));
        }
        key_kind(&key.public_key).map_err(|error| {
            wrong(&format!(
                "malformed public key for JWT key {:?}: {error}",
                key.key_id
            ))
        })?;
        Ok(JwtKey {
            spki: key.public_key,
            id: key.key_id,
            expires_at: key.expires_at,
            tainted: key.tainted,
        })
    });
    keys.collect()
}
