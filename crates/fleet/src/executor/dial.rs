//! From an address to an enrolled session: connect, HTTP/2, hello, welcome.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ah_identity_provider::{Clock, Code, Explained};
use ah_tls::{ClientConfigs, ExecutorStream, Fate, connect};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tower::BoxError;

use super::Remote;
use super::link::Link;
use crate::codec::MAX_MESSAGE_BYTES;
use crate::moment::unix_millis;
use crate::proto::access_point_message::Kind as Incoming;
use crate::proto::executor_message::Kind as Outgoing;
use crate::proto::fleet_client::FleetClient;
use crate::proto::{ExecutorMessage, Hello};
use crate::refusal;

/// Messages under way to the access point: a heartbeat, an answer and a goodbye fit.
const OUTBOX: usize = 4;
/// Receive window of the connection: one message of the largest size fits.
const WINDOW_BYTES: u32 = 2 * MAX_MESSAGE_BYTES as u32;

/// Connects to `remote`, introduces ourselves with `hello` and waits for the welcome; `timeout` covers it all.
pub(super) async fn open(
    remote: Remote,
    configs: ClientConfigs,
    hello: Hello,
    timeout: Duration,
    clock: Arc<dyn Clock>,
) -> Result<Link, Explained> {
    let deadline = Instant::now() + timeout;
    let connected = connect(&remote.host, remote.port, &configs, timeout).await?;
    let fate = connected.fate.clone();
    let welcomed = welcome(connected, &remote, hello, clock);
    match tokio::time::timeout_at(deadline, welcomed).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(explained)) => Err(fate.explain().unwrap_or(explained)),
        Err(_) => Err(fate
            .explain()
            .unwrap_or_else(|| no_welcome(&remote, timeout))),
    }
}

async fn welcome(
    connected: ah_tls::Connected,
    remote: &Remote,
    hello: Hello,
    clock: Arc<dyn Clock>,
) -> Result<Link, Explained> {
    let (requests, connection) = speak_http2(connected.stream, remote).await?;
    let origin = http::Uri::try_from(format!("https://{remote}")).map_err(|error| {
        Explained::new(Code::Usage, format!("{remote} is not an address")).cause(error)
    })?;
    let mut client = FleetClient::with_origin(Channel(requests, remote.clone()), origin)
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let greeting = ExecutorMessage {
        kind: Some(Outgoing::Hello(Box::new(Hello {
            clock_unix_ms: unix_millis(clock.now()),
            ..hello
        }))),
    };
    let sent_at = Instant::now();
    // The receiver is alive and the channel empty: this cannot fail.
    let _ = outbox.try_send(greeting);
    let mut inbound = client
        .enroll(ReceiverStream::new(messages))
        .await
        .map_err(|status| refused(&status, &connected.fate, remote))?
        .into_inner();
    let first = inbound
        .message()
        .await
        .map_err(|status| refused(&status, &connected.fate, remote))?
        .and_then(|message| message.kind);
    let welcome = match first {
        Some(Incoming::Welcome(welcome)) => welcome,
        _ => return Err(lost(remote, "its first message was not a welcome")),
    };
    Ok(Link::new(
        remote.clone(),
        connected.remote,
        connected.server,
        connected.published,
        connected.fate,
        welcome,
        sent_at,
        outbox,
        inbound,
        connection,
        clock,
    ))
}

/// HTTP/2 on `stream`, driven by a task of its own.
pub(super) async fn speak_http2(
    stream: ExecutorStream,
    remote: &Remote,
) -> Result<(SendRequest<Body>, AbortOnDropHandle<()>), Explained> {
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(MAX_MESSAGE_BYTES)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| lost(remote, &error.to_string()))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    }));
    Ok((requests, connection))
}

/// What ended the call: an alert that arrived as TLS, or the status that the access point gave.
fn refused(status: &tonic::Status, fate: &Fate, remote: &Remote) -> Explained {
    if let Some(alert) = fate.explain() {
        return alert;
    }
    let explained = refusal::from_status(status);
    if status.metadata().is_empty() {
        return lost(remote, &explained.text);
    }
    explained
}

/// `Err` when this is no answer of gRPC over HTTP/2, not even one to a question that the service does not know.
pub(super) fn ours<T>(answer: &http::Response<T>, remote: &Remote) -> Result<(), Explained> {
    let kind = answer.headers().get(http::header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Ok(());
    }
    let status = answer.status();
    let cause = format!("it answers as a web server does: {status}");
    Err(not_ours(remote, &cause))
}

/// Somebody else listens there.
pub(super) fn not_ours(remote: &Remote, cause: &str) -> Explained {
    Explained::new(Code::Other, format!("{remote} is not an access point"))
        .cause(cause)
        .hint("check host and port (4433 by default), and that no proxy ends TLS on the way")
}

pub(super) fn lost(remote: &Remote, why: &str) -> Explained {
    Explained::new(
        Code::Unavailable,
        format!("connection to {remote} was lost"),
    )
    .cause(why)
    .hint("the access point's log tells why, if it ended the connection")
}

fn no_welcome(remote: &Remote, timeout: Duration) -> Explained {
    Explained::new(
        Code::ConnectionTimedOut,
        format!("connection timed out after {}", humane(timeout)),
    )
    .cause(format!(
        "{remote} accepted the connection but sent no welcome"
    ))
    .hint("check that the port is an access point's and that it is not overloaded")
}

/// `30s` rather than `30.0s`.
fn humane(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        (0, millis) => format!("{millis}ms"),
        _ => format!("{:.1}s", duration.as_secs_f64()),
    }
}

/// One HTTP/2 connection, and to whom, as the service that generated clients call.
#[derive(Clone)]
struct Channel(SendRequest<Body>, Remote);

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = BoxError;
    type Future = Pin<
        Box<dyn Future<Output = Result<http::Response<hyper::body::Incoming>, BoxError>> + Send>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answered = self.0.send_request(request);
        let remote = self.1.clone();
        Box::pin(async move {
            let answer = answered.await?;
            // As a status, so that the client hands it on.
            ours(&answer, &remote).map_err(|stranger| refusal::to_status(&stranger))?;
            Ok(answer)
        })
    }
}
