//! `ah agent doctor` (ER-25).

use clap::Args;

use super::EnrollArgs;

/// The flags of `ah agent enroll`, and how to print.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// What `ah agent enroll` is given.
    #[command(flatten)]
    pub enroll: EnrollArgs,
}
