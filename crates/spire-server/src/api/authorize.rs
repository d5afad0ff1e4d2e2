//! Whether a call is allowed, asked anew for every call: an agent that is banned or evicted is out at once.

use std::sync::Arc;

use ah_spire_wire::model::Entry;
use ah_spire_wire::types::PermissionDeniedDetails;
use ah_spire_wire::types::permission_denied_details::Reason;
use prost::Message;
use tonic::{Code, Status};

use super::Core;
use super::caller::{Caller, Peer, PeerSvid, Right};
use super::policy::Allowed;
use crate::store::{Agent, EntryFilter, Page, Store};

/// By what right `peer` may call the method at `path`, which those may who are `allowed`.
pub(super) async fn authorize<S: Store>(
    core: &Core<S>,
    peer: &Arc<Peer>,
    path: &str,
    allowed: Allowed,
) -> Result<Caller, Status> {
    let denied = |reason| {
        let text = format!("authorization denied for method {path}");
        tracing::error!(method = path, peer = ?peer, "Failed to authenticate caller");
        denied(text, reason)
    };
    match right(core, peer, allowed).await? {
        Ok(right) => Ok(Caller {
            peer: peer.clone(),
            right,
        }),
        Err(reason) => Err(denied(reason)),
    }
}

/// The right, or why there is none (`None`: nobody like this may).
async fn right<S: Store>(
    core: &Core<S>,
    peer: &Peer,
    allowed: Allowed,
) -> Result<Result<Right, Option<Reason>>, Status> {
    if allowed.anybody {
        return Ok(Ok(Right::Anybody));
    }
    let svid = match peer {
        Peer::Local if allowed.local => return Ok(Ok(Right::Local)),
        Peer::Remote {
            svid: Some(svid), ..
        } => svid,
        Peer::Local | Peer::Remote { svid: None, .. } => return Ok(Err(None)),
    };
    if allowed.admin && core.admin_ids.contains(&svid.id) {
        return Ok(Ok(Right::Admin));
    }
    if allowed.admin || allowed.downstream {
        let mut entries = entries_of(core, svid).await?;
        if allowed.admin && entries.iter().any(|entry| entry.admin) {
            return Ok(Ok(Right::Admin));
        }
        entries.retain(|entry| entry.downstream);
        if allowed.downstream && !entries.is_empty() {
            return Ok(Ok(Right::Downstream(entries)));
        }
    }
    if !allowed.agent {
        return Ok(Err(None));
    }
    Ok(standing(core, svid)
        .await?
        .map_or(Ok(Right::Agent), |no| Err(Some(no))))
}

async fn entries_of<S: Store>(core: &Core<S>, svid: &PeerSvid) -> Result<Vec<Entry>, Status> {
    let filter = EntryFilter {
        spiffe_id: Some(svid.id.clone()),
        ..EntryFilter::default()
    };
    let found = core.store.entries(&filter, &Page::default()).await;
    found
        .map(|page| page.rows)
        .map_err(|error| Status::internal(format!("failed to fetch caller entries: {error}")))
}

/// Why the holder of `svid` is no agent in good standing; `None` when it is one. A renewed certificate that is seen
/// for the first time becomes the agent's current one.
pub(super) async fn standing<S: Store>(
    core: &Core<S>,
    svid: &PeerSvid,
) -> Result<Option<Reason>, Status> {
    if core.clock.now() > svid.not_after {
        return Ok(Some(Reason::AgentExpired));
    }
    // Only a yes is taken from memory, as with upstream: for everything else the store is asked.
    let known = core.entries.agent_within(&svid.id, core.agent_staleness);
    if known.is_some_and(|agent| agent.serial_number == svid.serial_number) {
        return Ok(None);
    }
    let lookup = |error| Status::internal(format!("unable to look up agent information: {error}"));
    let Some(agent) = core.store.agent(&svid.id).await.map_err(lookup)? else {
        return Ok(Some(Reason::AgentNotAttested));
    };
    if agent.serial_number.is_empty() {
        return Ok(Some(Reason::AgentBanned));
    }
    if agent.serial_number == svid.serial_number {
        return Ok(None);
    }
    if agent.new_serial_number != svid.serial_number {
        return Ok(Some(Reason::AgentNotActive));
    }
    let activated = core
        .store
        .update_agent(&svid.id, |agent| activate(agent, &svid.serial_number))
        .await
        .map_err(|error| {
            Status::internal(format!("unable to activate the new agent SVID: {error}"))
        })?;
    // It may have been banned, or renewed again, since it was read.
    Ok(match activated.serial_number.as_str() {
        "" => Some(Reason::AgentBanned),
        current if current == svid.serial_number => None,
        _ => Some(Reason::AgentNotActive),
    })
}

fn activate(agent: &mut Agent, serial_number: &str) {
    if agent.serial_number.is_empty() || agent.new_serial_number != serial_number {
        return;
    }
    agent.serial_number = std::mem::take(&mut agent.new_serial_number);
    agent.expires_at = std::mem::take(&mut agent.new_expires_at);
}

/// PermissionDenied with what upstream's agents decide on: `google.rpc.Status` in `grpc-status-details-bin`.
pub(super) fn denied(text: impl Into<String>, reason: Option<Reason>) -> Status {
    let text = text.into();
    let Some(reason) = reason else {
        return Status::permission_denied(text);
    };
    let details = PermissionDeniedDetails {
        reason: reason.into(),
    };
    let status = RpcStatus {
        code: Code::PermissionDenied.into(),
        message: text.clone(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
            value: details.encode_to_vec(),
        }],
    };
    Status::with_details(Code::PermissionDenied, text, status.encode_to_vec().into())
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}
