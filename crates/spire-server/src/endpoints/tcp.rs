//! The network's door: TLS with the server's SVID, a client certificate where the caller has one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use ah_spire_plugin::server::Cidr;
use ah_spire_wire::{Limits, serve};
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::proxy::Proxies;
use super::tls::{Configs, peer_svid};
use super::{HANDSHAKES, accept_loop};
use tower::Layer;

use crate::api::{Calls, Core, Peer, network_routes};
use crate::store::Store;

/// From accept to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection is closed after this long, so that agents spread over several servers again; a tenth more or less,
/// so that they do not all come back at once.
const MOST_AGE: Duration = Duration::from_secs(180);

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 1024;

/// A listening socket on `address`; port 0 takes any free port. Must be called in a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// The services on a listening socket.
pub struct Network {
    listener: TcpListener,
    configs: Configs,
    proxies: Proxies,
}

impl Network {
    /// Each handshake takes what `configs` holds at that time.
    pub fn new(listener: TcpListener, configs: Configs) -> Self {
        Self {
            listener,
            configs,
            proxies: Proxies::default(),
        }
    }

    /// The same behind proxies that tell who their clients are.
    #[must_use]
    pub fn behind(self, trusted: Vec<Cidr>) -> Self {
        Self {
            proxies: Proxies::new(trusted),
            ..self
        }
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers calls until `stop`, and those under way then.
    pub async fn run<S: Store>(self, core: Arc<Core<S>>, stop: CancellationToken) {
        let routes = network_routes(&core);
        let connection = |(stream, peer): (TcpStream, SocketAddr)| {
            let config = self.configs.current();
            let proxies = self.proxies.clone();
            let (core, routes, stop) = (core.clone(), routes.clone(), stop.clone());
            async move {
                let Some(config) = config else {
                    tracing::warn!(address = %peer, "No X509-SVID to present yet; a connection was closed");
                    return;
                };
                let handshake = handshake(stream, peer, &proxies, config);
                let (stream, address) = tokio::select! {
                    ended = tokio::time::timeout(HANDSHAKE, handshake) => match ended {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => {
                            tracing::debug!(%error, address = %peer, "A TLS handshake failed");
                            return;
                        }
                        Err(_) => {
                            tracing::debug!(address = %peer, "A TLS handshake took too long");
                            return;
                        }
                    },
                    () = stop.cancelled() => return,
                };
                let peer = match peer_svid(stream.get_ref().1) {
                    Ok(svid) => Peer::Remote { address, svid },
                    Err(error) => {
                        tracing::warn!(error, %address, "A client certificate cannot be read");
                        return;
                    }
                };
                let rpc = core.rpc.clone();
                let going = stop.child_token();
                let calls = rpc.layer(Calls::new(core, routes, peer).until(going.clone()));
                let age = MOST_AGE.mul_f64(rand::random_range(0.9..1.1));
                let enough = async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(age) => {}
                    }
                    going.cancel();
                };
                if let Err(error) = serve(stream, calls, Limits::default(), enough).await {
                    tracing::debug!(%error, %address, "A connection ended");
                }
            }
        };
        let accept = |context: &mut Context<'_>| self.listener.poll_accept(context);
        accept_loop(accept, connection, stop.cancelled()).await;
    }
}

/// With the address that the client has. A place among the handshakes is taken only once the ClientHello is complete: silent sockets hold none.
async fn handshake(
    mut stream: TcpStream,
    peer: SocketAddr,
    proxies: &Proxies,
    config: Arc<rustls::ServerConfig>,
) -> io::Result<(TlsStream<TcpStream>, SocketAddr)> {
    let _ = stream.set_nodelay(true);
    let address = proxies.client(&mut stream, peer).await?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let _place = HANDSHAKES
        .try_acquire()
        .map_err(|_| io::Error::other("too many handshakes at once"))?;
    Ok((hello.into_stream(config).await?, address))
}
