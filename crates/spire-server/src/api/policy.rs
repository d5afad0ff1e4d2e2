//! Who may call what: the same for each method as upstream's built-in policy (inventory section 8), and our own
//! methods. A policy of the operator's takes its place ([`RegoPolicy`]).

mod functions;
mod rego;
mod request;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

pub use self::rego::RegoPolicy;
use self::rego::{Question, request_of};
use super::caller::Peer;

/// Who may call a method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) anybody: bool,
    pub(super) local: bool,
    pub(super) admin: bool,
    pub(super) downstream: bool,
    pub(super) agent: bool,
}

const NOBODY: Allowed = Allowed {
    anybody: false,
    local: false,
    admin: false,
    downstream: false,
    agent: false,
};
const ANYBODY: Allowed = Allowed {
    anybody: true,
    ..NOBODY
};
const LOCAL: Allowed = Allowed {
    local: true,
    ..NOBODY
};
const OPERATORS: Allowed = Allowed {
    local: true,
    admin: true,
    ..NOBODY
};
const AGENTS: Allowed = Allowed {
    agent: true,
    ..NOBODY
};
const DOWNSTREAM: Allowed = Allowed {
    downstream: true,
    ..NOBODY
};

/// Who may make the call `request` that comes from `peer`, by `own` policy where there is one.
pub(super) async fn judge(
    own: Option<&Arc<RegoPolicy>>,
    peer: &Peer,
    program: &str,
    request: Request<Incoming>,
) -> Result<(Allowed, Request<Body>), Status> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some(own) = own else {
        return Ok((allowed(path), Request::from_parts(head, Body::new(body))));
    };
    let (request, body) = request_of(own, path, body).await?;
    let svid = match peer {
        Peer::Remote { svid, .. } => svid.as_ref(),
        Peer::Local => None,
    };
    let question = Question {
        caller: svid.map(|svid| svid.id.to_string()).unwrap_or_default(),
        program: program.to_owned(),
        method: path.to_owned(),
        request,
    };
    let allowed = own.allowed(question).await?;
    Ok((allowed, Request::from_parts(head, body)))
}

/// Who may call the method at `path` (`/<service>/<method>`). A method that is not listed is nobody's.
pub(super) fn allowed(path: &str) -> Allowed {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (service, method) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    match (service, method) {
        ("spire.api.server.agent.v1.Agent", "AttestAgent")
        | ("spire.api.server.bundle.v1.Bundle", "GetBundle") => ANYBODY,
        ("ah.spire.v1.Changes", "Watch" | "Report")
        | ("spire.api.server.agent.v1.Agent", "RenewAgent" | "PostStatus")
        | ("spire.api.server.entry.v1.Entry", "GetAuthorizedEntries" | "SyncAuthorizedEntries")
        | (
            "spire.api.server.svid.v1.SVID",
            "BatchNewX509SVID" | "NewJWTSVID" | "BatchNewWITSVID",
        ) => AGENTS,
        ("spire.api.server.bundle.v1.Bundle", "GetFederatedBundle") => Allowed {
            agent: true,
            ..OPERATORS
        },
        ("spire.api.server.bundle.v1.Bundle", "PublishJWTAuthority" | "PublishWITAuthority")
        | ("spire.api.server.svid.v1.SVID", "NewDownstreamX509CA") => DOWNSTREAM,
        (
            "spire.api.server.agent.v1.Agent",
            "CountAgents" | "ListAgents" | "GetAgent" | "DeleteAgent" | "BanAgent"
            | "CreateJoinToken",
        )
        | (
            "spire.api.server.bundle.v1.Bundle",
            "CountBundles"
            | "AppendBundle"
            | "ListFederatedBundles"
            | "BatchCreateFederatedBundle"
            | "BatchUpdateFederatedBundle"
            | "BatchSetFederatedBundle"
            | "BatchDeleteFederatedBundle",
        )
        | (
            "spire.api.server.entry.v1.Entry",
            "CountEntries" | "ListEntries" | "GetEntry" | "BatchCreateEntry" | "BatchUpdateEntry"
            | "BatchDeleteEntry",
        )
        | ("spire.api.server.svid.v1.SVID", "MintX509SVID" | "MintJWTSVID" | "MintWITSVID")
        | (
            "spire.api.server.trustdomain.v1.TrustDomain",
            "ListFederationRelationships"
            | "GetFederationRelationship"
            | "BatchCreateFederationRelationship"
            | "BatchUpdateFederationRelationship"
            | "BatchDeleteFederationRelationship"
            | "RefreshBundle",
        )
        | (
            "spire.api.server.localauthority.v1.LocalAuthority",
            "GetJWTAuthorityState"
            | "PrepareJWTAuthority"
            | "ActivateJWTAuthority"
            | "TaintJWTAuthority"
            | "RevokeJWTAuthority"
            | "GetX509AuthorityState"
            | "PrepareX509Authority"
            | "ActivateX509Authority"
            | "TaintX509Authority"
            | "TaintX509UpstreamAuthority"
            | "RevokeX509Authority"
            | "RevokeX509UpstreamAuthority"
            | "GetWITAuthorityState"
            | "PrepareWITAuthority"
            | "ActivateWITAuthority"
            | "TaintWITAuthority"
            | "RevokeWITAuthority",
        )
        | ("ah.spire.v1.Rotation", "GetAcknowledgements" | "RehearseX509Authority") => OPERATORS,
        ("spire.api.server.debug.v1.Debug", "GetInfo")
        | ("spire.api.server.logger.v1.Logger", "GetLogger" | "SetLogLevel" | "ResetLogLevel")
        | ("grpc.health.v1.Health", "Check" | "Watch" | "List") => LOCAL,
        _ => NOBODY,
    }
}
