//! From a request to its method, by way of the rules that hold for all of them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::model::Selector;
use ah_spire_wire::workload::{JwtBundlesRequest, X509BundlesRequest, X509svidRequest};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::caller::{Attest, Attestation};
use super::messages::MessageCache;
use super::metrics::WorkloadMetrics;
use super::quota::{Admitted, CallPlace};
use super::refusal::{Refused, is_own};
use super::stream::Updates;
use super::{Config, Rates, explain, health, jwt, reflection, sds};
use crate::identities::Identities;
use crate::wire::{answered, has_header, message, not_grpc, unary};

pub(super) const SERVICE: &str = "SpiffeWorkloadAPI";

/// SPIFFE Workload Endpoint §3: keeps a forged request of a browser or a server from reaching the API.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// A call that needs the caller's selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Method {
    FetchX509Svid,
    FetchX509Bundles,
    FetchJwtSvid,
    FetchJwtBundles,
    ValidateJwtSvid,
    StreamSecrets,
    FetchSecrets,
}

impl Method {
    pub(super) const ALL: [Self; 7] = [
        Self::FetchX509Svid,
        Self::FetchX509Bundles,
        Self::FetchJwtSvid,
        Self::FetchJwtBundles,
        Self::ValidateJwtSvid,
        Self::StreamSecrets,
        Self::FetchSecrets,
    ];

    /// As a call names it.
    pub(super) fn path(self) -> String {
        format!("/{}/{}", self.service(), self.name())
    }

    fn service(self) -> &'static str {
        match self {
            Self::StreamSecrets | Self::FetchSecrets => sds::SERVICE,
            _ => SERVICE,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FetchX509Svid => "FetchX509SVID",
            Self::FetchX509Bundles => "FetchX509Bundles",
            Self::FetchJwtSvid => "FetchJWTSVID",
            Self::FetchJwtBundles => "FetchJWTBundles",
            Self::ValidateJwtSvid => "ValidateJWTSVID",
            Self::StreamSecrets => "StreamSecrets",
            Self::FetchSecrets => "FetchSecrets",
        }
    }

    pub(super) fn named(service: &str, name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|method| method.service() == service && method.name() == name)
    }
}

/// What all connections have in common.
pub(super) struct Shared<I, A> {
    pub(super) config: Config,
    pub(super) identities: Arc<I>,
    pub(super) messages: MessageCache,
    pub(super) metrics: WorkloadMetrics,
    attestation: Attestation<A>,
    rates: Rates,
    reflection: Routes,
}

impl<I: Identities, A: Attest> Shared<I, A> {
    pub(super) fn new(
        config: Config,
        identities: Arc<I>,
        attestor: Arc<A>,
        reflection: Routes,
    ) -> Self {
        Self {
            attestation: Attestation::new(attestor, &config.metrics),
            metrics: WorkloadMetrics::new(&config.metrics),
            rates: Rates::new(config.rate_limit),
            config,
            identities,
            messages: MessageCache::default(),
            reflection,
        }
    }

    /// The selectors of `peer`, found out anew.
    pub(super) async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, Status> {
        self.attestation.attest(peer).await
    }

    /// The selectors of whoever calls `method`, if it may call now.
    pub(super) async fn attest_for(
        &self,
        peer: &PeerInfo,
        method: Method,
    ) -> Result<Vec<Selector>, Status> {
        let selectors = self.attest(peer).await?;
        if !is_own(peer) {
            let taken = self.rates.take(method, &selectors, Instant::now());
            taken.inspect_err(|_| self.metrics.rate_limited(method))?;
        }
        Ok(selectors)
    }
}

/// Answers the calls of one connection.
pub(super) struct Connection<I, A> {
    shared: Arc<Shared<I, A>>,
    caller: Arc<Caller>,
}

/// Who made the connection.
struct Caller {
    peer: PeerInfo,
    admitted: Admitted,
}

impl<I, A> Clone for Connection<I, A> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            caller: Arc::clone(&self.caller),
        }
    }
}

impl<I: Identities, A: Attest> Connection<I, A> {
    pub(super) fn new(shared: Arc<Shared<I, A>>, peer: PeerInfo, admitted: Admitted) -> Self {
        Self {
            shared,
            caller: Arc::new(Caller { peer, admitted }),
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        if let Some(response) = not_grpc(&request) {
            return response;
        }
        let place = match self.caller.admitted.call() {
            Ok(place) => place,
            Err(status) => return status.into_http(),
        };
        let path = request.uri().path().trim_start_matches('/');
        let (service, name) = path.rsplit_once('/').unwrap_or((path, ""));
        match service {
            SERVICE if !self.shared.config.disabled => {
                if !has_header(&request, SECURITY_HEADER) {
                    let text = "security header missing from request";
                    return Status::invalid_argument(text).into_http();
                }
                match Method::named(SERVICE, name) {
                    Some(method) => self.call(method, request, place).await,
                    None => Status::unimplemented(not_offered(name)).into_http(),
                }
            }
            sds::SERVICE => {
                let peer = &self.caller.peer;
                sds::answer(&self.shared, peer, name.to_owned(), request, place).await
            }
            health::SERVICE => unary(health::answer(&self.shared, name.to_owned(), request).await),
            explain::SERVICE => {
                let peer = &self.caller.peer;
                unary(explain::answer(&self.shared, peer, name.to_owned(), request).await)
            }
            _ if reflection::SERVICES.contains(&service) => self.reflect(request, place).await,
            _ => Status::unimplemented(format!("unknown service {service}")).into_http(),
        }
    }

    async fn call(
        self,
        method: Method,
        request: Request<Incoming>,
        place: CallPlace,
    ) -> Response<Body> {
        let Self { shared, caller } = self;
        let open = shared.metrics.calls.begin();
        let peer = &caller.peer;
        let asked = match method {
            Method::FetchJwtSvid => return unary(jwt::fetch(&shared, peer, request).await),
            Method::ValidateJwtSvid => return unary(jwt::validate(&shared, peer, request).await),
            Method::FetchX509Svid => message::<X509svidRequest>(request).await.map(drop),
            Method::FetchX509Bundles => message::<X509BundlesRequest>(request).await.map(drop),
            Method::FetchJwtBundles => message::<JwtBundlesRequest>(request).await.map(drop),
            Method::StreamSecrets | Method::FetchSecrets => {
                Err(Status::unimplemented(not_offered(method.name())))
            }
        };
        let stream = async {
            asked?;
            let selectors = shared.attest_for(peer, method).await?;
            let sets = shared.identities.subscribe(&selectors).await;
            let updates = Updates {
                refused: Refused::of(peer, selectors),
                shared: Arc::clone(&shared),
                method,
                sets,
                held: (place, open),
            };
            updates.into_stream()
        };
        answered(stream.await)
    }

    /// What this socket serves.
    async fn reflect(&self, request: Request<Incoming>, place: CallPlace) -> Response<Body> {
        let mut reflection = self.shared.reflection.clone();
        match reflection.call(request).await {
            Ok(response) => response.map(|body| {
                // The call lasts as long as its answer.
                let held = http_body_util::BodyExt::map_frame(body, move |frame| {
                    let _ = &place;
                    frame
                });
                Body::new(held)
            }),
            Err(never) => match never {},
        }
    }
}

impl<I: Identities, A: Attest> Service<Request<Incoming>> for Connection<I, A> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

/// SV-80 for the WIT calls, and the answer for what the standard does not have (SV-73).
fn not_offered(name: &str) -> String {
    match name {
        "FetchWITSVID" => "fetching WIT-SVIDs is not implemented".to_owned(),
        "FetchWITBundles" => "fetching WIT bundles is not implemented".to_owned(),
        _ => format!("unknown method {name} for service {SERVICE}"),
    }
}
