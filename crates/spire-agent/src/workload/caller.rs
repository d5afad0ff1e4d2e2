//! Who calls.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Named, PID_REFERENCE, Reference, WorkloadAttestor};
use ah_spire_telemetry::{CallCounter, Metrics, Summary};
use ah_spire_wire::broker::WorkloadPidReference;
use ah_spire_wire::model::Selector;
use prost::Message;
use prost_types::Any;
use spiffe::SpiffeId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tonic::{Code, Status};

/// What says what a process is.
pub trait Attest: Send + Sync + 'static {
    /// The selectors of `peer`. Has to fail when it ended or changed meanwhile ([`PeerInfo::verify`]).
    fn attest(
        &self,
        peer: &PeerInfo,
    ) -> impl Future<Output = Result<Vec<Selector>, AttestError>> + Send;

    /// The selectors of the workload that `reference` names; `None` when nobody knows references of its kind.
    fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> impl Future<Output = Result<Option<Vec<Selector>>, AttestError>> + Send {
        async move {
            match reference.workload {
                Named::Process(peer) => self.attest(peer).await.map(Some),
                Named::Other(_) => Ok(None),
            }
        }
    }
}

/// All workload attestors of an agent.
#[derive(Debug)]
pub struct Attestors<A>(pub Vec<A>);

impl<A: WorkloadAttestor + 'static> Attest for Attestors<A> {
    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let selectors = ah_spire_attest::workload::attest(&self.0, peer).await?;
        Ok(sorted(selectors))
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        let found = ah_spire_attest::workload::attest_reference(&self.0, reference).await?;
        Ok(found.map(sorted))
    }
}

fn sorted(mut selectors: Vec<Selector>) -> Vec<Selector> {
    selectors.sort_unstable();
    selectors.dedup();
    selectors
}

/// Attests whoever calls, counts it, and tells the log what the caller is not told.
pub(crate) struct Attestation<A> {
    attestor: Arc<A>,
    calls: CallCounter,
    selectors: Summary,
}

impl<A: Attest> Attestation<A> {
    pub(crate) fn new(attestor: Arc<A>, metrics: &Metrics) -> Self {
        Self {
            attestor,
            calls: metrics.calls(&["workload_api", "workload_attestation"], &[]),
            selectors: metrics.summary(&["workload_api", "discovered_selectors"], &[]),
        }
    }

    /// The selectors of `peer`, found out anew.
    pub(crate) async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, Status> {
        let found = self.counted(self.attestor.attest(peer)).await;
        found.map_err(|error| {
            let hint = error.explained().hint.as_deref();
            tracing::error!(pid = peer.pid(), %error, hint, "workload attestation failed");
            Status::unavailable("workload attestation failed")
        })
    }

    /// The selectors of the workload that `broker` names by `reference`.
    pub(crate) async fn attest_reference(
        &self,
        broker: &SpiffeId,
        reference: &Any,
    ) -> Result<Vec<Selector>, Status> {
        let process = match reference.type_url.as_str() {
            PID_REFERENCE => Some(process(&reference.value)?),
            _ => None,
        };
        let reference = Reference {
            broker,
            workload: match &process {
                Some(peer) => Named::Process(peer),
                None => Named::Other(reference),
            },
        };
        let found = self.counted(self.attestor.attest_reference(&reference));
        let found = found.await.map_err(|error| {
            let hint = error.explained().hint.as_deref();
            tracing::error!(%broker, %error, hint, "attestation for a broker failed");
            refused(&error)
        })?;
        found.ok_or_else(|| Status::unimplemented("no workload attestor handled reference"))
    }

    async fn counted<T: Found>(
        &self,
        attesting: impl Future<Output = Result<T, AttestError>>,
    ) -> Result<T, AttestError> {
        let attestation = self.calls.start();
        let found = attesting.await;
        match &found {
            Ok(found) => {
                attestation.done(Code::Ok);
                self.selectors.observe(found.count() as f64);
            }
            Err(_) => attestation.done(Code::Unavailable),
        }
        found
    }
}

/// What an attestation found.
trait Found {
    fn count(&self) -> usize;
}

impl Found for Vec<Selector> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl Found for Option<Vec<Selector>> {
    fn count(&self) -> usize {
        self.as_ref().map_or(0, Vec::len)
    }
}

/// The process that a reference names by its number.
fn process(reference: &[u8]) -> Result<PeerInfo, Status> {
    let WorkloadPidReference { pid } =
        WorkloadPidReference::decode(reference).map_err(|error| {
            Status::invalid_argument(format!("unable to unmarshal PID reference: {error}"))
        })?;
    PeerInfo::of_process(pid).map_err(|error| {
        tracing::error!(pid, %error, "a broker asks for a process that cannot be attested");
        Status::not_found(format!(
            "process {pid} cannot be attested: it has ended, or is not seen from here"
        ))
    })
}

/// What a broker is told of a workload that could not be attested: the fault, since it may be the broker's own.
fn refused(error: &AttestError) -> Status {
    let text = format!("workload attestation failed: {error}");
    match error {
        AttestError::Invalid(_) => Status::invalid_argument(text),
        AttestError::Refused(_) => Status::permission_denied(text),
        AttestError::Unavailable(_) => Status::unavailable(text),
        AttestError::NotFound(_) => Status::not_found(text),
        AttestError::NotSetUp(_) => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}

/// Ends when the process does.
pub(crate) fn end_of(peer: &PeerInfo) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    // A descriptor of a process can be read from once the process has ended (pidfd_open(2)).
    let process = peer.as_fd().try_clone_to_owned()?;
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe for types that may close their descriptor; this one owns it"
    )]
    let process = AsyncFd::with_interest(process, Interest::READABLE)?;
    Ok(async move {
        // An error is as good as the end: without the descriptor nobody knows who calls.
        let _ = process.readable().await;
    })
}
