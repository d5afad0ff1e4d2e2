//! One connection to a Workload API and the stream of sets that comes over it.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::Endpoint;
use super::set::SvidSet;

#[expect(unreachable_pub, reason = "generated from workload.proto")]
pub(super) mod proto {
    tonic::include_proto!("_");
}

use proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::{X509svidRequest, X509svidResponse};

/// How long connecting and the first answer may take, each. An agent may have to ask a container runtime or a kubelet who we are.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The largest message that is taken. An SVID has some 2 KiB and a root 1 KiB: thousands of federated domains fit.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// How often an idle connection is probed. Agents built on grpc-go hang up on clients that ping more often than every five minutes.
const PING_EVERY: Duration = Duration::from_secs(6 * 60);

/// What is buffered of a stream that is not read.
const WINDOW_BYTES: u32 = 256 * 1024;

/// Why there is no set, or no further one.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Nobody could be reached.
    Connect(io::ErrorKind, String),
    /// What answers does not speak the protocol.
    Protocol(String),
    /// Connected, and no answer in time.
    Silent(Duration),
    /// PermissionDenied, with the agent's words: no identity for this process.
    Denied(String),
    /// The agent ended the stream, or went away.
    Ended(String),
    /// The agent refuses what was asked.
    Refused(String),
    /// Larger than [`MAX_MESSAGE_BYTES`].
    TooLarge,
}

/// An open stream.
pub(super) struct SvidStream {
    messages: Streaming<X509svidResponse>,
    _connection: AbortOnDropHandle<()>,
}

/// A stream and what came over it first.
pub(super) struct Opened {
    pub(super) stream: SvidStream,
    pub(super) first: SvidSet,
}

impl SvidStream {
    /// Connects and waits for the first set, which agents send at once (SV-75).
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Opened, Fault> {
        let opening = async {
            match endpoint {
                Endpoint::Unix(path) => Self::over(UnixStream::connect(path).await).await,
                Endpoint::Tcp(address) => Self::over(TcpStream::connect(address).await).await,
            }
        };
        timeout(ANSWER_WITHIN, opening)
            .await
            .unwrap_or(Err(Fault::Silent(ANSWER_WITHIN)))
    }

    async fn over<T>(connected: io::Result<T>) -> Result<Opened, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let transport =
            connected.map_err(|error| Fault::Connect(error.kind(), error.to_string()))?;
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake::<_, Body>(TokioIo::new(transport))
            .await
            .map_err(|error| Fault::Protocol(error.to_string()))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the Workload API ended");
            }
        }));
        let service = tower::service_fn(move |request| requests.clone().send_request(request));
        // No agent looks at the authority; HTTP wants one.
        let origin = http::Uri::from_static("http://localhost");
        let mut client = SpiffeWorkloadApiClient::with_origin(service, origin)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(X509svidRequest {});
        // The header without which no agent answers (SV-69): what a browser can be made to send has it not.
        request
            .metadata_mut()
            .insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let answer = client.fetch_x509svid(request).await;
        let mut stream = Self {
            messages: answer.map_err(|status| fault(&status))?.into_inner(),
            _connection: connection,
        };
        let first = stream.next().await?;
        Ok(Opened { stream, first })
    }

    /// The next set. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<SvidSet, Fault> {
        match self.messages.message().await {
            Ok(Some(response)) => Ok(SvidSet::from(response)),
            Ok(None) => Err(Fault::Ended("it ended the stream".to_owned())),
            Err(status) => Err(fault(&status)),
        }
    }
}

/// Workload Endpoint §6, and what the transport makes of its own troubles.
fn fault(status: &Status) -> Fault {
    let words = || {
        let message = status.message();
        let code = format!("{:?}", status.code());
        if message.is_empty() {
            code
        } else {
            format!("{code}: {message}")
        }
    };
    match status.code() {
        // A fault of the transport has a source; a status that was sent has none.
        _ if status.source().is_some() => Fault::Ended(words()),
        Code::PermissionDenied => Fault::Denied(status.message().to_owned()),
        Code::OutOfRange => Fault::TooLarge,
        Code::InvalidArgument | Code::Unimplemented | Code::Unauthenticated => {
            Fault::Refused(words())
        }
        _ => Fault::Ended(words()),
    }
}
