use std::path::PathBuf;
use std::time::Duration;

use ah_spire_plugin::agent::{AgentConfig, Bootstrap, RebootstrapMode};
use ah_spire_plugin::settings::KeyType;
use ah_spire_telemetry::Metrics;
use spiffe::TrustDomain;

use crate::keys::KeyKind;
use crate::server_client::ServerAddress;

/// What this half of the agent is told.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `server_address`, `server_port`
    pub server: ServerAddress,
    /// `data_dir`
    pub data_dir: PathBuf,
    /// How the server is trusted the first time.
    pub bootstrap: Bootstrap,
    /// `rebootstrap_mode`
    pub rebootstrap_mode: RebootstrapMode,
    /// `rebootstrap_delay`
    pub rebootstrap_delay: Duration,
    /// `sync_interval`
    pub sync_interval: Duration,
    /// `use_sync_authorized_entries`
    pub use_sync_authorized_entries: bool,
    /// `availability_target`
    pub availability_target: Option<Duration>,
    /// `workload_x509_svid_key_type`
    pub workload_key: KeyKind,
    /// `x509_svid_cache_max_size`
    pub x509_cache: usize,
    /// `jwt_svid_cache_max_size`
    pub jwt_cache: usize,
    /// `jwt_svid_cache_hit_timeout`
    pub jwt_patience_with_valid: Option<Duration>,
    /// `require_pq_kem`
    pub post_quantum_only: bool,
    /// Where the agent counts.
    pub metrics: Metrics,
    /// `warm_start`: what was got from the server is kept, sealed, for the next start.
    pub warm_start: bool,
}

/// `sync_interval`
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

impl AgentSettings {
    /// What a configuration says, counting in `metrics`.
    #[must_use]
    pub fn from_config(config: &AgentConfig, metrics: Metrics) -> Self {
        let experimental = &config.experimental;
        Self {
            trust_domain: config.trust_domain.clone(),
            server: ServerAddress::new(&config.server_address, config.server_port),
            data_dir: config.data_dir.clone(),
            bootstrap: config.bootstrap.clone(),
            rebootstrap_mode: config.rebootstrap_mode,
            rebootstrap_delay: config.rebootstrap_delay,
            sync_interval: experimental.sync_interval.unwrap_or(SYNC_INTERVAL),
            use_sync_authorized_entries: experimental.use_sync_authorized_entries,
            availability_target: config.availability_target,
            workload_key: match config.workload_key_type {
                KeyType::Rsa2048 => KeyKind::Rsa2048,
                KeyType::EcP384 => KeyKind::EcP384,
                _ => KeyKind::EcP256,
            },
            x509_cache: config.x509_svid_cache_max_size,
            jwt_cache: config.jwt_svid_cache_max_size,
            jwt_patience_with_valid: experimental.jwt_svid_cache_hit_timeout,
            post_quantum_only: experimental.require_pq_kem,
            metrics,
            warm_start: config.warm_start,
        }
    }
}
