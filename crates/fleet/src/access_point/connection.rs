//! One verified connection: HTTP/2, the fleet service, and an end in good time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ah_tls::Accepted;
use futures_util::Stream;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};

use super::opening::Opening;
use super::registry::Caller;
use super::{Shared, session};
use crate::codec::MAX_MESSAGE_BYTES;
use crate::proto::fleet_server::{Fleet, FleetServer};
use crate::proto::{AccessPointMessage, ExecutorMessage};

/// Calls at a time on one connection: the session, and room for one that replaces it.
const MAX_CALLS: u32 = 4;
/// Most bytes of a request's headers. Ours have about 200.
const MAX_HEADER_BYTES: u32 = 8 * 1024;
/// A stream's receive window: one message of the largest size fits.
const WINDOW_BYTES: u32 = MAX_MESSAGE_BYTES as u32 + 1024;
/// After the last call ended, the peer has this long to close or to call again.
const LINGER: Duration = Duration::from_secs(2);
/// After we closed, what is still to be written has this long to leave.
const FLUSH: Duration = Duration::from_secs(5);

/// Serves `accepted` until either side closes it, or until it has no call for too long.
///
/// Not an `async fn`, and the connection boxed: what is moved about in here would otherwise take its place
/// in the future more than once, some 6 KiB for each idle executor.
pub(super) fn serve(
    shared: Arc<Shared>,
    accepted: Accepted,
) -> impl Future<Output = ()> + Send + 'static {
    let calls = Arc::new(Calls::default());
    let service = FleetServer::new(Service {
        calls: Arc::clone(&calls),
        caller: Caller {
            peer: accepted.peer,
            remote: accepted.remote,
            generation: accepted.generation,
        },
        shared: Arc::clone(&shared),
    })
    .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut connection = Box::pin(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CALLS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .max_send_buf_size(MAX_MESSAGE_BYTES)
            .serve_connection(
                // Boxed, as both parts fit their places in the heap better than the whole.
                TokioIo::new(Opening::new(Box::new(accepted.stream))),
                TowerToHyperService::new(service),
            ),
    );
    let remote = accepted.remote;
    async move {
        let first_call_within = shared.handshake_timeout();
        let mut idle_for = first_call_within;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break Some(ended),
                () = calls.changed.notified() => idle_for = LINGER,
                () = tokio::time::sleep(idle_for), if calls.none() => break None,
                // A call that is on its way when we say so is still answered.
                () = shared.draining.cancelled(), if calls.none() => break None,
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(FLUSH, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %remote, %error, "connection ended");
        }
    }
}

/// How many calls a connection has, and news of it.
#[derive(Default)]
struct Calls {
    open: AtomicUsize,
    changed: Notify,
}

impl Calls {
    fn none(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }
}

/// Counts one call for as long as it lives.
struct OpenCall(Arc<Calls>);

impl OpenCall {
    fn on(calls: &Arc<Calls>) -> Self {
        calls.open.fetch_add(1, Ordering::AcqRel);
        calls.changed.notify_one();
        Self(Arc::clone(calls))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

struct Service {
    shared: Arc<Shared>,
    caller: Caller,
    calls: Arc<Calls>,
}

#[tonic::async_trait]
impl Fleet for Service {
    type EnrollStream = Pin<Box<dyn Stream<Item = Result<AccessPointMessage, Status>> + Send>>;

    async fn enroll(
        &self,
        request: Request<Streaming<ExecutorMessage>>,
    ) -> Result<Response<Self::EnrollStream>, Status> {
        let call = OpenCall::on(&self.calls);
        let messages = session::serve(
            Arc::clone(&self.shared),
            self.caller.clone(),
            request.into_inner(),
        )
        .await?;
        Ok(Response::new(Box::pin(Counted { messages, call })))
    }
}

pin_project! {
    /// A session's messages, counted as an open call until they are dropped.
    struct Counted<S> {
        #[pin]
        messages: S,
        call: OpenCall,
    }
}

impl<S: Stream> Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.project().messages.poll_next(context)
    }
}
