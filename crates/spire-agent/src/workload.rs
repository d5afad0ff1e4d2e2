//! The SPIFFE Workload API on the agent's public socket, and Envoy's secret discovery.
//!
//! A connection belongs to the process that made it, held by a process descriptor, and ends with it. Each call attests
//! that process once. Streams pull: whoever has room for a message gets the newest set then, so that a slow reader
//! delays nobody and skips what is out of date. Messages are encoded once for a set and shared by all streams of it.

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::Explained;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_plugin::agent::{SdsConfig, WorkloadApiRateLimit};
use ah_spire_telemetry::Metrics;
use ah_spire_wire::Limits;
use spiffe::TrustDomain;
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;
use tower::Layer;

use crate::identities::Identities;

pub use caller::{Attest, Attestors};
pub(crate) use caller::{Attestation, end_of};
pub use explain::{EXPLAIN_METHOD, ExplainAnswer, ExplainRequest, Nearest};
pub(crate) use jwt::asked_for;
pub use metrics::MeteredAttestor;
pub use quota::Quota;
use quota::Quotas;
use rates::Rates;
use service::{Connection, Shared};

mod caller;
pub(crate) mod encoded;
mod explain;
mod health;
mod jwt;
mod messages;
mod metrics;
mod quota;
mod rates;
pub(crate) mod reflection;
mod refusal;
mod sds;
mod service;
mod stream;

/// Calls on one connection. More than a process may have, so that it is told why instead of waiting.
const CALLS: u32 = 4096;

/// Requests are small and answers are shared: nothing on a connection needs more.
const WINDOW: u32 = 64 * 1024;

/// Every process may call.
const PURPOSE: Purpose = Purpose {
    api: "Workload API",
    key: "socket_path",
    mode: 0o777,
    folder_mode: 0o755,
};

/// What the Workload API is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `socket_path`
    pub socket: PathBuf,
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `disable_workload_api`: the socket serves health checks and Envoy.
    pub disabled: bool,
    /// `sds { }`; `None` with `disable_sds_api`.
    pub sds: Option<SdsConfig>,
    /// `allow_unauthenticated_verifiers`: bundles go to workloads without an entry too.
    pub allow_unauthenticated_verifiers: bool,
    /// `allowed_foreign_jwt_claims`: shown of JWT-SVIDs of other trust domains besides `sub`, `exp` and `aud`.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// `log_selectors`: prefixes of selectors that may be logged. What anybody on the machine can see of a process,
    /// unless the configuration says more or less.
    pub log_selectors: Vec<String>,
    /// `experimental.ratelimit`
    pub rate_limit: WorkloadApiRateLimit,
    /// What one process and one user may hold open.
    pub quota: Quota,
    /// Where calls are counted.
    pub metrics: Metrics,
}

impl Config {
    /// The defaults, on `socket`.
    pub fn new(socket: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        Self {
            socket: socket.into(),
            trust_domain,
            disabled: false,
            sds: Some(SdsConfig::default()),
            allow_unauthenticated_verifiers: false,
            allowed_foreign_jwt_claims: Vec::new(),
            log_selectors: vec!["unix".to_owned()],
            rate_limit: WorkloadApiRateLimit::default(),
            quota: Quota::default(),
            metrics: Metrics::off(),
        }
    }
}

/// A bound socket. Connections wait in its queue until [`WorkloadApi::serve`] runs.
pub struct WorkloadApi<I, A> {
    shared: Arc<Shared<I, A>>,
    socket: Socket,
    quotas: Arc<Quotas>,
}

impl<I: Identities, A: Attest> WorkloadApi<I, A> {
    /// Takes the socket's path.
    ///
    /// # Errors
    /// When the path is taken by something else or cannot be made; they name it and the remedy.
    pub fn bind(config: Config, identities: Arc<I>, attestor: Arc<A>) -> Result<Self, Explained> {
        let reflection = reflection::routes(reflection::names(&config))?;
        let socket = Socket::bind(&config.socket, &PURPOSE)?;
        Ok(Self {
            quotas: Arc::new(Quotas::new(config.quota)),
            shared: Arc::new(Shared::new(config, identities, attestor, reflection)),
            socket,
        })
    }

    /// Serves until `stop`, then cuts what is open: workloads connect again when the next agent is there.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let connections = TaskTracker::new();
        let cut = tokio_util::sync::CancellationToken::new();
        let (shared, quotas) = (self.shared, self.quotas);
        tracing::info!(
            socket = %self.socket.path().display(),
            workload_api = !shared.config.disabled,
            sds = shared.config.sds.is_some(),
            "serving the Workload API"
        );
        let take = |stream| {
            let (shared, quotas) = (Arc::clone(&shared), Arc::clone(&quotas));
            let cut = cut.clone();
            connections.spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = connection(stream, shared, quotas) => {}
                }
            });
        };
        self.socket.serve(stop, take).await;
        cut.cancel();
        connections.close();
        connections.wait().await;
        tracing::info!("the Workload API is closed");
    }
}

/// Serves one connection for as long as the process lives that made it.
async fn connection<I: Identities, A: Attest>(
    stream: UnixStream,
    shared: Arc<Shared<I, A>>,
    quotas: Arc<Quotas>,
) {
    let peer = match PeerInfo::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "a caller of the Workload API could not be identified");
            return;
        }
    };
    let Some(admitted) = quotas.connection(&peer) else {
        return;
    };
    let pid = peer.pid();
    let end = match end_of(&peer) {
        Ok(end) => end,
        Err(error) => {
            tracing::warn!(pid, %error, "a caller of the Workload API could not be watched");
            return;
        }
    };
    let limits = Limits {
        calls: CALLS,
        window: WINDOW,
        ..Limits::default()
    };
    let rpc = shared.metrics.rpc.clone();
    let service = rpc.layer(Connection::new(shared, peer, admitted));
    let served = ah_spire_wire::serve(stream, service, limits, std::future::pending());
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(pid, %error, "a connection to the Workload API broke");
        },
        () = end => tracing::debug!(pid, "a caller of the Workload API ended"),
    }
}
