//! How a server's configuration is written.

use std::collections::BTreeMap;

use crate::config_block;
use crate::decode::Deferred;
use crate::error::UnknownSections;
use crate::telemetry::{HealthBlock, TelemetryBlock};

config_block! {
    pub(super) struct ServerFile {
        pub(super) server: ServerBlock = "server",
        pub(super) plugins: Deferred = "plugins",
        pub(super) telemetry: TelemetryBlock = "telemetry",
        pub(super) health_checks: HealthBlock = "health_checks",
    }
}

config_block! {
    pub(super) struct ServerBlock {
        pub(super) admin_ids: Vec<String> = "admin_ids",
        pub(super) agent_ttl: String = "agent_ttl",
        pub(super) audit_log_enabled: bool = "audit_log_enabled",
        pub(super) bind_address: String = "bind_address",
        pub(super) bind_port: i64 = "bind_port",
        pub(super) ca_key_type: String = "ca_key_type",
        pub(super) ca_subject: Option<CaSubjectBlock> = "ca_subject",
        pub(super) ca_ttl: String = "ca_ttl",
        pub(super) data_dir: String = "data_dir",
        pub(super) default_x509_svid_ttl: String = "default_x509_svid_ttl",
        pub(super) default_jwt_svid_ttl: String = "default_jwt_svid_ttl",
        pub(super) experimental: Option<ExperimentalBlock> = "experimental",
        pub(super) federation: Option<FederationBlock> = "federation",
        pub(super) disable_jwt_svids: bool = "disable_jwt_svids",
        pub(super) jwt_issuer: String = "jwt_issuer",
        pub(super) jwt_key_type: String = "jwt_key_type",
        pub(super) log_file: String = "log_file",
        pub(super) log_level: String = "log_level",
        pub(super) log_format: String = "log_format",
        pub(super) log_source_location: bool = "log_source_location",
        pub(super) prune_attested_nodes_expired_for: String = "prune_attested_nodes_expired_for",
        pub(super) prune_attested_nodes_batch_size: i64 = "prune_attested_nodes_batch_size",
        pub(super) prune_tofu_nodes: bool = "prune_tofu_nodes",
        pub(super) proxy_protocol_trusted_cidrs: Vec<String> = "proxy_protocol_trusted_cidrs",
        pub(super) rate_limit: RateLimitBlock = "ratelimit",
        pub(super) socket_path: String = "socket_path",
        pub(super) trust_domain: String = "trust_domain",
        pub(super) max_attested_node_info_staleness: String = "max_attested_node_info_staleness",
        pub(super) profiling_enabled: bool = "profiling_enabled",
        pub(super) profiling_port: i64 = "profiling_port",
        pub(super) profiling_freq: i64 = "profiling_freq",
        pub(super) profiling_names: Vec<String> = "profiling_names",
    }
}

config_block! {
    pub(super) struct CaSubjectBlock {
        pub(super) country: Vec<String> = "country",
        pub(super) organization: Vec<String> = "organization",
        pub(super) common_name: String = "common_name",
    }
}

config_block! {
    pub(super) struct RateLimitBlock {
        pub(super) attestation: Option<bool> = "attestation",
        pub(super) signing: Option<bool> = "signing",
    }
}

config_block! {
    pub(super) struct ExperimentalBlock {
        pub(super) agent_spiffe_id_as_selector: bool = "agent_spiffe_id_as_selector",
        pub(super) auth_opa_policy_engine: Option<OpaBlock> = "auth_opa_policy_engine",
        pub(super) cache_reload_interval: String = "cache_reload_interval",
        pub(super) full_cache_reload_interval: String = "full_cache_reload_interval",
        pub(super) events_based_cache: bool = "events_based_cache",
        pub(super) prune_events_older_than: String = "prune_events_older_than",
        pub(super) event_timeout: String = "event_timeout",
        pub(super) sql_transaction_timeout: String = "sql_transaction_timeout",
        pub(super) require_pq_kem: bool = "require_pq_kem",
        pub(super) wit_key_type: String = "wit_key_type",
        pub(super) wit_issuer: String = "wit_issuer",
        pub(super) feature_flags: Vec<String> = "feature_flags",
        pub(super) named_pipe_name: String = "named_pipe_name",
    }
}

config_block! {
    pub(super) struct OpaBlock {
        pub(super) local: Option<LocalOpaBlock> = "local",
    }
}

config_block! {
    pub(super) struct LocalOpaBlock {
        pub(super) rego_path: String = "rego_path",
        pub(super) policy_data_path: String = "policy_data_path",
    }
}

config_block! {
    pub(super) struct FederationBlock {
        pub(super) bundle_endpoint: Option<BundleEndpointBlock> = "bundle_endpoint",
        pub(super) federates_with: BTreeMap<String, FederatesWithBlock> = "federates_with",
    }
}

config_block! {
    pub(super) struct BundleEndpointBlock {
        pub(super) address: String = "address",
        pub(super) port: i64 = "port",
        pub(super) refresh_hint: String = "refresh_hint",
        pub(super) acme: Option<AcmeBlock> = "acme",
        pub(super) profile: Deferred = "profile",
    }
}

config_block! {
    pub(super) struct AcmeBlock {
        pub(super) directory_url: String = "directory_url",
        pub(super) domain_name: String = "domain_name",
        pub(super) email: String = "email",
        pub(super) tos_accepted: bool = "tos_accepted",
    }
}

config_block! {
    pub(super) struct EndpointProfileBlock {
        pub(super) https_spiffe: Option<EmptyBlock> = "https_spiffe",
        pub(super) https_web: Option<WebProfileBlock> = "https_web",
    }
}

config_block! {
    pub(super) struct WebProfileBlock {
        pub(super) acme: Option<AcmeBlock> = "acme",
        pub(super) serving_cert_file: Option<ServingCertFileBlock> = "serving_cert_file",
    }
}

config_block! {
    pub(super) struct ServingCertFileBlock {
        pub(super) cert_file_path: String = "cert_file_path",
        pub(super) key_file_path: String = "key_file_path",
        pub(super) file_sync_interval: String = "file_sync_interval",
    }
}

config_block! {
    pub(super) struct FederatesWithBlock {
        pub(super) bundle_endpoint_url: String = "bundle_endpoint_url",
        pub(super) bundle_endpoint_profile: Deferred = "bundle_endpoint_profile",
    }
}

config_block! {
    pub(super) struct FederationProfileBlock {
        pub(super) https_spiffe: Option<SpiffeProfileBlock> = "https_spiffe",
        pub(super) https_web: Option<EmptyBlock> = "https_web",
    }
}

config_block! {
    pub(super) struct SpiffeProfileBlock {
        pub(super) endpoint_spiffe_id: String = "endpoint_spiffe_id",
    }
}

config_block! {
    pub(super) struct EmptyBlock {}
}

impl ServerFile {
    /// Unknown keys of `experimental`, of `federation` itself and of `federates_with` pass, as upstream lets them.
    pub(super) fn unknown(&self) -> UnknownSections {
        let mut sections = UnknownSections::default();
        sections.look("top level", &self.unknown);
        sections.look("server", &self.server.unknown);
        if let Some(subject) = &self.server.ca_subject {
            sections.look("server.ca_subject", &subject.unknown);
        }
        sections.look("server.ratelimit", &self.server.rate_limit.unknown);
        let federation = self.server.federation.as_ref();
        if let Some(endpoint) =
            federation.and_then(|federation| federation.bundle_endpoint.as_ref())
        {
            sections.look("server.federation.bundle_endpoint", &endpoint.unknown);
            if let Some(acme) = &endpoint.acme {
                sections.look("server.federation.bundle_endpoint.acme", &acme.unknown);
            }
        }
        self.telemetry.look_for_unknown(&mut sections);
        sections.look("health_checks", &self.health_checks.unknown);
        sections
    }
}
