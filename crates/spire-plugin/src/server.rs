//! The configuration of `spire-server`: file, flags and defaults put together and checked (SR-3 to SR-6).

mod cidr;
mod federation;
mod file;
mod flags;
mod resolve;
mod ttl;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};

pub use self::cidr::{Cidr, CidrError};
pub use self::flags::run_flags;
use crate::catalog::PluginConfig;
use crate::settings::{FeatureFlag, KeyType, LogConfig, Profiling};
use crate::telemetry::{HealthConfig, TelemetryConfig};

/// Where `run` and `validate` look when `-config` is not given.
pub const DEFAULT_CONFIG_PATH: &str = "conf/server/server.conf";
/// The server's own socket when neither file nor flags name one (SR-4).
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-server/private/api.sock";

/// Everything that a server is told at its start. The socket's path is absolute.
#[derive(Clone)]
pub struct ServerConfig {
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `bind_address`, `0.0.0.0` by default: a name or an IP address without brackets.
    pub bind_address: String,
    /// `bind_port`, 8081 by default.
    pub bind_port: u16,
    /// `socket_path`
    pub socket: PathBuf,
    /// `data_dir`
    pub data_dir: PathBuf,
    /// `log_level`, `log_format`, `log_file`, `log_source_location`
    pub log: LogConfig,
    /// `audit_log_enabled`
    pub audit_log_enabled: bool,
    /// `admin_ids`
    pub admin_ids: Vec<SpiffeId>,
    /// `agent_ttl`; `None` for that of other X509-SVIDs.
    pub agent_ttl: Option<Duration>,
    /// `default_x509_svid_ttl`, 1 hour by default.
    pub x509_svid_ttl: Duration,
    /// `default_jwt_svid_ttl`, 5 minutes by default.
    pub jwt_svid_ttl: Duration,
    /// `ca_ttl`, 24 hours by default.
    pub ca_ttl: Duration,
    /// `ca_key_type`, `ec-p256` by default.
    pub ca_key_type: KeyType,
    /// `jwt_key_type`, that of the CA by default.
    pub jwt_key_type: KeyType,
    /// `jwt_issuer`
    pub jwt_issuer: Option<String>,
    /// `disable_jwt_svids`
    pub disable_jwt_svids: bool,
    /// `ca_subject`, `C=US, O=SPIFFE` by default.
    pub ca_subject: CaSubject,
    /// `federation { }`
    pub federation: Federation,
    /// `prune_attested_nodes_*` and `prune_tofu_nodes`; `None` for no pruning.
    pub prune_attested_nodes: Option<PruneAttestedNodes>,
    /// `proxy_protocol_trusted_cidrs`
    pub proxy_protocol_trusted_cidrs: Vec<Cidr>,
    /// `ratelimit { }`
    pub rate_limit: RateLimit,
    /// `max_attested_node_info_staleness`, 0 by default.
    pub max_attested_node_info_staleness: Duration,
    /// `profiling_*`
    pub profiling: Profiling,
    /// `experimental { }`
    pub experimental: ServerExperimental,
    /// `plugins { }`, in the order written.
    pub plugins: Vec<PluginConfig>,
    /// `telemetry { }`
    pub telemetry: TelemetryConfig,
    /// `health_checks { }`
    pub health_checks: HealthConfig,
    /// What the operator should be told at the start, to be logged at warn.
    pub warnings: Vec<String>,
}

/// `ca_subject { }`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaSubject {
    /// `country`
    pub country: Vec<String>,
    /// `organization`
    pub organization: Vec<String>,
    /// `common_name`
    pub common_name: Option<String>,
}

/// `ratelimit { }`: both on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `attestation`: one a second for each IP address.
    pub attestation: bool,
    /// `signing`: 500 a second for each IP address.
    pub signing: bool,
}

/// Which records of agents are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneAttestedNodes {
    /// `prune_attested_nodes_expired_for`
    pub expired_for: Duration,
    /// `prune_attested_nodes_batch_size`, 1000 by default.
    pub batch_size: u32,
    /// `prune_tofu_nodes`
    pub include_tofu: bool,
}

/// `federation { }`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Federation {
    /// `bundle_endpoint { }`
    pub bundle_endpoint: Option<BundleEndpoint>,
    /// `federates_with "<trust domain>" { }`
    pub federates_with: BTreeMap<TrustDomain, FederatesWith>,
}

/// Where the server's own bundle is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// `address`; `None`, as for an address that is none, binds all.
    pub address: Option<IpAddr>,
    /// `port`
    pub port: u16,
    /// `refresh_hint`, 5 minutes by default.
    pub refresh_hint: Duration,
    /// `profile`, or `acme` in its old place.
    pub profile: BundleEndpointProfile,
}

impl BundleEndpoint {
    /// Where to listen.
    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(
            self.address
                .unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into()),
            self.port,
        )
    }
}

/// How the bundle endpoint proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleEndpointProfile {
    /// `https_spiffe`: with the server's own SVID. The default.
    HttpsSpiffe,
    /// `https_web` with `acme { }`
    Acme(Acme),
    /// `https_web` with `serving_cert_file { }`
    ServingCertFile {
        /// `cert_file_path`
        cert: PathBuf,
        /// `key_file_path`
        key: PathBuf,
        /// `file_sync_interval`, 1 hour by default.
        sync_interval: Duration,
    },
}

/// `acme { }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// `directory_url`; `None` for Let's Encrypt.
    pub directory_url: Option<String>,
    /// `domain_name`
    pub domain_name: String,
    /// `email`
    pub email: String,
    /// `tos_accepted`
    pub tos_accepted: bool,
    /// `<data_dir>/bundle-acme`
    pub cache_dir: PathBuf,
}

/// Where another trust domain's bundle is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederatesWith {
    /// `bundle_endpoint_url`, `https://…`
    pub bundle_endpoint_url: String,
    /// `bundle_endpoint_profile`
    pub profile: FederationProfile,
}

/// How another trust domain's endpoint proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FederationProfile {
    /// `https_web`: with a certificate of the Web PKI.
    HttpsWeb,
    /// `https_spiffe`: with the SVID of `endpoint_spiffe_id`.
    HttpsSpiffe(SpiffeId),
}

/// `experimental { }` of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerExperimental {
    /// `agent_spiffe_id_as_selector`
    pub agent_spiffe_id_as_selector: bool,
    /// `auth_opa_policy_engine { local { } }`
    pub auth_opa_policy_engine: Option<OpaPolicy>,
    /// `cache_reload_interval`; `None` for the server's own.
    pub cache_reload_interval: Option<Duration>,
    /// `full_cache_reload_interval`
    pub full_cache_reload_interval: Option<Duration>,
    /// `events_based_cache`
    pub events_based_cache: bool,
    /// `prune_events_older_than`
    pub prune_events_older_than: Option<Duration>,
    /// `event_timeout`, or `sql_transaction_timeout`, its old name.
    pub event_timeout: Option<Duration>,
    /// `require_pq_kem`
    pub require_pq_kem: bool,
    /// `wit_key_type`, that of the CA by default.
    pub wit_key_type: KeyType,
    /// `wit_issuer`
    pub wit_issuer: Option<String>,
    /// `feature_flags`
    pub feature_flags: Vec<FeatureFlag>,
}

/// A policy of the operator's instead of the built-in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaPolicy {
    /// `rego_path`
    pub rego_path: PathBuf,
    /// `policy_data_path`
    pub policy_data_path: Option<PathBuf>,
}
