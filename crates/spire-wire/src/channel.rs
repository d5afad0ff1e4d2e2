//! Calls over one connection.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tower::Service;

/// The largest message either side takes, in bytes. A page of entries or a set of some thousand federated bundles fits.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// How often an idle connection is probed. Peers built on grpc-go hang up on clients that ping more often than every
/// five minutes.
const PING_EVERY: Duration = Duration::from_secs(6 * 60);

/// What is buffered of a stream that is not read, in bytes.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// One HTTP/2 connection that generated clients send their calls over. It closes with its last clone.
#[derive(Clone, Debug)]
pub struct Channel {
    requests: http2::SendRequest<Body>,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl Channel {
    /// Over a unix socket.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path).await?).await
    }

    /// Over `transport`, which is connected, and encrypted where it has to be.
    pub async fn over<T>(transport: T) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake::<_, Body>(TokioIo::new(transport))
            .await
            .map_err(io::Error::other)?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(Self {
            requests,
            _connection: Arc::new(AbortOnDropHandle::new(connection)),
        })
    }

    /// The origin that generated clients want (`Client::with_origin`). No peer looks at it.
    pub fn origin() -> http::Uri {
        http::Uri::from_static("http://localhost")
    }

    /// Whether the connection has ended: calls on it fail.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
