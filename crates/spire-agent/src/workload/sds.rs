//! Envoy's secret discovery (`envoy.service.secret.v3`), the variant that tells the state of the world.
//!
//! A stream has one list of names. It is answered at once and whenever the caller's set changes, each answer with a nonce
//! of its own; a request that repeats an older nonce is out of date and is not answered.

mod envoy;
mod secrets;

use std::collections::BTreeSet;
use std::sync::Arc;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_plugin::agent::SdsConfig;
use ah_spire_wire::envoy::discovery::DiscoveryRequest;
use bytes::Bytes;
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status, Streaming};

use super::caller::Attest;
use super::quota::CallPlace;
use super::refusal::{Refused, tell_no_identity};
use super::service::{Method, Shared};
use crate::identities::{Identities, WorkloadUpdate};
use crate::metrics::OpenCall;
use crate::wire::{message_up_to, messages, streaming, unary};
use envoy::validates_spiffe;
use secrets::Wanted;

pub(super) const SERVICE: &str = "envoy.service.secret.v3.SecretDiscoveryService";

/// The largest request, in bytes: an Envoy tells of itself what all its extensions are.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Answers the method `name` of [`SERVICE`].
pub(super) async fn answer<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    peer: &PeerInfo,
    name: String,
    request: Request<Incoming>,
    place: CallPlace,
) -> Response<Body> {
    let Some(config) = &shared.config.sds else {
        return Status::unimplemented(format!("unknown service {SERVICE}")).into_http();
    };
    let open = shared.metrics.sds_calls.begin();
    match Method::named(SERVICE, &name) {
        Some(Method::StreamSecrets) => {
            match stream(shared, config, peer, request, (place, open)).await {
                Ok(stream) => streaming(stream),
                Err(status) => status.into_http(),
            }
        }
        Some(Method::FetchSecrets) => unary(fetch(shared, config, peer, request).await),
        _ => Status::unimplemented(match name.as_str() {
            "DeltaSecrets" => "Method is not implemented".to_owned(),
            _ => format!("unknown method {name} for service {SERVICE}"),
        })
        .into_http(),
    }
}

async fn fetch<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    config: &SdsConfig,
    peer: &PeerInfo,
    request: Request<Incoming>,
) -> Result<Bytes, Status> {
    let request: DiscoveryRequest = message_up_to(request, MAX_REQUEST_BYTES).await?;
    let selectors = shared.attest_for(peer, Method::FetchSecrets).await?;
    let sets = shared.identities.subscribe(&selectors).await;
    let update = Arc::clone(&sets.borrow());
    let validates_spiffe = validates_spiffe(request.node.as_ref(), config);
    let wanted = Wanted {
        names: names_of(&request),
        type_url: request.type_url,
        validates_spiffe,
    };
    let refused = Refused::of(peer, selectors);
    let secrets = wanted.secrets(config, &update);
    let secrets = secrets.inspect_err(|why| tell(shared, &refused, &update, why))?;
    Ok(wanted.response(&secrets, None))
}

async fn stream<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    config: &SdsConfig,
    peer: &PeerInfo,
    request: Request<Incoming>,
    held: (CallPlace, OpenCall),
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<I, A>, Status> {
    let selectors = shared.attest_for(peer, Method::StreamSecrets).await?;
    let mut sets = shared.identities.subscribe(&selectors).await;
    let update = Arc::clone(&sets.borrow_and_update());
    let conversation = Conversation {
        shared: Arc::clone(shared),
        config: config.clone(),
        requests: messages(request, MAX_REQUEST_BYTES),
        sets,
        update,
        version: 1,
        nonce: None,
        validates_spiffe: !config.disable_spiffe_cert_validation,
        wanted: None,
        refused: Refused::of(peer, selectors),
        held,
    };
    Ok(unfold(Some(conversation), |conversation| async move {
        let mut conversation = conversation?;
        match conversation.next().await {
            Ok(Some(response)) => Some((Ok(response), Some(conversation))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

/// One stream.
struct Conversation<I, A> {
    shared: Arc<Shared<I, A>>,
    config: SdsConfig,
    requests: Streaming<DiscoveryRequest>,
    sets: watch::Receiver<Arc<WorkloadUpdate>>,
    update: Arc<WorkloadUpdate>,
    /// Counts the sets of this stream.
    version: u64,
    /// Of the last response.
    nonce: Option<String>,
    /// As the last request that described its Envoy had it: the later ones need not.
    validates_spiffe: bool,
    /// As the last request that was up to date had it.
    wanted: Option<Wanted>,
    refused: Refused,
    #[expect(dead_code, reason = "held for as long as the stream is open")]
    held: (CallPlace, OpenCall),
}

impl<I: Identities, A: Send + Sync + 'static> Conversation<I, A> {
    /// The next response; `None` when the caller has no more requests.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            tokio::select! {
                request = self.requests.next() => match request {
                    Some(Ok(request)) => if !self.take(request) {
                        continue;
                    },
                    None => return Ok(None),
                    Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                    Some(Err(status)) => return Err(status),
                },
                changed = self.sets.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the agent is stopping"));
                    }
                    self.update = Arc::clone(&self.sets.borrow_and_update());
                    self.version = self.version.saturating_add(1);
                }
            }
            if let Some(wanted) = &self.wanted {
                let (config, update) = (&self.config, &self.update);
                let secrets = wanted.secrets(config, update).inspect_err(|why| {
                    tell(&self.shared, &self.refused, update, why);
                })?;
                let nonce = format!("{:08x}", rand::random::<u32>());
                let response = wanted.response(&secrets, Some((self.version, &nonce)));
                self.nonce = Some(nonce);
                return Ok(Some(response));
            }
        }
    }

    /// Takes over what is wanted, and says whether that is something else than before.
    fn take(&mut self, request: DiscoveryRequest) -> bool {
        let pid = self.refused.pid;
        let version = self.version.to_string();
        if let Some(nonce) = &self.nonce {
            if *nonce != request.response_nonce {
                tracing::debug!(pid, "a request for secrets repeats an older nonce");
                return false;
            }
            if request.version_info != version || request.error_detail.is_some() {
                let error = request.error_detail.as_ref();
                tracing::error!(
                    pid,
                    names = ?request.resource_names,
                    version,
                    kept = request.version_info,
                    error = error.map(|error| error.message.as_str()),
                    "Envoy did not take the secrets"
                );
            }
        }
        if request.node.is_some() {
            self.validates_spiffe = validates_spiffe(request.node.as_ref(), &self.config);
        }
        let names = names_of(&request);
        let before = self.wanted.as_ref();
        let changed = before.is_none_or(|before| before.names != names);
        self.wanted = Some(Wanted {
            names,
            type_url: request.type_url,
            validates_spiffe: self.validates_spiffe,
        });
        changed
    }
}

/// None stand for all.
fn names_of(request: &DiscoveryRequest) -> BTreeSet<String> {
    let names = request.resource_names.iter();
    names.filter(|name| !name.is_empty()).cloned().collect()
}

fn tell<I: Identities, A>(
    shared: &Shared<I, A>,
    whom: &Refused,
    update: &WorkloadUpdate,
    why: &Status,
) {
    if update.identities.is_empty() {
        tell_no_identity(shared, whom);
    }
    let (pid, uid, error) = (whom.pid, whom.uid, why.message());
    tracing::error!(pid, uid, error, "secrets were refused");
}
