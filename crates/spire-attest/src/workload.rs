//! Workload attestation: from a process to selectors.

use std::future::Future;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use futures_util::future::join_all;
use prost_types::Any;
use spiffe::SpiffeId;

use crate::peer::{PeerError, PeerInfo};
use crate::{AttestError, PluginKind, Selector};

mod cgroup;
mod container;
pub mod docker;
pub mod k8s;
pub(crate) mod proc;
pub mod sigstore;
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

    /// What it knows of a workload that a broker names; `None` when it does not know references of that kind.
    fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> impl Future<Output = Result<Option<Vec<Selector>>, AttestError>> + Send {
        by_process(self, reference)
    }

    /// How long [`Self::attest`] may take. What the other attestors found waits for it.
    fn deadline(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// The type URL of a reference to a process by its number.
pub const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

/// The type URL of a reference to an object of Kubernetes.
pub const OBJECT_REFERENCE: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// A workload as a broker names it.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// Who asks.
    pub broker: &'a SpiffeId,
    /// For whom.
    pub workload: Named<'a>,
}

/// Whom a reference names.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// A process of this machine ([`PID_REFERENCE`]).
    Process(&'a PeerInfo),
    /// Something else that an attestor may know.
    Other(&'a Any),
}

/// [`WorkloadAttestor::attest_reference`] of one that knows processes alone.
pub async fn by_process<A: WorkloadAttestor + ?Sized>(
    attestor: &A,
    reference: &Reference<'_>,
) -> Result<Option<Vec<Selector>>, AttestError> {
    match reference.workload {
        Named::Process(peer) => attestor.attest(peer).await.map(Some),
        Named::Other(_) => Ok(None),
    }
}

/// What all of `attestors` know of the workload that a broker names, as [`attest`]; `None` when none of them knows
/// references of that kind.
///
/// # Errors
/// As [`attest`]; those that do not know the kind do not count.
pub async fn attest_reference<A: WorkloadAttestor>(
    attestors: &[A],
    reference: &Reference<'_>,
) -> Result<Option<Vec<Selector>>, AttestError> {
    let process = match reference.workload {
        Named::Process(peer) => Some(peer),
        Named::Other(_) => None,
    };
    process.map_or(Ok(()), PeerInfo::verify)?;
    let asked = attestors
        .iter()
        .map(|attestor| in_time(attestor, attestor.attest_reference(reference)));
    let answers = join_all(asked).await;
    process.map_or(Ok(()), PeerInfo::verify)?;
    let mut known = Vec::new();
    for (attestor, answer) in attestors.iter().zip(answers) {
        if let Some(answer) = answer.transpose() {
            known.push((attestor.name(), answer));
        }
    }
    // A broker is told what is wrong with its request.
    let only = match known.as_slice() {
        [] => return Ok(None),
        [(name, Err(error))] => Some(error.clone().of_plugin(PluginKind::WorkloadAttestor, name)),
        _ => None,
    };
    let found = together(known, process).map_err(|all| only.unwrap_or(all));
    found.map(Some)
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
    let asked = attestors
        .iter()
        .map(|attestor| in_time(attestor, attestor.attest(peer)));
    let answers = join_all(asked).await;
    // First of all: an attestor that failed because the process ended is not worth a line of its own.
    peer.verify()?;
    let names = attestors.iter().map(WorkloadAttestor::name);
    together(names.zip(answers).collect(), Some(peer))
}

/// What those found that did not fail, which the log names.
fn together(
    answers: Vec<(&str, Result<Vec<Selector>, AttestError>)>,
    process: Option<&PeerInfo>,
) -> Result<Vec<Selector>, AttestError> {
    let mut selectors = Vec::new();
    let mut failures = Vec::new();
    let asked = answers.len();
    for (attestor, answer) in answers {
        match answer {
            Ok(found) => selectors.extend(found),
            Err(error) => {
                let error = error.of_plugin(PluginKind::WorkloadAttestor, attestor);
                let explained = error.explained();
                tracing::error!(
                    attestor,
                    pid = process.map(PeerInfo::pid),
                    %error,
                    hint = explained.hint.as_deref(),
                    "workload attestor failed"
                );
                failures.push(error);
            }
        }
    }
    if !failures.is_empty() && failures.len() == asked {
        return Err(all_failed(&failures));
    }
    Ok(selectors)
}

async fn in_time<T>(
    attestor: &impl WorkloadAttestor,
    answer: impl Future<Output = Result<T, AttestError>>,
) -> Result<T, AttestError> {
    let deadline = attestor.deadline();
    let answer = tokio::time::timeout(deadline, answer).await;
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
