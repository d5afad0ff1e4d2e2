//! The configuration of `oidc-discovery-provider`: file and defaults put together and checked (inventory section 11).

mod file;
mod resolve;

use std::path::PathBuf;
use std::time::Duration;

use spiffe::TrustDomain;

use crate::goflag::FlagSet;
use crate::settings::LogConfig;

/// Where the program looks when `-config` is not given.
pub const DEFAULT_CONFIG_PATH: &str = "oidc-discovery-provider.conf";

/// What the program takes.
#[must_use]
pub fn flags() -> FlagSet {
    FlagSet::new("oidc-discovery-provider")
        .string("config", DEFAULT_CONFIG_PATH, "configuration file")
        .bool(
            "expandEnv",
            false,
            "expand environment variables in config file",
        )
        .bool("version", false, "print version")
}

/// Everything that a provider is told at its start.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// `log_level`, `log_format`, `log_path`
    pub log: LogConfig,
    /// `log_requests`
    pub log_requests: bool,
    /// `domains`, each once; one at least.
    pub domains: Vec<String>,
    /// `set_key_use`
    pub set_key_use: bool,
    /// `allow_insecure_scheme`
    pub allow_insecure_scheme: bool,
    /// `insecure_addr`, `listen_socket_path`, `serving_cert_file { }` or `acme { }`
    pub listen: OidcListen,
    /// `server_api { }`, `workload_api { }` or `file { }`
    pub keys: OidcKeys,
    /// `poll_interval` of where the keys are, 10 seconds by default.
    pub poll_interval: Duration,
    /// `health_checks { }`
    pub health_checks: Option<OidcHealth>,
    /// `jwt_issuer`
    pub jwt_issuer: Option<WebUrl>,
    /// `jwks_uri`
    pub jwks_uri: Option<WebUrl>,
    /// `server_path_prefix`, `/` by default; it begins with a slash.
    pub server_path_prefix: String,
    /// What the operator should be told at the start, to be logged at warn.
    pub warnings: Vec<String>,
}

/// Where and how the documents are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcListen {
    /// `insecure_addr`: HTTP on this address.
    Insecure(String),
    /// `listen_socket_path`: HTTP on a unix socket.
    Socket(PathBuf),
    /// `serving_cert_file { }`: HTTPS with a certificate that somebody else keeps new.
    ServingCertFile {
        /// `cert_file_path`
        cert: PathBuf,
        /// `key_file_path`
        key: PathBuf,
        /// `addr`, `:443` by default.
        address: String,
        /// `file_sync_interval`, a minute by default.
        sync_interval: Duration,
    },
    /// `acme { }`: HTTPS on port 443 with certificates of an ACME server.
    Acme(OidcAcme),
}

/// `acme { }`, whose terms were accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcAcme {
    /// `directory_url`; `None` for Let's Encrypt.
    pub directory_url: Option<String>,
    /// `email`
    pub email: String,
    /// `cache_dir`, `./.acme-cache` by default; `None` when it is set to nothing.
    pub cache_dir: Option<PathBuf>,
}

/// Where the public keys of the trust domain are had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcKeys {
    /// `server_api { }`: the socket of a server.
    ServerApi(PathBuf),
    /// `workload_api { }`
    WorkloadApi {
        /// `socket_path`
        socket: PathBuf,
        /// `trust_domain`, whose bundle counts.
        trust_domain: TrustDomain,
    },
    /// `file { }`: a SPIFFE bundle document.
    File(PathBuf),
}

/// The listener for `/live` and `/ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcHealth {
    /// `bind_port`, 8008 by default.
    pub port: u16,
    /// `live_path`, `/live` by default.
    pub live_path: String,
    /// `ready_path`, `/ready` by default.
    pub ready_path: String,
}

/// A URL with scheme and host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebUrl {
    /// As it was written, the scheme in lower case.
    pub text: String,
    /// In lower case, without `://`.
    pub scheme: String,
    /// Host and port, without user information.
    pub host: String,
    /// What follows, up to `?` and `#`; empty or with a slash at its begin.
    pub path: String,
}
