//! Who calls.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::WorkloadAttestor;
use ah_spire_telemetry::{CallCounter, Metrics, Summary};
use ah_spire_wire::model::Selector;
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
}

/// All workload attestors of an agent.
#[derive(Debug)]
pub struct Attestors<A>(pub Vec<A>);

impl<A: WorkloadAttestor + 'static> Attest for Attestors<A> {
    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let mut selectors = ah_spire_attest::workload::attest(&self.0, peer).await?;
        selectors.sort_unstable();
        selectors.dedup();
        Ok(selectors)
    }
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
        let attestation = self.calls.start();
        match self.attestor.attest(peer).await {
            Ok(selectors) => {
                attestation.done(Code::Ok);
                self.selectors.observe(selectors.len() as f64);
                Ok(selectors)
            }
            Err(error) => {
                attestation.done(Code::Unavailable);
                let hint = error.explained().hint.as_deref();
                tracing::error!(pid = peer.pid(), %error, hint, "workload attestation failed");
                Err(Status::unavailable("workload attestation failed"))
            }
        }
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
