//! Commands for people who look after a fleet (contract §7).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::settings::value::{Label, Name};

/// `ah agent status`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ah agent status
  ah agent status --name worker-1 --json
  ah agent status --show-cert")]
pub struct StatusArgs {
    /// Which executor of this machine [default: the only one, or the one named like the host]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Socket of the executor, when it was started with one of its own
    #[arg(long, id = "status-socket", value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "name")]
    pub status_socket: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Keep showing, as it changes
    #[arg(long)]
    pub watch: bool,

    /// Show the certificate in use: subject, issuer, serial, SANs, validity, SHA-256, key, chain, roots
    #[arg(long, id = "show-cert", conflicts_with = "watch")]
    pub show_cert: bool,

    /// Print the certificate chain as PEM
    #[arg(long, requires = "show-cert", conflicts_with = "json")]
    pub pem: bool,
}

/// `ah agent fleet`
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// Socket of the access point [default: <run>/access-point.sock]
    #[arg(long, id = "admin-socket", value_name = "PATH", value_hint = ValueHint::FilePath, global = true)]
    pub admin_socket: Option<PathBuf>,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: FleetCommand,
}

/// `ah agent fleet …` (FL-1)
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// List the executors that the access point knows
    List(ListArgs),
    /// Show one executor and its history
    Show(WhoArgs),
    /// Tell why an executor or an address was refused: its last attempts, and the rule that came closest
    Why(WhyArgs),
    /// End an executor's live session and bar its next handshake, until it is reinstated
    Revoke(RevokeArgs),
    /// Lift a revocation
    Reinstate(WhoArgs),
    /// End an executor's live session; it may come back
    Disconnect(WhoArgs),
    /// Show what happens, as it happens
    Watch(WatchArgs),
}

/// `ah agent fleet list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only executors with this label (repeatable: all of them)
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Label>,
    /// Only executors that are enrolled at this access point now
    #[arg(long)]
    pub live: bool,
    /// Only executors that are revoked; without --label and --live also every bar in force, such as one on a serial number
    #[arg(long)]
    pub revoked: bool,
}

/// Whom a fleet command means.
#[derive(Debug, Args)]
pub struct WhoArgs {
    /// Executor id, name, or serial or SHA-256 of a certificate
    #[arg(value_name = "WHO")]
    pub who: String,
}

/// `ah agent fleet why`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ah agent fleet why worker-1
  ah agent fleet why spiffe://example.org/ah/agent/worker-1 --json
  ah agent fleet why 10.1.2.3")]
pub struct WhyArgs {
    /// Executor id, name, address that it comes from, or serial or SHA-256 of a certificate
    #[arg(value_name = "WHO")]
    pub who: String,

    /// Show at most so many attempts, newest first
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u8).range(1..=200))]
    pub limit: u8,
}

/// `ah agent fleet revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Executor id, name, or serial or SHA-256 of a certificate
    #[arg(value_name = "WHO")]
    pub who: String,

    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `ah agent fleet watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only executors with this label (repeatable: all of them)
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Label>,
}

/// `ah agent audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AuditCommand,
}

/// `ah agent audit …` (AU-2)
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Prove that no line of an audit log was changed, removed or added, or name the first bad line
    Verify {
        /// The log; `-` for standard input
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
        file: PathBuf,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `ah agent demo`
#[derive(Debug, Args)]
pub struct DemoArgs {}

/// `ah agent completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ah agent completions bash > /etc/bash_completion.d/ah
  ah agent completions zsh > \"${fpath[1]}/_ah\"
  ah agent completions fish > ~/.config/fish/completions/ah.fish")]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// `ah agent man`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  ah agent man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write to; made when missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}
