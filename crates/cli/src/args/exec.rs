//! Flags of the exec provider (EX-1, AP-10, EN-7).

use std::time::Duration;

use ah_identity_provider::exec::ExecCommand;
use clap::Args;

use crate::settings::value::{duration, exec_command};

/// A command that prints an identity.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity from a command (exec)")]
pub struct ExecArgs {
    /// Command that prints certificate chain, private key and authorities; split as a shell would, run without one
    #[arg(long, id = "exec-command", value_name = "COMMAND", value_parser = exec_command)]
    pub exec_command: Option<ExecCommand>,

    /// Run it at least this often [default: at two thirds of the certificate's life, which bounds it in any case]
    #[arg(long, id = "exec-refresh-interval", value_name = "DURATION", value_parser = duration)]
    pub exec_refresh_interval: Option<Duration>,

    /// End the command and all it started when it takes longer than this
    #[arg(long, id = "exec-timeout", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub exec_timeout: Duration,
}
