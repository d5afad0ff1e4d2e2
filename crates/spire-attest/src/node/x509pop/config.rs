//! Settings, under the names of SPIRE's configuration files.

use std::path::PathBuf;

use serde::Deserialize;

/// The agent's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct X509PopAgentConfig {
    /// PEM of the private key. Required without `spiffe_endpoint_socket`.
    pub private_key_path: PathBuf,
    /// PEM of the certificate, and of CAs between it and a root. Required without `spiffe_endpoint_socket`.
    pub certificate_path: PathBuf,
    /// PEM of further CAs between the certificate and a root.
    pub intermediates_path: PathBuf,
    /// A Workload API to take the certificate from, such as `unix:///run/other/agent.sock`. The files are not
    /// looked at then.
    pub spiffe_endpoint_socket: String,
}

/// The server's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct X509PopServerConfig {
    /// `external_pki` (the default): roots are those of `ca_bundle_path`. `spiffe`: the server's own trust bundle.
    pub mode: String,
    /// In mode `spiffe`, how the path of an SVID must begin; `/spire-exchange/` if not set. `svid_prefix` is the same.
    #[serde(alias = "svid_prefix")]
    pub spiffe_prefix: Option<String>,
    /// PEM of the roots.
    pub ca_bundle_path: PathBuf,
    /// The same, in several files.
    pub ca_bundle_paths: Vec<PathBuf>,
    /// The agent's path below `/spire/agent`, such as `/cn/{{ .Subject.CommonName }}`.
    pub agent_path_template: String,
    /// The most CAs in a payload; 4 if not set.
    pub max_intermediates: Option<i64>,
    /// The largest RSA key, in bits; 8192 if not set.
    pub max_rsa_key_size: Option<i64>,
    /// Whether the agent's address must be among the IP SANs of its certificate.
    pub verify_client_ip: bool,
}
