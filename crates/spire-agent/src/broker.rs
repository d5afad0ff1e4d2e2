//! The SPIFFE Broker API (`experimental.broker`): what workloads would be served, told to brokers that act in their place.
//!
//! A broker shows its X509-SVID, and only those come in that the configuration names: over a unix socket, TCP, or both.
//! It names the workload by a reference, of a kind that the configuration allows it there, and the workload attestors say
//! what that is. What registration entries mark as admin or downstream is kept from it.

mod service;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Clock, Code, Explained};
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_plugin::agent::BrokerConfig;
use ah_spire_telemetry::{Metrics, RpcMetrics};
use ah_spire_wire::Limits;
use http::Request;
use hyper::body::Incoming;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, service_fn};

use crate::cache::Cache;
use crate::own::OwnIdentity;
use crate::workload::Attest;

use service::Brokerage;
use tls::Configs;

/// The agent's user and group may connect; who then calls is up to TLS.
const PURPOSE: Purpose = Purpose {
    api: "Broker API",
    key: "experimental.broker.socket_path",
    mode: 0o770,
    folder_mode: 0o755,
};

/// From accept to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at a time: each costs a signature.
const HANDSHAKES: usize = 64;

/// Before the next connection is accepted after one could not be, as without a file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a broker reached the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Unix,
    Tcp,
}

/// The bound addresses.
pub(crate) struct BrokerApi<A> {
    socket: Option<Socket>,
    listener: Option<TcpListener>,
    shared: Arc<Shared<A>>,
}

struct Shared<A> {
    configs: Configs,
    brokerage: Arc<Brokerage<A>>,
    handshakes: Semaphore,
    rpc: RpcMetrics,
}

impl<A: Attest> BrokerApi<A> {
    /// Takes the addresses of `config`. TLS is with what `own` holds at the time of a handshake.
    ///
    /// # Errors
    /// An address cannot be had, or there is no broker; they name it and the remedy.
    pub(crate) async fn bind(
        config: &BrokerConfig,
        cache: Arc<Cache>,
        attestor: Arc<A>,
        own: watch::Receiver<Option<Arc<OwnIdentity>>>,
        clock: Arc<dyn Clock>,
        post_quantum_only: bool,
        metrics: &Metrics,
    ) -> Result<Self, Explained> {
        if config.brokers.is_empty() {
            return Err(
                Explained::new(Code::Usage, "experimental.broker has no brokers").hint(
                    "name the SPIFFE IDs that may ask in `brokers`, or take the block out: nobody could call",
                ),
            );
        }
        let ids = config.brokers.iter().map(|broker| broker.id.clone());
        let configs = Configs::new(
            own,
            cache.bundles(),
            ids.collect(),
            clock,
            post_quantum_only,
        );
        let brokerage = Brokerage::new(&config.brokers, cache, attestor, metrics)?;
        let socket = match &config.socket {
            Some(path) => Some(Socket::bind(path, &PURPOSE)?),
            None => None,
        };
        let listener = match config.bind_address {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        Ok(Self {
            socket,
            listener,
            shared: Arc::new(Shared {
                configs,
                brokerage: Arc::new(brokerage),
                handshakes: Semaphore::new(HANDSHAKES),
                rpc: RpcMetrics::new(metrics),
            }),
        })
    }

    /// Serves until `stop`, then cuts what is open.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let Self {
            socket,
            listener,
            shared,
        } = self;
        let unix = async {
            let Some(socket) = socket else { return };
            tracing::info!(socket = %socket.path().display(), "serving the Broker API");
            let take = |stream| {
                let served = shared.clone().connection(stream, Door::Unix);
                connections.spawn(cut(stop.clone(), served));
            };
            socket.serve(stop.cancelled(), take).await;
        };
        let tcp = async {
            let Some(listener) = listener else { return };
            let address = listener.local_addr().map(|address| address.to_string());
            let address = address.unwrap_or_default();
            tracing::info!(address, "serving the Broker API over TCP");
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        let served = shared.clone().connection(stream, Door::Tcp);
                        connections.spawn(cut(stop.clone(), served));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection to the Broker API could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::join!(unix, tcp);
        connections.close();
        connections.wait().await;
    }
}

async fn cut(stop: CancellationToken, served: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = served => {}
    }
}

impl<A: Attest> Shared<A> {
    async fn connection<T>(self: Arc<Self>, transport: T, door: Door)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(config) = self.configs.current() else {
            tracing::debug!("a broker came before the agent has an SVID and a bundle");
            return;
        };
        // A place among the handshakes is taken only once the ClientHello is complete: silent sockets hold none.
        let handshake = async {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), transport).await?;
            let _place = self.handshakes.acquire().await;
            hello.into_stream(config).await
        };
        let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake of the Broker API failed");
                return;
            }
            Err(_) => {
                tracing::debug!("a TLS handshake of the Broker API took too long");
                return;
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(broker) = crate::attest::id_of(chain) else {
            return;
        };
        let broker = Arc::new(broker);
        let brokerage = self.brokerage.clone();
        let caller = broker.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (brokerage, caller) = (brokerage.clone(), caller.clone());
            async move {
                let answer = brokerage.answer(&caller, door, request).await;
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let never = std::future::pending();
        let service = self.rpc.layer(service);
        if let Err(error) = ah_spire_wire::serve(stream, service, Limits::default(), never).await {
            tracing::debug!(%broker, %error, "a connection to the Broker API broke");
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Explained> {
    TcpListener::bind(address).await.map_err(|error| {
        let text = format!("cannot listen on experimental.broker.bind_address {address}");
        Explained::new(Code::Other, text)
            .cause(error)
            .hint("stop what listens there, or choose another address")
    })
}
