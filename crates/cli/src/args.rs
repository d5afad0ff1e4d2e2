//! What can be typed. Doc comments here are the help texts, man pages and completions.

#![cfg_attr(
    doc,
    expect(
        rustdoc::invalid_html_tags,
        reason = "help texts name directories as the contract does: <state>, <run>"
    )
)]

mod access_point;
mod dev;
mod doctor;
mod enroll;
mod exec;
mod files;
mod identity;
mod operate;
mod shared;
mod spiffe;
mod vault;

use clap::{CommandFactory, Parser, Subcommand};

pub use access_point::{
    AccessPointArgs, AdmissionArgs, ControlArgs, ListenArgs, ServerIdentityArgs, StoreArgs,
};
pub use dev::DevArgs;
pub use doctor::DoctorArgs;
pub use enroll::{EnrollArgs, ExecutorArgs, ExecutorIdentityArgs, OnceArg, RemoteArgs};
pub use exec::ExecArgs;
pub use files::FilesArgs;
pub use identity::{IdentityChoice, ProviderArgs};
pub use operate::{
    AuditArgs, AuditCommand, CompletionsArgs, DemoArgs, FleetArgs, FleetCommand, ListArgs, ManArgs,
    RevokeArgs, StatusArgs, WatchArgs, WhoArgs, WhyArgs,
};
pub use shared::{DuplicatesArg, LogFormatArg, LogLevelArg, PrintArgs, Printable, ProcessArgs};
pub use spiffe::SpiffeArgs;
pub use vault::{VaultArgs, VaultAuthArg};

/// Agent Harbor: executors that prove who they are to an access point, and stay enrolled
#[derive(Debug, Parser)]
#[command(name = "ah", version, propagate_version = true)]
pub struct Ah {
    /// What to do.
    #[command(subcommand)]
    pub command: AhCommand,
}

/// The areas of the command.
#[derive(Debug, Subcommand)]
pub enum AhCommand {
    /// Run and look after access points and executors
    Agent {
        /// What to do.
        #[command(subcommand)]
        command: AgentCommand,
    },
}

/// `ah agent …`
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Run the control plane that executors enroll with
    AccessPoint(Box<Printable<AccessPointArgs>>),
    /// Run a worker: dial an access point, prove who this is, stay enrolled
    Enroll(Box<Printable<EnrollArgs>>),
    /// Show whether the executor on this machine is enrolled, or why not
    ///
    /// Exit code: 0 enrolled, 1 not enrolled, 3 no such executor process.
    Status(StatusArgs),
    /// Find out why an executor does not enroll: takes the flags of `enroll`, checks each thing it depends on
    ///
    /// One line a check: pass, warn, fail with the fix, or skip when something else has to be mended first.
    /// Exit code: 0 nothing failed, 1 something failed, 2 usage.
    #[command(after_help = "\
Examples:
  ah agent doctor --remote-server https://127.0.0.1:4433 --name worker-1
  ah agent doctor --config /etc/ah/executor.toml
  ah agent doctor --production --config /etc/ah/executor.toml
  ah agent doctor --remote-server https://access-point.example.com:4433 --identity files \\
    --cert /etc/ah/executor.pem --key /etc/ah/executor-key.pem --ca /etc/ah/ca.pem --json")]
    Doctor(Box<DoctorArgs>),
    /// List, show, explain, revoke, reinstate, disconnect and watch executors
    Fleet(FleetArgs),
    /// Check an audit log
    Audit(AuditArgs),
    /// Show all of it at work on this machine: three executors, a rotation, a crash, a revocation
    Demo(DemoArgs),
    /// Print shell completions
    Completions(CompletionsArgs),
    /// Write man pages, one for each command
    Man(ManArgs),
}

/// The whole definition, from which parsing, completions, man pages and settings files are made.
pub fn definition() -> clap::Command {
    Ah::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    // AP-17: every flag has the same key; ids are the long flags.
    #[test]
    fn every_id_is_its_long_flag() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                if let Some(long) = arg.get_long() {
                    assert_eq!(arg.get_id().as_str(), long, "{}", command.get_name());
                    assert!(
                        arg.get_help().is_some(),
                        "--{long} of {} has no help",
                        command.get_name()
                    );
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&definition());
    }
}
