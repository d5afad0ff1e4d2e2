//! `ah agent access-point` (contract §2).

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ah_fleet::audit::AuditTarget;
use clap::{Args, ValueHint};

use super::{DuplicatesArg, IdentityChoice, ProcessArgs, ProviderArgs};
use crate::settings::value::{DbUrl, audit_target, duration, listen_address};

/// Everything that can be said to an access point.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  Development, on this machine only:
    ah agent access-point --fleet-listen 127.0.0.1:4433

  Certificates of your own PKI, executors by DNS name:
    ah agent access-point --fleet-listen 0.0.0.0:4433 --server-identity files \\
      --cert /etc/ah/cert.pem --key /etc/ah/key.pem --ca /etc/ah/ca.pem \\
      --executor-san-dns '*.executors.example.com'

  See whether the settings file is right, without starting anything:
    ah agent access-point --config /etc/ah/access-point.toml --validate")]
pub struct AccessPointArgs {
    /// Listening.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Own identity.
    #[command(flatten)]
    pub identity: ServerIdentityArgs,
    /// Who is let in.
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// What is kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// How it is looked at and steered.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Where executors connect.
#[derive(Debug, Args)]
#[command(next_help_heading = "Listening")]
pub struct ListenArgs {
    /// Address that executors dial (repeatable); port 0 takes a free one and prints it
    ///
    /// Sockets handed over by systemd are used besides.
    #[arg(
        long, id = "fleet-listen", env = "AH_FLEET_LISTEN", value_name = "ADDR:PORT",
        default_value = "127.0.0.1:4433", value_delimiter = ',', value_parser = listen_address
    )]
    pub fleet_listen: Vec<SocketAddr>,
}

/// Who this access point is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
pub struct ServerIdentityArgs {
    /// Where this access point's own identity comes from
    #[arg(
        long,
        id = "server-identity",
        env = "AH_SERVER_IDENTITY",
        value_name = "PROVIDER",
        default_value = "dev"
    )]
    pub server_identity: IdentityChoice,

    /// The providers' own flags.
    #[command(flatten)]
    pub providers: ProviderArgs,
}

/// Who is let in (AP-5 to AP-8, AP-16, RG-2).
#[derive(Debug, Args)]
#[command(next_help_heading = "Admission")]
pub struct AdmissionArgs {
    /// Admit certificates whose URI SAN begins with this, on whole path segments (repeatable)
    ///
    /// A SPIFFE prefix also pins the trust domain. A certificate is admitted when it matches one rule of
    /// any kind; with no rule at all, any certificate that chains to a trusted root is.
    #[arg(long, id = "executor-san-uri-prefix", value_name = "PREFIX")]
    pub executor_san_uri_prefix: Vec<String>,

    /// Admit certificates with this DNS SAN; `*.example.com` matches one label (repeatable, comma list)
    #[arg(
        long,
        id = "executor-san-dns",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub executor_san_dns: Vec<String>,

    /// Admit certificates with this IP SAN (repeatable, comma list)
    #[arg(
        long,
        id = "executor-san-ip",
        value_name = "IP|CIDR",
        value_delimiter = ','
    )]
    pub executor_san_ip: Vec<String>,

    /// Refuse certificates with a SPIFFE ID that merely depart from what issuers are told to do
    #[arg(long, id = "strict-svid")]
    pub strict_svid: bool,

    /// What to do when a second live process presents an executor id that is enrolled
    #[arg(long, value_name = "POLICY", default_value = "reject")]
    pub duplicates: DuplicatesArg,

    /// Enroll at most so many executors at a time [default: unlimited]
    #[arg(long, id = "max-executors", value_name = "N")]
    pub max_executors: Option<NonZeroU32>,

    /// Do at most so many handshakes at a time; the excess is reset before any cryptography
    #[arg(long, id = "max-handshakes", value_name = "N", default_value = "256")]
    pub max_handshakes: NonZeroU32,

    /// Cut off a peer that has not finished its handshake after this long
    #[arg(long, id = "handshake-timeout", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,

    /// How often both sides send a heartbeat
    #[arg(long, id = "heartbeat-interval", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub heartbeat_interval: Duration,
}

/// What is kept (AP-11, AP-12).
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry and audit")]
pub struct StoreArgs {
    /// Registry: sqlite:PATH or postgres://…; created and migrated on start
    /// [default: sqlite:<state>/access-point.db]
    #[arg(long, env = "AH_DB", value_name = "URL", hide_env_values = true)]
    pub db: Option<DbUrl>,

    /// Audit log: a file, `-` for standard output, or `journald` [default: <state>/audit.jsonl]
    #[arg(
        long,
        id = "audit-log",
        value_name = "PATH|-|journald",
        value_parser = audit_target,
        allow_hyphen_values = true
    )]
    pub audit_log: Option<AuditTarget>,
}

/// How it is looked at and steered (AP-13, AP-14).
#[derive(Debug, Args)]
#[command(next_help_heading = "Control")]
pub struct ControlArgs {
    /// Serve /healthz, /readyz, /metrics and REST here; loopback unless TLS and a token are configured
    #[arg(long, id = "http-listen", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub http_listen: Option<SocketAddr>,

    /// File that holds the bearer token REST asks for
    #[arg(long, id = "http-token-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub http_token_file: Option<PathBuf>,

    /// Certificate chain in PEM for HTTPS
    #[arg(long, id = "http-cert", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub http_cert: Option<PathBuf>,

    /// Private key in PEM for HTTPS
    #[arg(long, id = "http-key", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub http_key: Option<PathBuf>,

    /// Socket that `ah agent fleet` talks to, mode 0600 [default: <run>/access-point.sock]
    #[arg(long, id = "admin-socket", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub admin_socket: Option<PathBuf>,
}
