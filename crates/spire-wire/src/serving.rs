//! Answering calls on one connection.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower::Service;

use crate::authority::Relaxed;

/// What one connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls at a time.
    pub calls: u32,
    /// Bytes buffered of a call whose messages are not read.
    pub window: u32,
    /// Bytes buffered of an answer that the peer does not take.
    pub send_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls: 128,
            window: 256 * 1024,
            send_buffer: 256 * 1024,
        }
    }
}

/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// After `stop`, calls under way have this long to end.
const FLUSH: Duration = Duration::from_secs(5);

/// Answers the calls on `transport` with `service`, such as [`tonic::service::Routes`], until the peer closes it, or
/// until `stop` and the last call ended. Dropping it cuts the calls under way.
pub async fn serve<T, S>(
    transport: T,
    service: S,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut connection = Box::pin(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // gRPC has no use for it, and each connection would keep it in its table of headers.
            .auto_date_header(false)
            .max_concurrent_streams(limits.calls)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(limits.window)
            .initial_connection_window_size(limits.window)
            .max_send_buf_size(limits.send_buffer)
            .serve_connection(
                TokioIo::new(Relaxed::new(transport)),
                TowerToHyperService::new(service),
            ),
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(FLUSH, connection).await {
                Ok(ended) => ended,
                // Streams that have no end of their own are cut.
                Err(_) => Ok(()),
            }
        }
    };
    ended.map_err(io::Error::other)
}
