//! The server's gRPC services, and who may call them (inventory section 8).
//!
//! [`Calls`] stands before the services of one connection: it knows the peer, judges each call anew and gives the
//! services a [`Caller`]. Codes and texts are upstream's where clients decide on them.

mod agent;
mod attest;
mod audit;
mod authorize;
mod bundle;
mod caller;
mod changes;
mod convert;
mod csr;
mod debug;
mod dns;
mod entry;
mod health;
mod holdings;
mod limits;
mod local_authority;
mod logger;
mod mask;
mod policy;
mod rotation;
mod svid;
mod sync;
mod trust_domain;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_telemetry::RpcMetrics;
use ah_spire_wire::changes::changes_server::ChangesServer;
use ah_spire_wire::encoded::entry_server::EntryServer;
use ah_spire_wire::model::{JwtKey, Selector};
use ah_spire_wire::rotation::rotation_server::RotationServer;
use ah_spire_wire::server::agent::agent_server::AgentServer;
use ah_spire_wire::server::bundle::bundle_server::BundleServer;
use ah_spire_wire::server::debug::debug_server::DebugServer;
use ah_spire_wire::server::localauthority::local_authority_server::LocalAuthorityServer;
use ah_spire_wire::server::logger::logger_server::LoggerServer;
use ah_spire_wire::server::svid::svid_server::SvidServer;
use ah_spire_wire::server::trustdomain::trust_domain_server::TrustDomainServer;
use ah_spire_wire::{health::health_server::HealthServer, types};
use http::{Request, Response};
use hyper::body::Incoming;
use spiffe::{SpiffeId, TrustDomain};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use self::audit::{Audit, Fields};
pub use self::caller::{Caller, Peer, PeerSvid, Right};
pub use self::holdings::Holdings;
pub use self::limits::RateLimits;
pub use self::policy::RegoPolicy;
use crate::ca::{LocalAuthorities, SignError, Signer};
use crate::entries::EntryCache;
use crate::federation;
use crate::store::{Store, StoreError};

/// What the services work with.
pub struct Core<S> {
    /// The trust domain that this server speaks for.
    pub trust_domain: TrustDomain,
    /// What is stored.
    pub store: Arc<S>,
    /// What signs.
    pub authority: Arc<dyn Authority>,
    /// What operators change about it.
    pub local_authorities: Arc<dyn LocalAuthorities>,
    /// What agents told that they hold.
    pub holdings: Holdings,
    /// Which entries an agent serves. What is written to `store` is in it when the write returns.
    pub entries: Arc<EntryCache>,
    /// `max_attested_node_info_staleness`: how old what other servers wrote of an agent may be that a call is judged by;
    /// `None` when no other server writes to `store`. What this one wrote is always known.
    pub agent_staleness: Option<Duration>,
    /// What polls the bundles of other trust domains.
    pub federation: Arc<federation::Manager<S>>,
    /// The configured node attestors besides `join_token`.
    pub attestors: Arc<dyn Attestors>,
    /// `admin_ids`
    pub admin_ids: BTreeSet<SpiffeId>,
    /// `auth_opa_policy_engine`; `None` for the built-in policy.
    pub policy: Option<Arc<RegoPolicy>>,
    /// Counts the calls.
    pub rpc: RpcMetrics,
    /// How often who may call.
    pub limits: RateLimits,
    /// The time that certificates and tokens are judged at.
    pub clock: Arc<dyn Clock>,
    /// `agent_spiffe_id_as_selector`
    pub agent_id_as_selector: bool,
    /// The level of the log.
    pub log: Arc<dyn LogLevel>,
    /// `audit_log_enabled`
    pub audit_log: bool,
    /// The server's own X509-SVID, leaf first.
    pub own_chain: watch::Receiver<Vec<Vec<u8>>>,
    /// When the server started.
    pub started: SystemTime,
}

/// What signs, beyond what workloads and agents get.
#[tonic::async_trait]
pub trait Authority: Signer {
    /// An intermediate CA for a downstream server: DER, leaf first. `ttl` is a wish.
    fn sign_downstream_ca(
        &self,
        spki: &[u8],
        ttl: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, SignError>;
    /// `disable_jwt_svids`
    fn jwt_disabled(&self) -> bool;
    /// There is no feature flag `wit-svid`.
    fn wit_disabled(&self) -> bool;
    /// Publishes a downstream server's JWT key, upstream where there is an upstream authority; answers all keys.
    async fn publish_jwt_key(&self, key: JwtKey) -> Result<Vec<JwtKey>, SignError>;
}

/// A node that an attestor let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// What was found out about it.
    pub selectors: Vec<Selector>,
    /// Whether it can prove itself again.
    pub can_reattest: bool,
}

/// The way back to an agent that is attested.
#[tonic::async_trait]
pub trait Ask: Send {
    /// Sends `challenge` and waits for the answer.
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, Status>;
}

/// The configured node attestors.
#[tonic::async_trait]
pub trait Attestors: Send + Sync + 'static {
    /// Judges an agent's `payload` with the attestor called `name`; `None` when there is no such attestor.
    async fn attest(
        &self,
        name: &str,
        payload: &[u8],
        address: Option<IpAddr>,
        agent: &mut dyn Ask,
    ) -> Option<Result<Attested, Status>>;
}

/// The level of the process's log.
pub trait LogLevel: Send + Sync + 'static {
    /// Now.
    fn current(&self) -> types::LogLevel;
    /// At the start.
    fn launch(&self) -> types::LogLevel;
    /// From now on.
    fn set(&self, level: types::LogLevel) -> Result<(), String>;
}

/// The largest message that is read, in bytes: as much as upstream takes.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// The services that are served over the network.
pub fn network_routes<S: Store>(core: &Arc<Core<S>>) -> Routes {
    macro_rules! served {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(MAX_REQUEST_BYTES)
        };
    }
    Routes::new(served!(AgentServer, agent::Agents(core.clone())))
        .add_service(served!(BundleServer, bundle::Bundles(core.clone())))
        .add_service(served!(EntryServer, entry::Entries(core.clone())))
        .add_service(served!(SvidServer, svid::Svids(core.clone())))
        .add_service(served!(
            TrustDomainServer,
            trust_domain::TrustDomains(core.clone())
        ))
        .add_service(served!(
            LocalAuthorityServer,
            local_authority::Authorities(core.clone())
        ))
        .add_service(served!(ChangesServer, changes::Watches(core.clone())))
        .add_service(served!(RotationServer, rotation::Rotations(core.clone())))
}

/// The services that are served over the local socket.
pub fn local_routes<S: Store>(core: &Arc<Core<S>>) -> Routes {
    network_routes(core)
        .add_service(LoggerServer::new(logger::Loggers(core.clone())))
        .add_service(DebugServer::new(debug::Debugger(core.clone())))
        .add_service(HealthServer::new(health::Healthy(core.clone())))
}

/// The calls on one connection.
pub struct Calls<S> {
    core: Arc<Core<S>>,
    routes: Routes,
    peer: Arc<Peer>,
    /// What the audit log says of a local peer.
    process: Arc<Fields>,
    /// The program of a local peer, as a policy in Rego wants to know it.
    program: Arc<str>,
    going: Going,
}

/// Cancelled when the connection is to end: calls that would last end themselves then.
#[derive(Clone, Default)]
struct Going(CancellationToken);

impl<S> Calls<S> {
    /// Calls of `peer` to `routes`.
    pub fn new(core: Arc<Core<S>>, routes: Routes, peer: Peer) -> Self {
        Self {
            core,
            routes,
            peer: Arc::new(peer),
            process: Arc::default(),
            program: "".into(),
            going: Going::default(),
        }
    }

    /// Calls that have no end of their own end when `going` is cancelled.
    #[must_use]
    pub fn until(self, going: CancellationToken) -> Self {
        Self {
            going: Going(going),
            ..self
        }
    }

    /// As [`Self::new`] for whoever is at the other end of a local connection.
    pub fn local(core: Arc<Core<S>>, routes: Routes, stream: &UnixStream) -> Self {
        let (audited, judged) = (core.audit_log, core.policy.is_some());
        let mut calls = Self::new(core, routes, Peer::Local);
        if audited || judged {
            match PeerInfo::of(stream) {
                Ok(process) => {
                    calls.process = Arc::new(audit::process(&process));
                    calls.program = audit::program(&process).unwrap_or_default().into();
                }
                Err(error) => tracing::warn!(%error, "It is not known which process calls"),
            }
        }
        calls
    }
}

impl<S> Clone for Calls<S> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            routes: self.routes.clone(),
            peer: self.peer.clone(),
            process: self.process.clone(),
            program: self.program.clone(),
            going: self.going.clone(),
        }
    }
}

impl<S: Store> Service<Request<Incoming>> for Calls<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Self {
            core,
            mut routes,
            peer,
            process,
            program,
            going,
        } = self.clone();
        Box::pin(async move {
            let judged = policy::judge(core.policy.as_ref(), &peer, &program, request).await;
            let (allowed, mut request) = match judged {
                Ok(judged) => judged,
                Err(status) => return Ok(status.into_http()),
            };
            let path = request.uri().path();
            let caller = match authorize::authorize(&core, &peer, path, allowed).await {
                Ok(caller) => caller,
                Err(status) => return Ok(status.into_http()),
            };
            let audit = if core.audit_log {
                let by_config = caller.id().is_some_and(|id| core.admin_ids.contains(id));
                Audit::begin(&caller, path, &process, by_config)
            } else {
                Audit::default()
            };
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(audit.clone());
            request.extensions_mut().insert(going);
            let response = routes.call(request).await?;
            audit.answered(&response);
            Ok(response)
        })
    }
}

/// Who makes `request`. Without a caller the services were mounted without [`Calls`].
fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::internal("caller missing from request"))
}

/// The SPIFFE ID that the caller proved.
fn caller_id(caller: &Caller) -> Result<&SpiffeId, Status> {
    caller
        .id()
        .ok_or_else(|| Status::internal("caller ID missing from request context"))
}

/// `what: why`, with `code`; told in the log, too. What is not found is told without a reason.
fn failed(code: Code, what: &str, why: impl std::fmt::Display) -> Status {
    tracing::error!(error = %why, code = ?code, "{what}");
    match code {
        Code::NotFound => Status::new(code, what),
        _ => Status::new(code, format!("{what}: {why}")),
    }
}

/// As [`failed`] for what the caller got wrong.
fn invalid(what: &str, why: impl std::fmt::Display) -> Status {
    failed(Code::InvalidArgument, what, why)
}

/// As [`failed`] for what went wrong here.
fn internal(what: &str, why: impl std::fmt::Display) -> Status {
    failed(Code::Internal, what, why)
}

/// The status of one item of a batch.
fn item(status: Result<(), Status>) -> types::Status {
    match status {
        Ok(()) => types::Status {
            code: 0,
            message: "OK".into(),
        },
        Err(status) => types::Status {
            code: status.code().into(),
            message: status.message().to_owned(),
        },
    }
}

/// The code that a failure of the store has where it is given on: what is not the store's is `Internal`.
fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::Invalid(_) => Code::InvalidArgument,
        StoreError::Precondition(_) => Code::FailedPrecondition,
        StoreError::Unavailable(_) | StoreError::Broken(_) => Code::Internal,
    }
}

/// The page that a request asks for; a size of 0 asks for everything.
fn page(size: i32, token: String) -> crate::store::Page {
    match u32::try_from(size) {
        Ok(size) if size > 0 => crate::store::Page { size, token },
        _ => crate::store::Page::default(),
    }
}

/// Counts do not exceed what the wire takes.
fn count(rows: u64) -> i32 {
    i32::try_from(rows).unwrap_or(i32::MAX)
}

/// Whole seconds since 1970; 0 for what is before.
fn unix(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}
