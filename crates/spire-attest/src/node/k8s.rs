//! `k8s_psat` and the older `k8s_sat`: the node is a pod, and its service account's token says so.
//!
//! The payload is JSON with the cluster's name and the token; there are no challenges. The server asks the Kubernetes
//! API of that cluster who holds the token (TokenReview), and lets in the service accounts of its allow list.
//!
//! * `k8s_psat` takes projected tokens, which have an audience and name their pod. The agent's SPIFFE ID ends with the
//!   UID of its node, or of its pod, and it may attest again.
//! * `k8s_sat` takes plain tokens, which say nothing of a node: each attestation makes a new agent with a random ID.
//!   Upstream removed it in 1.12; it is here for configurations that name it. It can also judge a token by the
//!   cluster's public keys, without asking anybody.
//!
//! Settings, texts and selectors are upstream's. Where this is stricter: the answers of the API have at most 4 MiB and
//! 30 s, and a kubeconfig that would run a program or skip the verification of certificates is refused.

mod agent;
mod api;
mod call;
mod kubeconfig;
mod sat;
mod server;

#[cfg(target_os = "linux")]
pub(crate) use api::Api;

pub use agent::{K8sAgent, K8sAgentConfig};
pub use call::{KubeApi, KubeError, object_name};
pub use sat::{SatClusterConfig, SatServer};
pub use server::{PsatClusterConfig, PsatServer};

use serde::Deserialize;
use serde_json::json;
use spiffe::{SpiffeId, TrustDomain};

use crate::node::{Payload, Secret};
use crate::{AttestError, Builtin, Selector};

/// The largest payload that is read, in bytes.
const MAX_PAYLOAD: usize = 64 * 1024;

/// The payload.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AttestationData {
    cluster: String,
    token: Secret,
}

impl AttestationData {
    fn write(cluster: &str, token: &str) -> Payload {
        Payload::new(
            json!({"cluster": cluster, "token": token})
                .to_string()
                .into_bytes(),
        )
    }

    /// Both members are there.
    fn read(payload: &[u8]) -> Result<Self, AttestError> {
        let hint =
            "use an agent with the same node attestor: its payload is {\"cluster\":…,\"token\":…}";
        let invalid = |text: String| AttestError::invalid(text, hint);
        if payload.len() > MAX_PAYLOAD {
            return Err(invalid(
                "failed to unmarshal data payload: larger than 64 KiB".into(),
            ));
        }
        // What stands in the payload may be a token: only the place of the fault is told.
        let data: Self = serde_json::from_slice(payload).map_err(|error| {
            invalid(format!(
                "failed to unmarshal data payload: not the JSON of an attestation (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        if data.cluster.is_empty() {
            return Err(invalid("missing cluster in attestation data".into()));
        }
        if data.token.0.is_empty() {
            return Err(invalid("missing token in attestation data".into()));
        }
        Ok(data)
    }
}

fn no_such_cluster(name: &str) -> AttestError {
    AttestError::invalid(
        format!("not configured for cluster {name:?}"),
        "let `cluster` of the agent's plugin be one of the `clusters` of the server's",
    )
}

fn not_allowed(account: &str, suffix: &str) -> AttestError {
    AttestError::refused(
        format!("{account:?} is not an allowed service account{suffix}"),
        format!("add {account:?} to service_account_allow_list if this pod is to run an agent"),
    )
}

/// `/spire/agent/<attestor>/<cluster>/<suffix>`
fn agent_id(
    trust_domain: &TrustDomain,
    builtin: Builtin,
    cluster: &str,
    suffix: &str,
) -> Result<SpiffeId, AttestError> {
    let id = format!(
        "spiffe://{trust_domain}/spire/agent/{}/{cluster}/{suffix}",
        builtin.name()
    );
    SpiffeId::new(&id).map_err(|error| {
        AttestError::internal(
            format!("{id:?} is no SPIFFE ID: {error}"),
            "the name of the cluster may have letters, digits, '.', '-' and '_' alone: change it in the \
             configuration of server and agent",
        )
    })
}

fn selector(builtin: Builtin, parts: &[&str]) -> Selector {
    Selector::new(builtin.name(), parts.join(":"))
}
