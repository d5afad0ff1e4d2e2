//! The admin API on a socket of its own (`admin_socket_path`): what the log tells, and what the agent is about.
//! Whoever may open the socket may call.

mod debug;
mod logger;

use std::path::Path;
use std::sync::Arc;

use ah_identity_provider::Explained;
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_telemetry::{Log, Metrics, RpcMetrics};
use ah_spire_wire::Limits;
use ah_spire_wire::agent::debug::debug_server::DebugServer;
use ah_spire_wire::agent::logger::logger_server::LoggerServer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::Layer;

use crate::metrics::OpenCalls;

use debug::Debugger;
pub(crate) use debug::Insight;
use logger::Loggers;

/// The agent's user and group may call.
const PURPOSE: Purpose = Purpose {
    api: "admin API",
    key: "admin_socket_path",
    mode: 0o770,
    folder_mode: 0o755,
};

/// A bound socket.
pub(crate) struct AdminApi {
    socket: Socket,
    routes: Routes,
    rpc: RpcMetrics,
}

impl AdminApi {
    /// Takes the socket's path.
    ///
    /// # Errors
    /// The path cannot be had; they name it and the remedy.
    pub(crate) fn bind(
        path: &Path,
        insight: Insight,
        log: Arc<Log>,
        metrics: &Metrics,
    ) -> Result<Self, Explained> {
        let debug = Debugger::new(insight, OpenCalls::new(metrics, "debug_api"));
        let logger = Loggers::new(log, OpenCalls::new(metrics, "logger_api"));
        Ok(Self {
            socket: Socket::bind(path, &PURPOSE)?,
            routes: Routes::new(DebugServer::new(debug)).add_service(LoggerServer::new(logger)),
            rpc: RpcMetrics::new(metrics),
        })
    }

    /// Serves until `stop`, then cuts what is open.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let service = self.rpc.layer(self.routes);
        tracing::info!(socket = %self.socket.path().display(), "serving the admin API");
        let take = |stream| {
            let (service, cut) = (service.clone(), stop.clone());
            connections.spawn(async move {
                let never = std::future::pending();
                let served = ah_spire_wire::serve(stream, service, Limits::default(), never);
                tokio::select! {
                    () = cut.cancelled() => {}
                    served = served => if let Err(error) = served {
                        tracing::debug!(%error, "a connection to the admin API broke");
                    },
                }
            });
        };
        self.socket.serve(stop.cancelled(), take).await;
        connections.close();
        connections.wait().await;
    }
}
