//! Who may call what: the same for each method as upstream's built-in policy (inventory section 8), and our own
//! methods.

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
