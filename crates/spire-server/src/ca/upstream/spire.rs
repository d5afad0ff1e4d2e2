//! Upstream authority `spire`: a server of the same trust domain above this one (nested SPIRE).
//!
//! This server is a workload of an agent of the server above: by the X509-SVID of that agent's Workload API it is a
//! downstream server there. Its CA is signed above, its JWT keys are published above, and the bundle is the one above.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ah_identity_provider::spiffe::{Choice, Endpoint, SpiffeConfig, SpiffeProvider};
use ah_identity_provider::{Backoff, Clock, Identity, Provider as _};
use ah_spire_wire::bundle::{bundle_from_wire, jwt_key_from_wire, jwt_key_to_wire};
use ah_spire_wire::model::JwtKey;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::bundle::{GetBundleRequest, PublishJwtAuthorityRequest};
use ah_spire_wire::server::svid::NewDownstreamX509caRequest;
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES};
use ah_tls::{HandshakeFault, OwnKey, ServerTrust, SpiffeClient, Trust};
use spiffe::{SpiffeId, TrustDomain};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamBundle, UpstreamError};

/// How often the bundle above is looked at.
const POLL: Duration = Duration::from_secs(5);
/// How long the Workload API may take to give the first X509-SVID.
const IDENTITY: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);

/// Where the server above is, and who this one is to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpireSettings {
    /// `server_address`
    pub host: String,
    /// `server_port`
    pub port: u16,
    /// `workload_api_socket`
    pub workload_api: Endpoint,
    /// Of both servers.
    pub trust_domain: TrustDomain,
    /// `experimental.require_pq_kem`
    pub post_quantum_only: bool,
}

/// A server above this one. Nothing is asked of anybody before it is used.
pub struct SpireAuthority {
    client: Arc<Client>,
    tasks: OnceLock<[AbortOnDropHandle<()>; 2]>,
}

struct Client {
    settings: SpireSettings,
    clock: Arc<dyn Clock>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    /// With the identity that it was made with.
    connection: Mutex<Option<(Arc<Identity>, Channel)>>,
    bundle: watch::Sender<Option<Arc<UpstreamBundle>>>,
}

impl SpireAuthority {
    /// For the server above of `settings`.
    pub fn new(settings: SpireSettings, clock: Arc<dyn Clock>) -> Self {
        let client = Client {
            settings,
            clock,
            identity: watch::Sender::new(None),
            connection: Mutex::new(None),
            bundle: watch::Sender::new(None),
        };
        Self {
            client: Arc::new(client),
            tasks: OnceLock::new(),
        }
    }

    fn started(&self) -> &Arc<Client> {
        self.tasks.get_or_init(|| {
            let (identities, bundles) = (self.client.clone(), self.client.clone());
            [
                tokio::spawn(async move { identities.follow_identity().await }),
                tokio::spawn(async move { bundles.follow_bundle().await }),
            ]
            .map(AbortOnDropHandle::new)
        });
        &self.client
    }
}

impl UpstreamAuthority for SpireAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(async move {
            let what = "unable to request a new Downstream X509CA";
            let client = self.started();
            let request = NewDownstreamX509caRequest {
                csr: csr.to_vec(),
                preferred_ttl: i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX),
            };
            let mut svids = SvidClient::with_origin(client.channel().await?, Channel::origin())
                .max_decoding_message_size(MAX_MESSAGE_BYTES);
            let answer = called(what, svids.new_downstream_x509ca(request)).await?;
            // The answer's own roots do not say which of them are tainted.
            let bundle = client.bundle().await?;
            let roots = bundle.x509.iter().flatten();
            let good = roots.filter(|root| !root.tainted);
            let minted = MintedCa {
                chain: answer.ca_cert_chain,
                roots: good.map(|root| root.der.clone()).collect(),
            };
            client.publish(bundle);
            Ok(minted)
        })
    }

    fn publish_jwt_key<'a>(&'a self, key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async move {
            let what = "failed to push JWT authority";
            let client = self.started();
            let request = PublishJwtAuthorityRequest {
                jwt_authority: Some(jwt_key_to_wire(key)),
            };
            let mut bundles = BundleClient::with_origin(client.channel().await?, Channel::origin())
                .max_decoding_message_size(MAX_MESSAGE_BYTES);
            let answer = called(what, bundles.publish_jwt_authority(request)).await?;
            let keys = answer.jwt_authorities.iter().map(jwt_key_from_wire);
            let keys = keys.collect::<Result<_, _>>();
            keys.map(Some).map_err(|error| because(what, error))
        })
    }

    fn bundles(&self) -> Option<watch::Receiver<Option<Arc<UpstreamBundle>>>> {
        Some(self.started().bundle.subscribe())
    }
}

impl Client {
    /// Keeps the newest X509-SVID of the Workload API.
    async fn follow_identity(&self) {
        let mut provider = SpiffeProvider::new(SpiffeConfig {
            endpoint: self.settings.workload_api.clone(),
            choice: Choice::default(),
        });
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            match provider.next().await {
                Ok(identity) => {
                    backoff.reset();
                    tracing::debug!("X509-SVID for the upstream server received");
                    self.identity.send_replace(Some(Arc::new(identity)));
                }
                Err(error) => {
                    let why = error.explained().one_line();
                    tracing::warn!(error = why, "No X509-SVID for the upstream server");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Keeps the newest bundle of the server above. While that does not answer, the last one stands.
    async fn follow_bundle(&self) {
        let mut failing = false;
        loop {
            match self.bundle().await {
                Ok(bundle) => {
                    failing = false;
                    self.publish(bundle);
                }
                Err(error) if failing => tracing::debug!(%error, "Upstream bundle not fetched"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(%error, "Failed to fetch the bundle of the upstream server; it is tried again");
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn publish(&self, bundle: UpstreamBundle) {
        self.bundle.send_if_modified(|newest| {
            let changed = newest.as_deref() != Some(&bundle);
            if changed {
                *newest = Some(Arc::new(bundle));
            }
            changed
        });
    }

    async fn bundle(&self) -> Result<UpstreamBundle, UpstreamError> {
        let what = "failed to fetch bundle from upstream server";
        let mut bundles = BundleClient::with_origin(self.channel().await?, Channel::origin())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = GetBundleRequest { output_mask: None };
        let bundle = called(what, bundles.get_bundle(request)).await?;
        let bundle = bundle_from_wire(&bundle).map_err(|error| because(what, error))?;
        let ours = &self.settings.trust_domain;
        if bundle.trust_domain != *ours {
            return Err(UpstreamError(format!(
                "the upstream server is of the trust domain {}, and this one of {ours}: nested servers share one",
                bundle.trust_domain
            )));
        }
        Ok(UpstreamBundle {
            x509: Some(bundle.x509),
            jwt: Some(bundle.jwt),
        })
    }

    /// The connection, made anew with a newer identity or when it ended.
    async fn channel(&self) -> Result<Channel, UpstreamError> {
        let identity = self.newest_identity().await?;
        let mut connection = self.connection.lock().await;
        if let Some((of, channel)) = &*connection
            && Arc::ptr_eq(of, &identity)
            && !channel.is_closed()
        {
            return Ok(channel.clone());
        }
        let channel = tokio::time::timeout(CONNECT, Box::pin(self.connect(&identity)))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {}s", CONNECT.as_secs())));
        let channel = channel.map_err(|why| {
            let SpireSettings { host, port, .. } = &self.settings;
            UpstreamError(format!("error dialing {host}:{port}: {why}"))
        })?;
        *connection = Some((identity, channel.clone()));
        Ok(channel)
    }

    async fn newest_identity(&self) -> Result<Arc<Identity>, UpstreamError> {
        let mut newest = self.identity.subscribe();
        let there = newest.wait_for(Option::is_some);
        let there = tokio::time::timeout(IDENTITY, there).await;
        let identity = there.ok().and_then(Result::ok);
        identity
            .and_then(|identity| identity.clone())
            .ok_or_else(|| {
                UpstreamError(format!(
                    "unable to create X509Source: no X509-SVID from the Workload API at {} within {}s; check workload_api_socket, and that a registration entry with -downstream names this process",
                    self.settings.workload_api,
                    IDENTITY.as_secs()
                ))
            })
    }

    async fn connect(&self, identity: &Identity) -> Result<Channel, String> {
        let SpireSettings {
            host,
            port,
            trust_domain,
            ..
        } = &self.settings;
        let server = SpiffeId::from_segments(trust_domain.clone(), &["spire", "server"]);
        let key = OwnKey::from(identity.key().clone());
        let tls = SpiffeClient::new(
            server.map_err(|error| error.to_string())?,
            ServerTrust::Roots(Arc::new(Trust::new(identity.bundles()))),
            Some((identity.chain().to_vec(), &key)),
            self.settings.post_quantum_only,
            self.clock.clone(),
        )
        .map_err(|error| error.one_line())?;
        let tcp = TcpStream::connect((host.as_str(), *port)).await;
        let tcp = tcp.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let (stream, _) = tls.handshake(tcp).await.map_err(|fault| match fault {
            HandshakeFault::Refused(why) => why.explained().one_line(),
            HandshakeFault::Ended(error) => format!("TLS: {error}"),
        })?;
        Channel::over(stream)
            .await
            .map_err(|error| error.to_string())
    }
}

async fn called<T>(
    what: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, UpstreamError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(because(
            what,
            format!("{:?}: {}", status.code(), status.message()),
        )),
        Err(_) => Err(because(
            what,
            format!("no answer within {}s", CALL.as_secs()),
        )),
    }
}

fn because(what: &str, why: impl Display) -> UpstreamError {
    UpstreamError(format!("{what}: {why}"))
}
