//! The services, and what their calls are called in metrics.

/// Full names of the services that server and agent may have, with their methods.
pub(super) const SERVICES: &[(&str, &[&str])] = &[
    (
        "spire.api.server.agent.v1.Agent",
        &[
            "CountAgents",
            "ListAgents",
            "GetAgent",
            "DeleteAgent",
            "BanAgent",
            "AttestAgent",
            "RenewAgent",
            "CreateJoinToken",
            "PostStatus",
        ],
    ),
    (
        "spire.api.server.bundle.v1.Bundle",
        &[
            "CountBundles",
            "GetBundle",
            "AppendBundle",
            "PublishJWTAuthority",
            "PublishWITAuthority",
            "ListFederatedBundles",
            "GetFederatedBundle",
            "BatchCreateFederatedBundle",
            "BatchUpdateFederatedBundle",
            "BatchSetFederatedBundle",
            "BatchDeleteFederatedBundle",
        ],
    ),
    ("ah.spire.v1.Changes", &["Watch", "Report"]),
    ("spire.api.server.debug.v1.Debug", &["GetInfo"]),
    (
        "spire.api.server.entry.v1.Entry",
        &[
            "CountEntries",
            "ListEntries",
            "GetEntry",
            "BatchCreateEntry",
            "BatchUpdateEntry",
            "BatchDeleteEntry",
            "GetAuthorizedEntries",
            "SyncAuthorizedEntries",
        ],
    ),
    ("grpc.health.v1.Health", &["Check", "Watch"]),
    (
        "spire.api.server.localauthority.v1.LocalAuthority",
        &[
            "GetJWTAuthorityState",
            "PrepareJWTAuthority",
            "ActivateJWTAuthority",
            "TaintJWTAuthority",
            "RevokeJWTAuthority",
            "GetX509AuthorityState",
            "PrepareX509Authority",
            "ActivateX509Authority",
            "TaintX509Authority",
            "TaintX509UpstreamAuthority",
            "RevokeX509Authority",
            "RevokeX509UpstreamAuthority",
            "GetWITAuthorityState",
            "PrepareWITAuthority",
            "ActivateWITAuthority",
            "TaintWITAuthority",
            "RevokeWITAuthority",
        ],
    ),
    (
        "spire.api.server.logger.v1.Logger",
        &["GetLogger", "SetLogLevel", "ResetLogLevel"],
    ),
    (
        "ah.spire.v1.Rotation",
        &["GetAcknowledgements", "RehearseX509Authority"],
    ),
    (
        "spire.api.server.svid.v1.SVID",
        &[
            "MintX509SVID",
            "MintJWTSVID",
            "MintWITSVID",
            "BatchNewX509SVID",
            "NewJWTSVID",
            "BatchNewWITSVID",
            "NewDownstreamX509CA",
        ],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain",
        &[
            "ListFederationRelationships",
            "GetFederationRelationship",
            "BatchCreateFederationRelationship",
            "BatchUpdateFederationRelationship",
            "BatchDeleteFederationRelationship",
            "RefreshBundle",
        ],
    ),
    (
        "SpiffeWorkloadAPI",
        &[
            "FetchX509SVID",
            "FetchX509Bundles",
            "FetchJWTSVID",
            "FetchJWTBundles",
            "ValidateJWTSVID",
            "FetchWITSVID",
            "FetchWITBundles",
        ],
    ),
    (
        "envoy.service.secret.v3.SecretDiscoveryService",
        &["StreamSecrets", "DeltaSecrets", "FetchSecrets"],
    ),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        &[
            "SubscribeToX509SVIDs",
            "SubscribeToX509Bundles",
            "FetchJWTSVIDs",
            "SubscribeToJWTBundles",
        ],
    ),
    (
        "spiffe.broker.API",
        &[
            "SubscribeToX509SVID",
            "SubscribeToX509Bundles",
            "FetchJWTSVID",
            "SubscribeToJWTBundles",
        ],
    ),
    ("spire.agent.debug.v1.Debug", &["GetInfo"]),
    (
        "spire.api.agent.logger.v1.Logger",
        &["GetLogger", "SetLogLevel", "ResetLogLevel"],
    ),
];

/// `first`, the service without what all of them share, and the method, in snake case.
pub(super) fn metric_key(first: &str, service: &str, method: &str) -> Vec<String> {
    let service = match service {
        "SpiffeWorkloadAPI" => "WorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService" => "SDS.v3",
        "grpc.health.v1.Health" => "Health",
        "spire.api.server.logger.v1.Logger" | "spire.api.agent.logger.v1.Logger" => "Logger",
        "spire.agent.debug.v1.Debug" => "Debug",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity" => "DelegatedIdentity",
        other => other.strip_prefix("spire.api.server.").unwrap_or(other),
    };
    let method = match method {
        // Snake case would make `subscribe_to_x509_svi_ds` of it.
        "SubscribeToX509SVIDs" => "subscribe_to_x509_svids",
        other => other,
    };
    let mut key = vec![first.to_owned()];
    key.extend(service.split('.').map(snake_case));
    key.push(snake_case(method));
    key
}

/// Before a capital with a small letter next to it on either side comes an underscore, but not at the end.
fn snake_case(pascal: &str) -> String {
    let mut out = String::new();
    let mut before: Option<char> = None;
    let mut rest = pascal.chars().peekable();
    while let Some(c) = rest.next() {
        let after = rest.peek().copied();
        let small = |c: Option<char>| c.is_some_and(char::is_lowercase);
        if !c.is_alphanumeric() {
            out.push('_');
        } else {
            if c.is_uppercase()
                && before.is_some()
                && after.is_some()
                && (small(before) || small(after))
                && !out.ends_with('_')
            {
                out.push('_');
            }
            out.extend(c.to_lowercase());
        }
        before = Some(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn calls_have_upstreams_names() {
        // Inventory §10.1, §10.2: as upstream's server and agent print them.
        let known = [
            (
                "spire.api.server.agent.v1.Agent",
                "AttestAgent",
                "rpc_agent_v1_agent_attest_agent",
            ),
            (
                "spire.api.server.svid.v1.SVID",
                "BatchNewX509SVID",
                "rpc_svid_v1_svid_batch_new_x509svid",
            ),
            (
                "spire.api.server.svid.v1.SVID",
                "NewJWTSVID",
                "rpc_svid_v1_svid_new_jwtsvid",
            ),
            (
                "spire.api.server.logger.v1.Logger",
                "GetLogger",
                "rpc_logger_get_logger",
            ),
            (
                "spire.api.server.debug.v1.Debug",
                "GetInfo",
                "rpc_debug_v1_debug_get_info",
            ),
            (
                "spire.api.server.localauthority.v1.LocalAuthority",
                "GetX509AuthorityState",
                "rpc_localauthority_v1_local_authority_get_x509_authority_state",
            ),
            (
                "spire.api.server.trustdomain.v1.TrustDomain",
                "ListFederationRelationships",
                "rpc_trustdomain_v1_trust_domain_list_federation_relationships",
            ),
            ("grpc.health.v1.Health", "Check", "rpc_health_check"),
            (
                "SpiffeWorkloadAPI",
                "FetchX509SVID",
                "rpc_workload_api_fetch_x509svid",
            ),
            (
                "SpiffeWorkloadAPI",
                "FetchJWTBundles",
                "rpc_workload_api_fetch_jwt_bundles",
            ),
            (
                "envoy.service.secret.v3.SecretDiscoveryService",
                "StreamSecrets",
                "rpc_sds_v3_stream_secrets",
            ),
            (
                "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
                "SubscribeToX509SVIDs",
                "rpc_delegated_identity_subscribe_to_x509_svids",
            ),
            (
                "spire.agent.debug.v1.Debug",
                "GetInfo",
                "rpc_debug_get_info",
            ),
        ];
        for (service, method, name) in known {
            assert_eq!(metric_key("rpc", service, method).join("_"), name);
        }
    }

    #[test]
    fn no_method_of_our_protobufs_is_missing() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spire-wire/proto");
        let mut found = BTreeSet::new();
        for file in std::fs::read_dir(directory).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let (mut package, mut service) = (String::new(), String::new());
            for line in text.lines() {
                let words = line
                    .split([' ', ';', '(', '{'])
                    .filter(|word| !word.is_empty());
                match words.take(2).collect::<Vec<_>>()[..] {
                    ["package", name] => package = format!("{name}."),
                    ["service", name] => service = format!("{package}{name}"),
                    ["rpc", name] => {
                        found.insert(format!("{service}/{name}"));
                    }
                    _ => {}
                }
            }
        }
        assert!(found.contains("spire.api.server.agent.v1.Agent/AttestAgent"));
        let listed = SERVICES
            .iter()
            .flat_map(|(service, methods)| methods.iter().map(move |it| format!("{service}/{it}")))
            .collect::<BTreeSet<_>>();
        assert_eq!(
            found.difference(&listed).collect::<Vec<_>>(),
            Vec::<&String>::new()
        );
    }
}
