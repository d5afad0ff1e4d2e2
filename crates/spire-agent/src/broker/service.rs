//! `spiffe.broker.API`

use std::collections::BTreeMap;
use std::sync::Arc;

use ah_identity_provider::Explained;
use ah_spire_plugin::agent::Broker;
use ah_spire_telemetry::{Metrics, Summary};
use ah_spire_wire::broker::{
    FetchJwtsvidRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509svidRequest, WorkloadReference,
};
use ah_spire_wire::model::{Entry, Selector};
use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use prost_types::Any;
use spiffe::SpiffeId;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use super::Door;
use crate::bundles::{self, Bundles};
use crate::cache::Cache;
use crate::identities::{Identities as _, JwtError};
use crate::metrics::FirstUpdate;
use crate::wire::{answered, has_header, message, not_grpc, told, unary};
use crate::workload::{Attest, Attestation, asked_for, encoded, reflection};

const SERVICE: &str = "spiffe.broker.API";

/// SPIFFE Broker Endpoint: keeps a forged request from reaching the API.
const SECURITY_HEADER: &str = "broker.spiffe.io";

/// Allows any kind of reference.
const ANY: &str = "*";

/// Answers brokers.
pub(super) struct Brokerage<A> {
    cache: Arc<Cache>,
    attestation: Attestation<A>,
    /// Of each broker the kinds of references that it may use, and whether over TCP as well.
    allowed: BTreeMap<SpiffeId, BTreeMap<String, bool>>,
    first_update: Summary,
    reflection: Routes,
}

impl<A: Attest> Brokerage<A> {
    pub(super) fn new(
        brokers: &[Broker],
        cache: Arc<Cache>,
        attestor: Arc<A>,
        metrics: &Metrics,
    ) -> Result<Self, Explained> {
        let allowed = brokers.iter().map(|broker| {
            let kinds = broker.allowed_reference_types.iter();
            let kinds = kinds.map(|kind| (kind.type_url.clone(), kind.allow_over_tcp));
            (broker.id.clone(), kinds.collect())
        });
        Ok(Self {
            cache,
            attestation: Attestation::new(attestor, metrics),
            allowed: allowed.collect(),
            first_update: FirstUpdate::summary(metrics),
            reflection: reflection::routes([SERVICE])?,
        })
    }

    /// Answers a call of `broker`, whom TLS has proved.
    pub(super) async fn answer(
        self: Arc<Self>,
        broker: &SpiffeId,
        door: Door,
        request: Request<Incoming>,
    ) -> Response<Body> {
        if let Some(response) = not_grpc(&request) {
            return response;
        }
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (service, name) = path.rsplit_once('/').unwrap_or((&path, ""));
        let reflects = reflection::SERVICES.contains(&service);
        if reflects && door == Door::Tcp {
            let text = "server reflection is only available over Unix sockets";
            return Status::permission_denied(text).into_http();
        }
        if !has_header(&request, SECURITY_HEADER) {
            let text = "security header missing from request";
            return Status::invalid_argument(text).into_http();
        }
        if reflects {
            return match self.reflection.clone().call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        }
        let caller = Caller { broker, door };
        match (service, name) {
            (SERVICE, "SubscribeToX509SVID") => answered(self.x509_svids(caller, request).await),
            (SERVICE, "SubscribeToX509Bundles") => {
                let asked = message::<SubscribeToX509BundlesRequest>(request).await;
                let asked = asked.map(|asked| asked.reference);
                answered(self.bundles(caller, asked, bundles::x509(2)).await)
            }
            (SERVICE, "SubscribeToJWTBundles") => {
                let asked = message::<SubscribeToJwtBundlesRequest>(request).await;
                let asked = asked.map(|asked| asked.reference);
                answered(self.bundles(caller, asked, bundles::jwt()).await)
            }
            (SERVICE, "FetchJWTSVID") => unary(self.jwt_svids(caller, request).await),
            (SERVICE, _) => {
                let text = format!("unknown method {name} for service {SERVICE}");
                Status::unimplemented(text).into_http()
            }
            _ => Status::unimplemented(format!("unknown service {service}")).into_http(),
        }
    }

    async fn x509_svids(
        &self,
        caller: Caller<'_>,
        request: Request<Incoming>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + use<A>, Status> {
        let mut first = FirstUpdate::awaited(&self.first_update);
        let asked: SubscribeToX509svidRequest = message(request).await?;
        let selectors = self.workload(caller, asked.reference).await?;
        let sets = self.cache.subscribe(&selectors).await;
        Ok(told(sets, move |update| {
            first.came(update);
            let lent = |entry: &Entry| !entry.admin && !entry.downstream;
            Ok(Some(encoded::x509_svids(update, lent)))
        }))
    }

    /// Messages that `encode` makes of all bundles: whoever may not be told of the workload is not told of them.
    async fn bundles(
        &self,
        caller: Caller<'_>,
        asked: Result<Option<WorkloadReference>, Status>,
        mut encode: impl FnMut(&Bundles) -> Option<Bytes> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static, Status> {
        self.workload(caller, asked?).await?;
        Ok(told(self.cache.bundles(), move |bundles| {
            Ok(encode(bundles))
        }))
    }

    async fn jwt_svids(
        &self,
        caller: Caller<'_>,
        request: Request<Incoming>,
    ) -> Result<Bytes, Status> {
        let asked: FetchJwtsvidRequest = message(request).await?;
        if asked.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let wanted = asked_for(&asked.spiffe_id)?;
        let selectors = self.workload(caller, asked.reference).await?;
        let svids = self
            .cache
            .jwt_svids(&selectors, &asked.audience, wanted.as_ref())
            .await;
        match svids {
            Ok(svids) => Ok(encoded::jwt_svids(svids)),
            Err(JwtError::NoIdentity) => {
                tracing::error!(broker = %caller.broker, "a broker asks for a workload without an identity");
                Err(Status::permission_denied("no identity issued"))
            }
            Err(error) => Err(could_not_fetch(&error)),
        }
    }

    /// The selectors of the workload that is asked for, if it may be by this broker through this door.
    async fn workload(
        &self,
        caller: Caller<'_>,
        reference: Option<WorkloadReference>,
    ) -> Result<Vec<Selector>, Status> {
        let reference = reference.and_then(|reference| reference.reference);
        let reference = reference
            .filter(|reference| !reference.type_url.is_empty())
            .ok_or_else(|| Status::invalid_argument("workload reference must be provided"))?;
        self.allow(caller, &reference)?;
        self.attestation
            .attest_reference(caller.broker, &reference)
            .await
    }

    fn allow(&self, Caller { broker, door }: Caller<'_>, reference: &Any) -> Result<(), Status> {
        let kind = &reference.type_url;
        let kinds = self.allowed.get(broker);
        let over_tcp = kinds.and_then(|kinds| kinds.get(kind).or_else(|| kinds.get(ANY)));
        match over_tcp {
            None => Err(Status::permission_denied(format!(
                "broker \"{broker}\" is not allowed to use reference type \"{kind}\""
            ))),
            Some(false) if door == Door::Tcp => Err(Status::permission_denied(format!(
                "reference type \"{kind}\" is not allowed over TCP for broker \"{broker}\""
            ))),
            Some(_) => Ok(()),
        }
    }
}

fn could_not_fetch(error: &JwtError) -> Status {
    tracing::error!(%error, "could not fetch JWT-SVID for a broker");
    Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
}

/// Whose call it is.
#[derive(Clone, Copy)]
struct Caller<'a> {
    broker: &'a SpiffeId,
    door: Door,
}
