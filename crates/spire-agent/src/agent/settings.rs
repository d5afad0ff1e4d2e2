use std::path::PathBuf;
use std::time::Duration;

use ah_spire_plugin::agent::{Bootstrap, RebootstrapMode};
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
    /// `warm_start`: what was got from the server is kept, sealed, for the next start.
    pub warm_start: bool,
}
