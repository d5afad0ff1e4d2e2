//! Why a process has the identities it has: what `spire-agent api explain` asks.
//!
//! A service of our own beside the Workload API, which stays as the standard has it (SV-73). Anybody may ask about
//! himself; about others only root and the agent's own user, who could look at the process themselves. What entries
//! ask for is told to others only where they share a selector: what the registration of a stranger looks like is not
//! theirs to know.

use std::sync::Arc;

use ah_spire_attest::peer::PeerInfo;
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;

use super::caller::Attest;
use super::refusal::missing;
use super::service::Shared;
use crate::identities::Identities;
use crate::wire::{framed, message};

pub(super) const SERVICE: &str = "ah.spire.agent.v1.Explain";

/// The path of the one call.
pub const EXPLAIN_METHOD: &str = "/ah.spire.agent.v1.Explain/Explain";

/// Entries that are told at most.
const NEAREST: usize = 5;

/// What to explain.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ExplainRequest {
    /// The process; 0 for the caller.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// The entries nearest to a process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExplainAnswer {
    /// The process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// What it was attested as, `type:value`.
    #[prost(string, repeated, tag = "2")]
    pub selectors: Vec<String>,
    /// Entries that this agent has.
    #[prost(uint64, tag = "3")]
    pub entries: u64,
    /// Those that match, then those that lack the fewest selectors.
    #[prost(message, repeated, tag = "4")]
    pub nearest: Vec<Nearest>,
}

/// An entry and what it asks for in vain.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Nearest {
    /// The entry's id.
    #[prost(string, tag = "1")]
    pub entry_id: String,
    /// What it would issue.
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
    /// Selectors of the entry that the process does not have; none when it matches.
    #[prost(string, repeated, tag = "3")]
    pub missing: Vec<String>,
}

pub(super) async fn answer<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    caller: &PeerInfo,
    method: String,
    request: Request<Incoming>,
) -> Result<Bytes, Status> {
    if method != "Explain" {
        return Err(Status::unimplemented(format!(
            "unknown method {method} for service {SERVICE}"
        )));
    }
    let ExplainRequest { pid } = message(request).await?;
    let trusted = caller.uid() == 0 || caller.uid() == nix::unistd::Uid::effective().as_raw();
    let peer = if pid == 0 || pid == caller.pid() {
        caller.clone()
    } else if trusted {
        PeerInfo::of_process(pid).map_err(|error| Status::not_found(error.to_string()))?
    } else {
        return Err(Status::permission_denied(format!(
            "user {} may ask about its own process only; root and the agent's user may ask about process {pid}",
            caller.uid()
        )));
    };
    let selectors = shared.attest(&peer).await?;
    let entries = shared.identities.entries();
    let mut nearest: Vec<_> = entries
        .iter()
        .map(|entry| (missing(entry, &selectors), entry))
        .filter(|(missing, entry)| trusted || missing.len() < entry.selectors.len())
        .collect();
    nearest.sort_by_key(|(missing, entry)| (missing.len(), entry.created_at));
    let answer = ExplainAnswer {
        pid: peer.pid(),
        selectors: selectors.iter().map(ToString::to_string).collect(),
        entries: entries.len() as u64,
        nearest: nearest
            .into_iter()
            .take(NEAREST)
            .map(|(missing, entry)| Nearest {
                entry_id: entry.id.clone(),
                spiffe_id: entry.spiffe_id.to_string(),
                missing: missing.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    };
    Ok(framed(&answer.encode_to_vec()))
}
