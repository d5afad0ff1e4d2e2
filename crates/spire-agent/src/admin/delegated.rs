//! `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`: what workloads would be served, told to a process that acts
//! in their place.
//!
//! The caller is attested as a workload is, and has to have an entry whose SPIFFE ID is one of `authorized_delegates`. It
//! says by selectors or by process which workload it asks for, and is believed; what registration entries mark as admin
//! or downstream is kept from it.

mod messages;

use std::sync::Arc;

use ah_spire_attest::peer::{PeerError, PeerInfo};
use ah_spire_telemetry::{Metrics, Summary};
use ah_spire_wire::agent::delegatedidentity::{FetchJwtsviDsRequest, SubscribeToX509sviDsRequest};
use ah_spire_wire::model::Selector;
use ah_spire_wire::{selector_from_wire, types};
use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use spiffe::SpiffeId;
use tonic::Status;
use tonic::body::Body;

use crate::bundles::{self, Bundles};
use crate::cache::Cache;
use crate::identities::{Identities as _, JwtError};
use crate::metrics::{FirstUpdate, OpenCall, OpenCalls};
use crate::wire::{answered, message, not_grpc, told, unary};
use crate::workload::{Attest, Attestation};

pub(super) const SERVICE: &str = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity";

/// Answers delegates.
pub(crate) struct Delegation<A> {
    cache: Arc<Cache>,
    attestation: Attestation<A>,
    /// `authorized_delegates`
    delegates: Vec<SpiffeId>,
    calls: OpenCalls,
    /// Milliseconds from a call to the first SVID that it was given.
    first_update: Summary,
}

impl<A: Attest> Delegation<A> {
    pub(crate) fn new(
        cache: Arc<Cache>,
        attestor: Arc<A>,
        delegates: Vec<SpiffeId>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            cache,
            attestation: Attestation::new(attestor, metrics),
            delegates,
            calls: OpenCalls::new(metrics, "delegated_identity_api"),
            first_update: FirstUpdate::summary(metrics),
        }
    }

    /// Answers a call of [`SERVICE`] on the connection of `peer`.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Result<PeerInfo, PeerError>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        if let Some(response) = not_grpc(&request) {
            return response;
        }
        let open = self.calls.begin();
        let path = request.uri().path();
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        match name {
            "SubscribeToX509SVIDs" => answered(self.x509_svids(peer, request, open).await),
            "SubscribeToX509Bundles" => {
                answered(self.bundles(peer, request, open, bundles::x509(1)).await)
            }
            "SubscribeToJWTBundles" => {
                answered(self.bundles(peer, request, open, bundles::jwt()).await)
            }
            "FetchJWTSVIDs" => unary(self.jwt_svids(peer, request).await),
            _ => {
                let text = format!("unknown method {name} for service {SERVICE}");
                Status::unimplemented(text).into_http()
            }
        }
    }

    async fn x509_svids(
        self: Arc<Self>,
        peer: Result<PeerInfo, PeerError>,
        request: Request<Incoming>,
        open: OpenCall,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + use<A>, Status> {
        let mut first = FirstUpdate::awaited(&self.first_update);
        let asked: SubscribeToX509sviDsRequest = message(request).await?;
        let delegate = self.delegate(peer).await?;
        let selectors = self.workload(asked.pid, asked.selectors).await?;
        let sets = self.cache.subscribe(&selectors).await;
        Ok(told(sets, move |update| {
            let _ = &open;
            delegate.check(&self)?;
            first.came(update);
            Ok(Some(messages::x509_svids(update)))
        }))
    }

    /// Messages that `encode` makes of all bundles, for a request without content.
    async fn bundles(
        self: Arc<Self>,
        peer: Result<PeerInfo, PeerError>,
        request: Request<Incoming>,
        open: OpenCall,
        mut encode: impl FnMut(&Bundles) -> Option<Bytes> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static, Status> {
        let () = message(request).await?;
        let delegate = self.delegate(peer).await?;
        Ok(told(self.cache.bundles(), move |bundles| {
            let _ = &open;
            delegate.check(&self)?;
            Ok(encode(bundles))
        }))
    }

    async fn jwt_svids(
        &self,
        peer: Result<PeerInfo, PeerError>,
        request: Request<Incoming>,
    ) -> Result<Bytes, Status> {
        let asked: FetchJwtsviDsRequest = message(request).await?;
        if asked.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        self.delegate(peer).await?;
        let selectors = self.workload(asked.pid, asked.selectors).await?;
        let mut entries = self.cache.matching(&selectors).map_err(could_not_fetch)?;
        entries.retain(|entry| !entry.admin && !entry.downstream);
        let mut svids = Vec::with_capacity(entries.len());
        for entry in &entries {
            let svid = self.cache.jwt_svid(entry, &asked.audience).await;
            svids.push(svid.map_err(could_not_fetch)?);
        }
        if svids.is_empty() {
            tracing::error!("a delegate asks for a workload without an identity");
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(messages::jwt_svids(svids))
    }

    /// Who calls, if that is a delegate.
    async fn delegate(&self, peer: Result<PeerInfo, PeerError>) -> Result<Delegate, Status> {
        let peer = peer.map_err(|error| {
            tracing::error!(%error, "a caller of the admin API could not be identified");
            Status::unavailable("workload attestation failed")
        })?;
        let delegate = Delegate {
            pid: peer.pid(),
            selectors: self.attestation.attest(&peer).await?,
        };
        delegate.check(self)?;
        Ok(delegate)
    }

    /// The selectors of the workload that is asked for.
    async fn workload(
        &self,
        pid: i32,
        selectors: Vec<types::Selector>,
    ) -> Result<Vec<Selector>, Status> {
        if selectors.is_empty() == (pid == 0) {
            return Err(Status::invalid_argument(
                "must provide either selectors or non-zero PID, but not both",
            ));
        }
        if pid == 0 {
            let parsed = selectors.iter().map(selector_from_wire);
            return parsed.collect::<Result<_, _>>().map_err(|error| {
                let text = format!("could not parse provided selectors: {error}");
                Status::invalid_argument(text)
            });
        }
        let peer = PeerInfo::of_process(pid).map_err(|error| {
            tracing::error!(pid, %error, "a delegate asks for a process that cannot be attested");
            Status::unavailable("workload attestation failed")
        })?;
        self.attestation.attest(&peer).await
    }
}

fn could_not_fetch(error: JwtError) -> Status {
    tracing::error!(%error, "could not fetch JWT-SVID");
    Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
}

/// A process that acts for others.
struct Delegate {
    pid: i32,
    selectors: Vec<Selector>,
}

impl Delegate {
    /// That one of its entries is a delegate's: asked again before each message of a stream.
    fn check<A>(&self, delegation: &Delegation<A>) -> Result<(), Status> {
        let pid = self.pid;
        let entries = delegation.cache.matching(&self.selectors);
        let entries = entries.map_err(|error| Status::unavailable(error.to_string()))?;
        let Some(first) = entries.first() else {
            tracing::error!(pid, registered = false, "no identity issued");
            return Err(Status::permission_denied("no identity issued"));
        };
        let delegates = &delegation.delegates;
        if entries
            .iter()
            .any(|entry| delegates.contains(&entry.spiffe_id))
        {
            return Ok(());
        }
        tracing::error!(
            pid,
            spiffe_id = %first.spiffe_id,
            entries = entries.len(),
            "the caller is not one of authorized_delegates"
        );
        Err(Status::permission_denied(
            "caller not configured as an authorized delegate",
        ))
    }
}
