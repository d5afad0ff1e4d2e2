//! Flags of the dev provider (DV-1, DV-2).

use clap::Args;

/// The development CA.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Let the dev identity leave this machine; both sides need a copy of the same dev CA
    #[arg(long, id = "dev-allow-remote")]
    pub dev_allow_remote: bool,
}
