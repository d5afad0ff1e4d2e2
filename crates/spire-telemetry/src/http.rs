//! A small HTTP server for answers that are made at once: metrics, health, a bundle document.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time for those who watch over a process; more wait to be accepted.
pub(crate) const FEW_CONNECTIONS: usize = 64;

/// A request's headers, and a TLS handshake, have this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection is cut after this time, so that one that takes no answer keeps no place.
const LONGEST: Duration = Duration::from_secs(300);

/// After a failure to accept, so that a process without free descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// The other end of a request's connection, among the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A bound listener of HTTP/1.1.
pub struct Http {
    /// Where it listens.
    pub listener: TcpListener,
    /// For HTTPS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections at a time; more wait to be accepted.
    pub most_connections: usize,
}

/// A bound listener for `host` and `port`.
pub(crate) async fn bind(host: &str, port: &str) -> io::Result<TcpListener> {
    let port = match port.parse::<u16>() {
        Ok(port) => port,
        Err(_) => service_port(port)?,
    };
    TcpListener::bind((host, port)).await
}

/// A bound listener for an address as Go writes it, `HOST:PORT`: without a host it is of all this machine's addresses.
///
/// # Errors
/// It is no such address, or cannot be had.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    let (host, port) = address.rsplit_once(':').ok_or_else(|| {
        let why = format!("{address:?} has no port: write HOST:PORT, or :PORT for all addresses");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    match host.trim_matches(['[', ']']) {
        "" => match bind("::", port).await {
            // On a machine without IPv6.
            Err(_) => bind("0.0.0.0", port).await,
            bound => bound,
        },
        host => bind(host, port).await,
    }
}

/// What a service's name stands for, of those that health checks are known to be put on.
fn service_port(name: &str) -> io::Result<u16> {
    match name {
        "http" => Ok(80),
        "https" => Ok(443),
        "http-alt" => Ok(8080),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a port"),
        )),
    }
}

impl Http {
    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`, then cuts what is open.
    pub async fn serve<F>(self, answer: F, stop: CancellationToken)
    where
        F: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + 'static,
    {
        let at_once = move |request| std::future::ready(answer(&request));
        self.serve_slowly(at_once, stop).await;
    }

    /// The same, for answers that take their time. One whose caller goes away is dropped.
    pub(crate) async fn serve_slowly<F, A>(self, answer: F, stop: CancellationToken)
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(self.most_connections));
        let tasks = TaskTracker::new();
        let tls = self.tls.map(TlsAcceptor::from);
        let accept = async || {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, self.listener.accept().await)
        };
        loop {
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let answer = answer.clone();
                    let answer = move |mut request: Request<Incoming>| {
                        request.extensions_mut().insert(Peer(peer));
                        answer(request)
                    };
                    let connection = connection(stream, tls.clone(), answer);
                    let cut = stop.clone();
                    tasks.spawn(async move {
                        let _place = place;
                        if let Err(error) = cut_short(connection, cut).await {
                            tracing::debug!(%peer, %error, "HTTP connection broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "HTTP connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }
}

/// Until `stop`, and not for longer than a connection may take.
async fn cut_short(
    connection: impl Future<Output = io::Result<()>>,
    stop: CancellationToken,
) -> io::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = tokio::time::timeout(LONGEST, connection) => ended.unwrap_or(Ok(())),
    }
}

/// Answers the requests of one connection that somebody else accepted, until `stop`.
///
/// # Errors
/// The connection broke.
pub async fn answer_on<T, F>(stream: T, answer: F, stop: CancellationToken) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Fn(&Request<Incoming>) -> Response<Full<Bytes>>,
{
    let at_once = move |request| std::future::ready(answer(&request));
    cut_short(requests(stream, at_once), stop).await
}

async fn connection<F, A>(stream: TcpStream, tls: Option<TlsAcceptor>, answer: F) -> io::Result<()>
where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Full<Bytes>>>,
{
    match tls {
        None => requests(stream, answer).await,
        Some(acceptor) => {
            let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
            requests(stream, answer).await
        }
    }
}

fn requests<T, F, A>(stream: T, answer: F) -> impl Future<Output = io::Result<()>>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(move |request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    async move { connection.await.map_err(io::Error::other) }
}

/// An answer of one piece.
pub fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response
}
