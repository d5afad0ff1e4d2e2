//! How an agent's configuration is written.

use zeroize::Zeroizing;

use crate::config_block;
use crate::decode::Deferred;
use crate::error::UnknownSections;
use crate::telemetry::{HealthBlock, TelemetryBlock};

config_block! {
    pub(super) struct AgentFile {
        pub(super) agent: AgentBlock = "agent",
        pub(super) plugins: Deferred = "plugins",
        pub(super) telemetry: TelemetryBlock = "telemetry",
        pub(super) health_checks: HealthBlock = "health_checks",
    }
}

config_block! {
    pub(super) struct AgentBlock {
        pub(super) data_dir: String = "data_dir",
        pub(super) admin_socket_path: String = "admin_socket_path",
        pub(super) insecure_bootstrap: bool = "insecure_bootstrap",
        pub(super) rebootstrap_mode: String = "rebootstrap_mode",
        pub(super) rebootstrap_delay: String = "rebootstrap_delay",
        pub(super) join_token: Zeroizing<String> = "join_token",
        pub(super) join_token_file: String = "join_token_file",
        pub(super) log_file: String = "log_file",
        pub(super) log_format: String = "log_format",
        pub(super) log_level: String = "log_level",
        pub(super) log_selectors: Vec<String> = "log_selectors",
        pub(super) log_source_location: bool = "log_source_location",
        pub(super) sds: SdsBlock = "sds",
        pub(super) server_address: String = "server_address",
        pub(super) server_port: i64 = "server_port",
        pub(super) socket_path: String = "socket_path",
        pub(super) disable_workload_api: bool = "disable_workload_api",
        pub(super) disable_sds_api: bool = "disable_sds_api",
        pub(super) workload_x509_svid_key_type: String = "workload_x509_svid_key_type",
        pub(super) trust_bundle_format: String = "trust_bundle_format",
        pub(super) trust_bundle_path: String = "trust_bundle_path",
        pub(super) trust_bundle_spiffe_workload_api: String = "trust_bundle_spiffe_workload_api",
        pub(super) trust_bundle_unix_socket: String = "trust_bundle_unix_socket",
        pub(super) trust_bundle_url: String = "trust_bundle_url",
        pub(super) trust_domain: String = "trust_domain",
        pub(super) allow_unauthenticated_verifiers: bool = "allow_unauthenticated_verifiers",
        pub(super) allowed_foreign_jwt_claims: Vec<String> = "allowed_foreign_jwt_claims",
        pub(super) availability_target: String = "availability_target",
        pub(super) x509_svid_cache_max_size: i64 = "x509_svid_cache_max_size",
        pub(super) jwt_svid_cache_max_size: i64 = "jwt_svid_cache_max_size",
        pub(super) authorized_delegates: Vec<String> = "authorized_delegates",
        pub(super) profiling_enabled: bool = "profiling_enabled",
        pub(super) profiling_port: i64 = "profiling_port",
        pub(super) profiling_freq: i64 = "profiling_freq",
        pub(super) profiling_names: Vec<String> = "profiling_names",
        pub(super) experimental: Option<ExperimentalBlock> = "experimental",
        pub(super) warm_start: Option<bool> = "warm_start",
    }
}

config_block! {
    pub(super) struct SdsBlock {
        pub(super) default_svid_name: String = "default_svid_name",
        pub(super) default_bundle_name: String = "default_bundle_name",
        pub(super) default_all_bundles_name: String = "default_all_bundles_name",
        pub(super) disable_spiffe_cert_validation: bool = "disable_spiffe_cert_validation",
    }
}

config_block! {
    pub(super) struct ExperimentalBlock {
        pub(super) sync_interval: String = "sync_interval",
        pub(super) jwt_svid_cache_hit_timeout: String = "jwt_svid_cache_hit_timeout",
        pub(super) named_pipe_name: String = "named_pipe_name",
        pub(super) admin_named_pipe_name: String = "admin_named_pipe_name",
        pub(super) use_sync_authorized_entries: Option<bool> = "use_sync_authorized_entries",
        pub(super) require_pq_kem: bool = "require_pq_kem",
        pub(super) rate_limit: RateLimitBlock = "ratelimit",
        pub(super) broker: Option<BrokerBlock> = "broker",
        pub(super) feature_flags: Vec<String> = "feature_flags",
    }
}

config_block! {
    pub(super) struct RateLimitBlock {
        pub(super) fetch_x509_svid: i64 = "fetch_x509_svid",
        pub(super) fetch_jwt_svid: i64 = "fetch_jwt_svid",
        pub(super) fetch_x509_bundles: i64 = "fetch_x509_bundles",
        pub(super) fetch_jwt_bundles: i64 = "fetch_jwt_bundles",
        pub(super) stream_secrets: i64 = "stream_secrets",
        pub(super) fetch_secrets: i64 = "fetch_secrets",
    }
}

config_block! {
    pub(super) struct BrokerBlock {
        pub(super) socket_path: String = "socket_path",
        pub(super) bind_address: String = "bind_address",
        pub(super) brokers: Vec<BrokerEntryBlock> = "brokers",
    }
}

config_block! {
    pub(super) struct BrokerEntryBlock {
        pub(super) id: String = "id",
        pub(super) allowed_reference_types: Vec<ReferenceTypeBlock> = "allowed_reference_types",
    }
}

config_block! {
    pub(super) struct ReferenceTypeBlock {
        pub(super) type_url: String = "type_url",
        pub(super) allow_over_tcp: bool = "allow_over_tcp",
    }
}

impl AgentFile {
    /// Unknown keys of `sds` and of the rest of `experimental` pass, as upstream lets them.
    pub(super) fn unknown(&self) -> UnknownSections {
        let mut sections = UnknownSections::default();
        sections.look("top level", &self.unknown);
        sections.look("agent", &self.agent.unknown);
        if let Some(experimental) = &self.agent.experimental {
            sections.look(
                "agent.experimental.ratelimit",
                &experimental.rate_limit.unknown,
            );
            if let Some(broker) = &experimental.broker {
                sections.look("agent.experimental.broker", &broker.unknown);
                for entry in &broker.brokers {
                    sections.look("agent.experimental.broker.brokers", &entry.unknown);
                    for kind in &entry.allowed_reference_types {
                        sections.look(
                            "agent.experimental.broker.brokers.allowed_reference_types",
                            &kind.unknown,
                        );
                    }
                }
            }
        }
        self.telemetry.look_for_unknown(&mut sections);
        sections.look("health_checks", &self.health_checks.unknown);
        sections
    }
}
