//! The admin API on a socket of its own (`admin_socket_path`): what the log tells, and what the agent is about.
//! Whoever may open the socket may call; what delegates are told is for those alone that the configuration names.

mod debug;
mod delegated;
mod logger;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use ah_identity_provider::Explained;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_telemetry::{Log, Metrics, RpcMetrics};
use ah_spire_wire::Limits;
use ah_spire_wire::agent::debug::debug_server::DebugServer;
use ah_spire_wire::agent::logger::logger_server::LoggerServer;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service, service_fn};

use crate::metrics::OpenCalls;
use crate::workload::{Attest, end_of};

use debug::Debugger;
pub(crate) use debug::Insight;
pub(crate) use delegated::Delegation;
use logger::Loggers;

/// The agent's user and group may call.
const PURPOSE: Purpose = Purpose {
    api: "admin API",
    key: "admin_socket_path",
    mode: 0o770,
    folder_mode: 0o755,
};

/// A bound socket.
pub(crate) struct AdminApi<A> {
    socket: Socket,
    routes: Routes,
    delegation: Arc<Delegation<A>>,
    rpc: RpcMetrics,
}

impl<A: Attest> AdminApi<A> {
    /// Takes the socket's path.
    ///
    /// # Errors
    /// The path cannot be had; they name it and the remedy.
    pub(crate) fn bind(
        path: &Path,
        insight: Insight,
        delegation: Delegation<A>,
        log: Arc<Log>,
        metrics: &Metrics,
    ) -> Result<Self, Explained> {
        let debug = Debugger::new(insight, OpenCalls::new(metrics, "debug_api"));
        let logger = Loggers::new(log, OpenCalls::new(metrics, "logger_api"));
        Ok(Self {
            socket: Socket::bind(path, &PURPOSE)?,
            routes: Routes::new(DebugServer::new(debug)).add_service(LoggerServer::new(logger)),
            delegation: Arc::new(delegation),
            rpc: RpcMetrics::new(metrics),
        })
    }

    /// Serves until `stop`, then cuts what is open.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let Self {
            socket,
            routes,
            delegation,
            rpc,
        } = self;
        tracing::info!(socket = %socket.path().display(), "serving the admin API");
        let take = |stream| {
            let (routes, delegation) = (routes.clone(), delegation.clone());
            let served = connection(stream, routes, delegation, rpc.clone());
            let cut = stop.clone();
            connections.spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = served => {}
                }
            });
        };
        socket.serve(stop.cancelled(), take).await;
        connections.close();
        connections.wait().await;
    }
}

/// Serves one connection. It ends with the process that made it, where that can be told.
async fn connection<A: Attest>(
    stream: UnixStream,
    routes: Routes,
    delegation: Arc<Delegation<A>>,
    rpc: RpcMetrics,
) {
    let peer = PeerInfo::of(&stream);
    let end = peer.as_ref().ok().and_then(|peer| end_of(peer).ok());
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut routes, delegation) = (routes.clone(), delegation.clone());
        let peer = peer.clone();
        async move {
            let path = request.uri().path().trim_start_matches('/');
            let service = path.split('/').next().unwrap_or_default();
            if service == delegated::SERVICE {
                return Ok::<Response<Body>, Infallible>(delegation.answer(peer, request).await);
            }
            routes.call(request).await
        }
    });
    let never = std::future::pending();
    let served = ah_spire_wire::serve(stream, rpc.layer(service), Limits::default(), never);
    let ended = async {
        match end {
            Some(end) => end.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(%error, "a connection to the admin API broke");
        },
        () = ended => tracing::debug!("a caller of the admin API ended"),
    }
}
