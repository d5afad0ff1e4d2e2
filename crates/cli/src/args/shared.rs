//! Flags that access point and executor share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::settings::value::duration;

/// What a command takes beside its settings: to print them as a file instead of running.
#[derive(Debug, Args)]
pub struct Printable<S: Args> {
    /// The settings.
    #[command(flatten)]
    pub settings: S,

    /// What to print.
    #[command(flatten)]
    pub print: PrintArgs,
}

/// Settings files (AP-17).
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct PrintArgs {
    /// Print a settings file with every setting, what it means and its default, and with what is given here set
    ///
    /// What the file of --config sets stays set. The environment is left out: it goes on winning over the file.
    #[arg(long, id = "print-config")]
    pub print_config: bool,

    /// Print the JSON schema of the settings file, for editors
    #[arg(long, id = "print-config-schema", conflicts_with = "print-config")]
    pub print_config_schema: bool,
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
