//! The configuration of `spire-agent`: file, flags and defaults put together and checked (SR-3 to SR-6).

mod bootstrap;
mod broker;
mod file;
mod flags;
mod resolve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};

pub use self::flags::run_flags;
use crate::catalog::PluginConfig;
use crate::settings::{FeatureFlag, JoinToken, KeyType, LogConfig, Profiling};
use crate::telemetry::{HealthConfig, TelemetryConfig};

/// Where `run` and `validate` look when `-config` is not given (SR-5).
pub const DEFAULT_CONFIG_PATH: &str = "conf/agent/agent.conf";
/// The Workload API's socket when neither file nor flags name one (SR-4).
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-agent/public/api.sock";
/// What the admin commands dial unless told otherwise (SR-4). The agent itself opens no admin socket by default.
pub const DEFAULT_ADMIN_SOCKET_PATH: &str = "/tmp/spire-agent/private/admin.sock";

/// Everything that an agent is told at its start. Paths of sockets are absolute.
#[derive(Clone)]
pub struct AgentConfig {
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `server_address`: a name or an IP address without brackets.
    pub server_address: String,
    /// `server_port`
    pub server_port: u16,
    /// `data_dir`, `.` by default.
    pub data_dir: PathBuf,
    /// `socket_path`; `None` when both of its APIs are off.
    pub workload_socket: Option<PathBuf>,
    /// `disable_workload_api`
    pub disable_workload_api: bool,
    /// `disable_sds_api`
    pub disable_sds_api: bool,
    /// `admin_socket_path`; `None` for no admin API.
    pub admin_socket: Option<PathBuf>,
    /// How the agent comes to trust the server the first time.
    pub bootstrap: Bootstrap,
    /// `rebootstrap_mode`, `never` by default.
    pub rebootstrap_mode: RebootstrapMode,
    /// `rebootstrap_delay`, 10 minutes by default.
    pub rebootstrap_delay: Duration,
    /// `join_token`, or what the file of `join_token_file` holds.
    pub join_token: Option<JoinToken>,
    /// `join_token_file`, to look again for another token.
    pub join_token_file: Option<PathBuf>,
    /// `log_level`, `log_format`, `log_file`, `log_source_location`
    pub log: LogConfig,
    /// `log_selectors`: prefixes of selectors that may be logged.
    pub log_selectors: Vec<String>,
    /// `sds { }`
    pub sds: SdsConfig,
    /// `workload_x509_svid_key_type`: `rsa-2048`, `ec-p256` or `ec-p384`.
    pub workload_key_type: KeyType,
    /// `allow_unauthenticated_verifiers`
    pub allow_unauthenticated_verifiers: bool,
    /// `allowed_foreign_jwt_claims`
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// `authorized_delegates`, all in the agent's trust domain.
    pub authorized_delegates: Vec<SpiffeId>,
    /// `availability_target`, 24 hours or more.
    pub availability_target: Option<Duration>,
    /// `x509_svid_cache_max_size`, 1000 by default.
    pub x509_svid_cache_max_size: usize,
    /// `jwt_svid_cache_max_size`, 1000 by default.
    pub jwt_svid_cache_max_size: usize,
    /// `warm_start`, true by default; not a key of upstream's. What was got from the server is kept, sealed, to be
    /// served at the next start.
    pub warm_start: bool,
    /// `profiling_*`
    pub profiling: Profiling,
    /// `experimental { }`
    pub experimental: AgentExperimental,
    /// `plugins { }`, in the order written.
    pub plugins: Vec<PluginConfig>,
    /// `telemetry { }`
    pub telemetry: TelemetryConfig,
    /// `health_checks { }`
    pub health_checks: HealthConfig,
    /// What the operator should be told at the start, to be logged at warn.
    pub warnings: Vec<String>,
}

/// How the agent comes to trust the server the first time: exactly one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// `insecure_bootstrap`: whatever the server shows.
    Insecure,
    /// `trust_bundle_path`
    File {
        /// The bundle.
        path: PathBuf,
        /// `trust_bundle_format`
        format: TrustBundleFormat,
    },
    /// `trust_bundle_url`
    Url {
        /// `https://…`, or `http://…` with `unix_socket`.
        url: String,
        /// `trust_bundle_unix_socket`
        unix_socket: Option<PathBuf>,
        /// `trust_bundle_format`
        format: TrustBundleFormat,
    },
    /// `trust_bundle_spiffe_workload_api`: `unix:…` or `tcp:…`
    WorkloadApi {
        /// The endpoint as written.
        address: String,
    },
}

/// `trust_bundle_format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustBundleFormat {
    /// Certificates one after the other. The default.
    #[default]
    Pem,
    /// The JSON of the SPIFFE bundle format.
    Spiffe,
}

/// `rebootstrap_mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootstrapMode {
    /// The default.
    #[default]
    Never,
    /// After the server was found untrusted and the agent can attest again.
    Auto,
    /// After the server was found untrusted.
    Always,
}

/// `sds { }`: names in Envoy's secret discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsConfig {
    /// `default_svid_name`, `default` by default.
    pub default_svid_name: String,
    /// `default_bundle_name`, `ROOTCA` by default.
    pub default_bundle_name: String,
    /// `default_all_bundles_name`, `ALL` by default.
    pub default_all_bundles_name: String,
    /// `disable_spiffe_cert_validation`
    pub disable_spiffe_cert_validation: bool,
}

impl Default for SdsConfig {
    fn default() -> Self {
        Self {
            default_svid_name: "default".to_owned(),
            default_bundle_name: "ROOTCA".to_owned(),
            default_all_bundles_name: "ALL".to_owned(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// `experimental { }` of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentExperimental {
    /// `sync_interval`; `None` for the agent's own.
    pub sync_interval: Option<Duration>,
    /// `jwt_svid_cache_hit_timeout`, from 5 s to below 30 s.
    pub jwt_svid_cache_hit_timeout: Option<Duration>,
    /// `use_sync_authorized_entries`, true by default.
    pub use_sync_authorized_entries: bool,
    /// `require_pq_kem`
    pub require_pq_kem: bool,
    /// `ratelimit { }`
    pub rate_limit: WorkloadApiRateLimit,
    /// `broker { }`
    pub broker: Option<BrokerConfig>,
    /// `feature_flags`
    pub feature_flags: Vec<FeatureFlag>,
}

/// `experimental.ratelimit { }`: calls a second for each set of selectors, 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadApiRateLimit {
    /// `fetch_x509_svid`
    pub fetch_x509_svid: u32,
    /// `fetch_jwt_svid`
    pub fetch_jwt_svid: u32,
    /// `fetch_x509_bundles`
    pub fetch_x509_bundles: u32,
    /// `fetch_jwt_bundles`
    pub fetch_jwt_bundles: u32,
    /// `stream_secrets`
    pub stream_secrets: u32,
    /// `fetch_secrets`
    pub fetch_secrets: u32,
}

/// `experimental.broker { }`: at least one of the two addresses is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `socket_path`
    pub socket: Option<PathBuf>,
    /// `bind_address`
    pub bind_address: Option<SocketAddr>,
    /// `brokers`; no id twice.
    pub brokers: Vec<Broker>,
}

/// One broker that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// `id`, of any trust domain.
    pub id: SpiffeId,
    /// `allowed_reference_types`, at least one.
    pub allowed_reference_types: Vec<ReferenceType>,
}

/// A kind of reference to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceType {
    /// `type_url`: a protobuf type URL, or `*` alone for any.
    pub type_url: String,
    /// `allow_over_tcp`
    pub allow_over_tcp: bool,
}
