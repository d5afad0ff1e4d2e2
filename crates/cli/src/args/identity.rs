//! Where an identity comes from: the choice of a provider, and the flags of all of them.

use std::path::PathBuf;

use clap::{Args, Command, ValueEnum, ValueHint};

use super::{DevArgs, ExecArgs, FilesArgs, SpiffeArgs, VaultArgs};

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

/// The flags of every provider. A provider's own are in a file and a struct of its name.
#[derive(Debug, Args)]
pub struct ProviderArgs {
    /// PEM files.
    #[command(flatten)]
    pub files: FilesArgs,

    /// Certificates in PEM of the authorities to trust: all of them with files, further ones otherwise
    #[arg(long, env = "AH_CA", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,

    /// SPIFFE Workload API.
    #[command(flatten)]
    pub spiffe: SpiffeArgs,

    /// The development CA.
    #[command(flatten)]
    pub dev: DevArgs,

    /// HashiCorp Vault or OpenBao.
    #[command(flatten)]
    pub vault: VaultArgs,

    /// A command.
    #[command(flatten)]
    pub exec: ExecArgs,
}

impl IdentityChoice {
    /// All providers there are.
    pub const ALL: [Self; 5] = [
        Self::Dev,
        Self::Files,
        Self::Spiffe,
        Self::Vault,
        Self::Exec,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Files => "files",
            Self::Spiffe => "spiffe",
            Self::Vault => "vault",
            Self::Exec => "exec",
        }
    }

    /// The ids of the flags that have a meaning with this provider alone.
    pub fn flags(self) -> Vec<String> {
        let none = Command::new("");
        let own = match self {
            Self::Dev => DevArgs::augment_args(none),
            Self::Files => FilesArgs::augment_args(none),
            Self::Spiffe => SpiffeArgs::augment_args(none),
            Self::Vault => VaultArgs::augment_args(none),
            Self::Exec => ExecArgs::augment_args(none),
        };
        let ids = own.get_arguments().map(|arg| arg.get_id().to_string());
        ids.collect()
    }
}
