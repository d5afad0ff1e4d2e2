//! Workload attestation: from a process to selectors.

use std::future::Future;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use futures_util::future::join_all;

use crate::peer::{PeerError, PeerInfo};
use crate::{AttestError, PluginKind, Selector};

mod cgroup;
mod container;
pub mod docker;
pub mod k8s;
pub(crate) mod proc;
pub mod slurm;
pub mod systemd;
pub mod unix;

pub use proc::ProcRoot;

/// One way to say what a process is.
pub trait WorkloadAttestor: Send + Sync {
    /// Its name, and the type of its selectors.
    fn name(&self) -> &str;

    /// What it knows of `peer`. The caller asks [`PeerInfo::verify`] afterwards, so that an attestor may read
    /// procfs by process id.
    fn attest(
        &self,
        peer: &PeerInfo,
    ) -> impl Future<Output = Result<Vec<Selector>, AttestError>> + Send;

    /// How long [`Self::attest`] may take. What the other attestors found waits for it.
    fn deadline(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// What all of `attestors` know of `peer`, in their order. They run at once; one that fails, or does not answer by its
/// deadline, is logged and skipped.
///
/// # Errors
/// When `peer` is gone or changed meanwhile, and when every attestor failed.
pub async fn attest<A: WorkloadAttestor>(
    attestors: &[A],
    peer: &PeerInfo,
) -> Result<Vec<Selector>, AttestError> {
    peer.verify()?;
    let answers = join_all(attestors.iter().map(|attestor| in_time(attestor, peer))).await;
    // First of all: an attestor that failed because the process ended is not worth a line of its own.
    peer.verify()?;
    let mut selectors = Vec::new();
    let mut failures = Vec::new();
    for (attestor, answer) in attestors.iter().zip(answers) {
        match answer {
            Ok(found) => selectors.extend(found),
            Err(error) => {
                let error = error.of_plugin(PluginKind::WorkloadAttestor, attestor.name());
                let explained = error.explained();
                tracing::error!(
                    attestor = attestor.name(),
                    pid = peer.pid(),
                    %error,
                    hint = explained.hint.as_deref(),
                    "workload attestor failed"
                );
                failures.push(error);
            }
        }
    }
    if !failures.is_empty() && failures.len() == attestors.len() {
        return Err(all_failed(&failures));
    }
    Ok(selectors)
}

async fn in_time(
    attestor: &impl WorkloadAttestor,
    peer: &PeerInfo,
) -> Result<Vec<Selector>, AttestError> {
    let deadline = attestor.deadline();
    let answer = tokio::time::timeout(deadline, attestor.attest(peer)).await;
    answer.unwrap_or_else(|_| {
        Err(AttestError::unavailable(
            format!("no answer within {}s", deadline.as_secs()),
            format!(
                "find out what holds up the service that {:?} asks; until it answers, workloads wait that long and go \
                 without its selectors",
                attestor.name()
            ),
        ))
    })
}

fn all_failed(failures: &[AttestError]) -> AttestError {
    let mut explained = Explained::new(Code::Other, "all workload attestors failed");
    for failure in failures {
        explained = explained.cause(failure);
    }
    explained.hint = failures
        .iter()
        .find_map(|failure| failure.explained().hint.clone());
    AttestError::Internal(explained)
}

impl From<PeerError> for AttestError {
    fn from(error: PeerError) -> Self {
        let explained = Explained::new(Code::Other, error.to_string());
        match error {
            PeerError::Unseen | PeerError::System { .. } => Self::Internal(explained),
            PeerError::Gone { .. } | PeerError::Changed { .. } => Self::Refused(explained),
        }
    }
}
