//! `ah agent enroll` (contract §3).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use spiffe::SpiffeId;

use super::{IdentityChoice, ProcessArgs, ProviderArgs};
use crate::settings::value::{Label, Name, RemoteServer, duration, spiffe_id};

/// Everything that can be said to an executor.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  Development, on this machine only:
    ah agent enroll --remote-server https://127.0.0.1:4433 --name worker-1

  Certificates of your own PKI:
    ah agent enroll --remote-server https://access-point.example.com:4433 --identity files \\
      --cert /etc/ah/executor.pem --key /etc/ah/executor-key.pem --ca /etc/ah/ca.pem

  In a script: wait until enrolled, then leave:
    ah agent enroll --remote-server https://127.0.0.1:4433 --once=enrolled")]
pub struct EnrollArgs {
    /// Whom to dial.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Own identity.
    #[command(flatten)]
    pub identity: ExecutorIdentityArgs,
    /// What it says of itself.
    #[command(flatten)]
    pub executor: ExecutorArgs,
    /// The process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Whom to dial (EN-1, EN-5, EN-9, EN-10).
#[derive(Debug, Args)]
#[command(next_help_heading = "Access point")]
pub struct RemoteArgs {
    /// Access point to enroll with (repeatable: tried in order)
    #[arg(
        long,
        id = "remote-server",
        env = "AH_REMOTE_SERVER",
        value_name = "https://HOST:PORT",
        value_delimiter = ',',
        required = true
    )]
    pub remote_server: Vec<RemoteServer>,

    /// SPIFFE ID that the access point must have; it is then judged by this and not by its DNS name
    #[arg(long, id = "expected-server-id", value_name = "spiffe://…", value_parser = spiffe_id)]
    pub expected_server_id: Option<SpiffeId>,

    /// Give up a connection attempt after this long
    #[arg(long, id = "connect-timeout", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub connect_timeout: Duration,

    /// Exit after the first failure, or with `enrolled` after the first welcome too
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "failure"
    )]
    pub once: Option<OnceArg>,
}

/// Who this executor is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
pub struct ExecutorIdentityArgs {
    /// Where this executor's identity comes from
    #[arg(
        long,
        env = "AH_IDENTITY",
        value_name = "PROVIDER",
        default_value = "dev"
    )]
    pub identity: IdentityChoice,

    /// The providers' own flags.
    #[command(flatten)]
    pub providers: ProviderArgs,
}

/// What the executor says of itself (EN-6, EN-8, EN-11).
#[derive(Debug, Args)]
#[command(next_help_heading = "Executor")]
pub struct ExecutorArgs {
    /// Label for people; not an authority for anything [default: host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Sent along, stored, and can be filtered by (repeatable)
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Label>,

    /// File of labels, one K=V a line; `#` begins a comment
    #[arg(long, id = "labels-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub labels_file: Option<PathBuf>,

    /// Socket that `ah agent status` reads [default: <run>/executor-<name>.sock]
    #[arg(long, id = "status-socket", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub status_socket: Option<PathBuf>,
}

/// `--once`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnceArg {
    /// Exit after the first failure
    #[value(alias = "true")]
    Failure,
    /// Exit after the first failure or the first successful welcome
    Enrolled,
    /// Keep trying (for a settings file)
    #[value(hide = true, alias = "false")]
    Off,
}
