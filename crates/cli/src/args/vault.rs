//! Flags of the vault provider (contract §4, AP-9, EN-7).

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ah_identity_provider::vault::{PkiPath, Secret, Share, VaultAddress, api_path};
use clap::{Args, ValueEnum, ValueHint};

use crate::settings::value::{certificate_life, duration, secret, uri_san};

/// HashiCorp Vault or OpenBao.
#[derive(Debug, Args)]
#[command(next_help_heading = "Vault")]
pub struct VaultArgs {
    /// Server (repeatable, comma list: tried in order) (vault)
    #[arg(
        long,
        id = "vault-addr",
        env = "VAULT_ADDR",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub vault_addr: Vec<VaultAddress>,

    /// PKI role: MOUNT/sign/ROLE makes the key here, MOUNT/issue/ROLE lets Vault make it (vault)
    #[arg(long, id = "vault-pki-path", value_name = "PATH")]
    pub vault_pki_path: Option<PkiPath>,

    /// How to log in [default: approle when a role id is given, else token]
    #[arg(long, id = "vault-auth", value_name = "METHOD")]
    pub vault_auth: Option<VaultAuthArg>,

    /// Mount of the login method, without auth/ [default: the method's name]
    #[arg(long, id = "vault-auth-mount", value_name = "MOUNT", value_parser = api_path)]
    pub vault_auth_mount: Option<String>,

    /// AppRole: role id
    #[arg(
        long, id = "vault-role-id", env = "VAULT_ROLE_ID", value_name = "ID",
        hide_env_values = true, value_parser = secret
    )]
    pub vault_role_id: Option<Secret>,

    /// AppRole: file with the role id, read again at each login
    #[arg(long, id = "vault-role-id-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_role_id_file: Option<PathBuf>,

    /// AppRole: secret id; every user of this machine can read a flag, the variable or a file is safer
    #[arg(
        long, id = "vault-secret-id", env = "VAULT_SECRET_ID", value_name = "ID",
        hide_env_values = true, value_parser = secret
    )]
    pub vault_secret_id: Option<Secret>,

    /// AppRole: file with the secret id, read again at each login
    #[arg(long, id = "vault-secret-id-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_secret_id_file: Option<PathBuf>,

    /// AppRole: the secret id is a wrapping token and is unwrapped first
    #[arg(long, id = "vault-secret-id-wrapped")]
    pub vault_secret_id_wrapped: bool,

    /// Kubernetes: role
    #[arg(long, id = "vault-k8s-role", value_name = "ROLE")]
    pub vault_k8s_role: Option<String>,

    /// Kubernetes: file with the service account's token
    /// [default: /var/run/secrets/kubernetes.io/serviceaccount/token]
    #[arg(long, id = "vault-k8s-token-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_k8s_token_file: Option<PathBuf>,

    /// JWT: role [default: the mount's default role]
    #[arg(long, id = "vault-jwt-role", value_name = "ROLE")]
    pub vault_jwt_role: Option<String>,

    /// JWT: file with the token, such as a JWT-SVID
    #[arg(long, id = "vault-jwt-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_jwt_file: Option<PathBuf>,

    /// Certificate login: name of the certificate role [default: Vault looks for a match]
    #[arg(long, id = "vault-cert-role", value_name = "NAME")]
    pub vault_cert_role: Option<String>,

    /// Token; every user of this machine can read a flag, so set the variable
    #[arg(
        long, id = "vault-token", env = "VAULT_TOKEN", value_name = "TOKEN",
        hide = true, hide_env_values = true, value_parser = secret
    )]
    pub vault_token: Option<Secret>,

    /// Token login: file with the token, read again when the token ends; VAULT_TOKEN sets the token itself
    #[arg(long, id = "vault-token-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_token_file: Option<PathBuf>,

    /// Namespace (Vault Enterprise, OpenBao)
    #[arg(
        long,
        id = "vault-namespace",
        env = "VAULT_NAMESPACE",
        value_name = "NAMESPACE"
    )]
    pub vault_namespace: Option<String>,

    /// Authorities in PEM that Vault's own certificate comes from [default: the system's]
    #[arg(long, id = "vault-ca", env = "VAULT_CACERT", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_ca: Option<PathBuf>,

    /// Client certificate in PEM to show to Vault
    #[arg(long, id = "vault-client-cert", env = "VAULT_CLIENT_CERT", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_client_cert: Option<PathBuf>,

    /// Private key in PEM of the client certificate
    #[arg(long, id = "vault-client-key", env = "VAULT_CLIENT_KEY", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vault_client_key: Option<PathBuf>,

    /// Refused: Vault's certificate is always verified
    #[arg(
        long,
        id = "vault-skip-verify",
        env = "VAULT_SKIP_VERIFY",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide = true
    )]
    pub vault_skip_verify: Option<String>,

    /// Common name of the certificate [default: --name of an executor, the host name of an access point]
    #[arg(long, id = "vault-cert-cn", value_name = "NAME")]
    pub vault_cert_cn: Option<String>,

    /// URI SAN, such as the SPIFFE ID (repeatable)
    #[arg(long, id = "vault-cert-san-uri", value_name = "URI", value_parser = uri_san)]
    pub vault_cert_san_uri: Vec<String>,

    /// DNS SAN besides the common name (repeatable, comma list)
    #[arg(
        long,
        id = "vault-cert-san-dns",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub vault_cert_san_dns: Vec<String>,

    /// IP SAN (repeatable, comma list)
    #[arg(
        long,
        id = "vault-cert-san-ip",
        value_name = "IP",
        value_delimiter = ','
    )]
    pub vault_cert_san_ip: Vec<IpAddr>,

    /// Life to ask for, such as 24h [default: the role's]
    #[arg(long, id = "vault-cert-ttl", value_name = "DURATION", value_parser = certificate_life)]
    pub vault_cert_ttl: Option<Duration>,

    /// Renew after this share of a certificate's life, between 0 and 1
    #[arg(
        long,
        id = "vault-renewal-threshold",
        value_name = "F",
        default_value = "2/3"
    )]
    pub vault_renewal_threshold: Share,

    /// Further attempts of one request, before it counts as failed
    #[arg(
        long,
        id = "vault-retry-max",
        value_name = "N",
        default_value = "5",
        value_parser = clap::value_parser!(u32).range(..=100)
    )]
    pub vault_retry_max: u32,

    /// Wait before the first of them; it doubles each time
    #[arg(long, id = "vault-retry-delay", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub vault_retry_delay: Duration,

    /// Keep no token in <state>: each start logs in anew, which a one-time secret id does not survive
    #[arg(long, id = "no-vault-token-cache")]
    pub no_vault_token_cache: bool,
}

/// `--vault-auth`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VaultAuthArg {
    /// Role id and secret id
    #[value(name = "approle")]
    AppRole,
    /// Service account of a Kubernetes pod
    Kubernetes,
    /// JWT, such as an OIDC token or a JWT-SVID
    #[value(alias = "oidc")]
    Jwt,
    /// TLS client certificate
    Cert,
    /// A token that somebody else obtained
    Token,
}
