//! Calls to the agent.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::Channel;
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::failure::Failure;
use super::socket;

/// How long an answer is waited for unless `-timeout` says otherwise. As upstream.
const TIMEOUT: Duration = Duration::from_secs(5);

const SOCKET_USAGE: &str = "Path to the SPIRE Agent API Unix domain socket";

/// `-timeout`, `-socketPath` and `-instance`.
pub(super) fn with_flags(flags: FlagSet) -> FlagSet {
    let flags = flags.duration_value("timeout", TIMEOUT, "Time to wait for a response");
    socket::with_flags(flags, SOCKET_USAGE)
}

/// A connection to an agent.
pub(super) struct Agent {
    pub(super) channel: Channel,
    path: PathBuf,
    timeout: Duration,
}

impl Agent {
    /// Connects as `flags` say.
    pub(super) async fn connect(flags: &Flags) -> Result<Self, Failure> {
        let timeout = flags.duration("timeout");
        Self::at(socket::path(flags)?, timeout).await
    }

    /// Connects to `path`; calls have `timeout`, or all the time there is if that is zero.
    pub(super) async fn at(path: PathBuf, timeout: Duration) -> Result<Self, Failure> {
        match Channel::unix(&path).await {
            Ok(channel) => Ok(Self {
                channel,
                path,
                timeout,
            }),
            Err(error) => Err(not_reached(&path, &error).into()),
        }
    }

    pub(super) fn workload_api(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::with_origin(self.channel.clone(), Channel::origin())
            .max_decoding_message_size(ah_spire_wire::MAX_MESSAGE_BYTES)
    }

    /// What the call gives, in time.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answered = async {
            if self.timeout.is_zero() {
                return call.await;
            }
            tokio::time::timeout(self.timeout, call)
                .await
                .unwrap_or_else(|_| Err(deadline_exceeded()))
        };
        answered.await.map(Response::into_inner)
    }

    /// The first message of a stream, in time.
    pub(super) async fn first<T>(
        &self,
        call: impl Future<Output = Result<Response<tonic::Streaming<T>>, Status>>,
    ) -> Result<T, Status> {
        self.answer(async {
            let first = call.await?.into_inner().message().await?;
            // grpc-go's text for the end of a stream.
            first
                .map(Response::new)
                .ok_or_else(|| Status::unknown("EOF"))
        })
        .await
    }

    /// Whether it was not the agent that said this, but the connection that failed.
    pub(super) fn was_lost(status: &Status) -> bool {
        std::error::Error::source(status).is_some()
    }

    /// What to tell of a failed call.
    pub(super) fn failed(&self, status: &Status) -> Failure {
        if self.channel.is_closed() && Self::was_lost(status) {
            return failed(&self.path, "what listens there does not speak gRPC")
                .hint("give the agent's public socket with -socketPath")
                .into();
        }
        Failure::refused(status)
    }
}

/// `message` with the header that the Workload API asks for (SV-69).
pub(super) fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// ER-11
pub(super) fn not_reached(path: &Path, error: &io::Error) -> Explained {
    match error.kind() {
        io::ErrorKind::NotFound => failed(path, "no such file").hint(
            "see that the agent runs, or name its socket with -socketPath or SPIRE_AGENT_PUBLIC_SOCKET",
        ),
        io::ErrorKind::PermissionDenied => failed(path, "permission denied").hint(format!(
            "let this user reach and write the socket: `ls -la {}`",
            path.parent().unwrap_or(Path::new("/")).display()
        )),
        io::ErrorKind::ConnectionRefused => failed(path, "connection refused")
            .hint("nobody listens there: see that the agent runs"),
        _ => failed(path, error).hint("name the agent's public socket with -socketPath"),
    }
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Explained {
    let path = path.display();
    Explained::new(
        Code::WorkloadApi,
        format!("failed to connect to Workload API: {path}: {why}"),
    )
}
