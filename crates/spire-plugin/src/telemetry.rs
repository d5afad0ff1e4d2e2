//! `telemetry { }` and `health_checks { }`, the same for server and agent.

mod file;

use std::path::PathBuf;

use spiffe::SpiffeId;

pub(crate) use self::file::{HealthBlock, TelemetryBlock};

/// Where metrics go. Nothing is on by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// `Prometheus { }`
    pub prometheus: Option<Prometheus>,
    /// `DogStatsd = [{ }]`, the addresses.
    pub dog_statsd: Vec<String>,
    /// `Statsd = [{ }]`, the addresses.
    pub statsd: Vec<String>,
    /// `M3 = [{ }]`
    pub m3: Vec<M3>,
    /// `InMem { }`: on when the block is there at all.
    pub in_memory: bool,
    /// `MetricPrefix`; `None` for the program's own.
    pub metric_prefix: Option<String>,
    /// `EnableTrustDomainLabel`, off by default.
    pub trust_domain_label: bool,
    /// `EnableHostnameLabel`, on by default.
    pub hostname_label: bool,
    /// `AllowedPrefixes`
    pub allowed_prefixes: Vec<String>,
    /// `BlockedPrefixes`
    pub blocked_prefixes: Vec<String>,
    /// `AllowedLabels`
    pub allowed_labels: Vec<String>,
    /// `BlockedLabels`
    pub blocked_labels: Vec<String>,
}

/// A listener that Prometheus asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    /// `host`; `localhost` when not set.
    pub host: String,
    /// `port`
    pub port: u16,
    /// `tls { }`
    pub tls: Option<PrometheusTls>,
}

/// TLS of the Prometheus listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrometheusTls {
    /// `cert_file`
    pub cert_file: Option<PathBuf>,
    /// `key_file`
    pub key_file: Option<PathBuf>,
    /// `client_ca_file`
    pub client_ca_file: Option<PathBuf>,
    /// `use_spire_svid`
    pub use_spire_svid: bool,
    /// `authorized_spiffe_ids`
    pub authorized_spiffe_ids: Vec<SpiffeId>,
}

/// One M3 collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct M3 {
    /// `address`
    pub address: String,
    /// `env`
    pub environment: String,
}

/// The listener for `/live` and `/ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// `listener_enabled`
    pub enabled: bool,
    /// `bind_address`, without brackets; `localhost` by default.
    pub host: String,
    /// `bind_port`, 80 by default. A text in the file, so that it may be a service's name.
    pub port: String,
    /// `live_path`, `/live` by default.
    pub live_path: String,
    /// `ready_path`, `/ready` by default.
    pub ready_path: String,
}
