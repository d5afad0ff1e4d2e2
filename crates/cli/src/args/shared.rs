//! Flags that access point and executor share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::settings::value::duration;

/// Where an identity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdentityChoice {
    /// Development CA of this machine
    Dev,
    /// PEM files
    Files,
    /// SPIFFE Workload API
    Spiffe,
    /// HashiCorp Vault or OpenBao
    Vault,
    /// Output of a command
    Exec,
}

/// What the identity is made of, and how strictly it is taken.
#[derive(Debug, Args)]
pub struct MaterialArgs {
    /// Certificate chain in PEM, leaf first (files)
    #[arg(long, env = "AH_CERT", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub cert: Option<PathBuf>,

    /// Private key in PEM: PKCS#8, PKCS#1 or SEC1 (files)
    #[arg(long, env = "AH_KEY", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,

    /// Certificates in PEM of the authorities to trust
    #[arg(long, env = "AH_CA", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,

    /// File that holds the passphrase of an encrypted private key
    #[arg(long, id = "key-passphrase-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub key_passphrase_file: Option<PathBuf>,

    /// Refuse a private key that group or others can read, instead of warning
    #[arg(long, id = "strict-key-permissions")]
    pub strict_key_permissions: bool,

    /// Let the dev identity leave this machine; both sides need a copy of the same dev CA
    #[arg(long, id = "dev-allow-remote")]
    pub dev_allow_remote: bool,
}

/// How the process behaves.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Settings in TOML: each flag is a key, written with `_`; flag > environment > file > default
    ///
    /// Without it, /etc/ah/access-point.toml or /etc/ah/executor.toml is read when present.
    #[arg(long, env = "AH_CONFIG", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Load everything, print every fault at once, start nothing; exit code 0 or 1
    #[arg(long)]
    pub validate: bool,

    /// How much to log; RUST_LOG wins
    #[arg(long, id = "log-level", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevelArg,

    /// How to write a log line
    #[arg(long, id = "log-format", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormatArg,

    /// After TERM or INT, wait at most this long for connections to end
    #[arg(long, id = "drain-timeout", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
}

/// `--log-level`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevelArg {
    /// What needs a person
    Error,
    /// What may soon need one
    Warn,
    /// What happened
    Info,
    /// What led to it
    Debug,
    /// Everything
    Trace,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// `--duplicates`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DuplicatesArg {
    /// Refuse the newcomer and audit it as a possible stolen identity
    Reject,
    /// Let the newcomer in and end the older session
    Replace,
}
