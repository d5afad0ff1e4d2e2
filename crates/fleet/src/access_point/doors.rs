//! The listeners of the HTTP side: the admin socket, and TCP with or without TLS.

use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Explained;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Operator;
use super::http::{Token, admin_router, tcp_router};
use crate::socket::PrivateSocket;

/// A TLS handshake on the HTTP side must be done within this time.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// What is under way when the HTTP side stops has this long.
const GRACE: Duration = Duration::from_secs(5);
/// Handshakes under way at a time on the HTTP side.
const MAX_HANDSHAKES: usize = 64;

/// The bound admin socket (AP-14).
pub struct AdminSocket(PrivateSocket);

impl AdminSocket {
    /// Takes `path` with mode 0600.
    pub fn bind(path: &Path) -> Result<Self, Explained> {
        PrivateSocket::bind(path, "admin socket", "--admin-socket", "an access point").map(Self)
    }

    /// Answers operators until `stop`.
    pub async fn serve(mut self, operator: Operator, stop: CancellationToken) -> io::Result<()> {
        // The listener moves into the server; the guard stays here to remove the file.
        let listener = self.0.take_listener()?;
        serve(listener, admin_router(operator), stop).await
    }
}

/// Answers until `stop`; requests under way then have [`GRACE`] to finish. Half a request is no reason to stay.
async fn serve<L>(listener: L, router: axum::Router, stop: CancellationToken) -> io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let last = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        }
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        ended = serving.into_future() => ended,
        () = last => Ok(()),
    }
}

/// Answers on `listener` without TLS until `stop` (AP-13: loopback only, which the settings see to). The token of the moment
/// is asked for with each request.
pub async fn serve_http(
    listener: TcpListener,
    operator: Operator,
    token: Option<watch::Receiver<Token>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = tcp_router(operator, token, listener.local_addr()?, false);
    serve(listener, router, stop).await
}

/// Answers on `listener` with TLS until `stop`. The configuration of the moment is taken for each connection, the token
/// for each request.
pub async fn serve_https(
    listener: TcpListener,
    configs: watch::Receiver<Arc<rustls::ServerConfig>>,
    operator: Operator,
    token: Option<watch::Receiver<Token>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = tcp_router(operator, token, listener.local_addr()?, true);
    let listener = TlsListener::over(listener, configs)?;
    serve(listener, router, stop).await
}

/// Connections that finished their handshake, so that a slow one does not hold up the next.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    _accepting: tokio_util::task::AbortOnDropHandle<()>,
}

impl TlsListener {
    fn over(
        listener: TcpListener,
        configs: watch::Receiver<Arc<rustls::ServerConfig>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(MAX_HANDSHAKES);
        let accepting = tokio::spawn(async move {
            loop {
                // A place in the channel is the permit for a handshake.
                let Ok(place) = done.clone().reserve_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let acceptor = TlsAcceptor::from(Arc::clone(&configs.borrow()));
                        tokio::spawn(async move {
                            let handshake = acceptor.accept(stream);
                            match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
                                Ok(Ok(stream)) => {
                                    place.send((stream, peer));
                                }
                                Ok(Err(error)) => {
                                    tracing::debug!(%peer, %error, "HTTPS handshake failed")
                                }
                                Err(_) => tracing::debug!(%peer, "HTTPS handshake timed out"),
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "HTTPS listener cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self {
            ready,
            address,
            _accepting: tokio_util::task::AbortOnDropHandle::new(accepting),
        })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
