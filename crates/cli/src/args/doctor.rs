//! `ah agent doctor` (ER-25).

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::EnrollArgs;

/// The flags of `ah agent enroll`, and how to print.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Go through the production checklist too, for the executor and for an access point of this machine
    ///
    /// On a machine without an executor no --remote-server is needed.
    #[arg(long)]
    pub production: bool,

    /// With --production: socket of the access point on this machine [default: <run>/access-point.sock]
    #[arg(long, id = "admin-socket", value_name = "PATH", value_hint = ValueHint::FilePath, requires = "production")]
    pub admin_socket: Option<PathBuf>,

    /// What `ah agent enroll` is given.
    #[command(flatten)]
    pub enroll: EnrollArgs,
}
