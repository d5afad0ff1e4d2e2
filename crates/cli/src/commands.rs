//! One file for each command.

pub mod access_point;
pub mod audit;
pub mod completions;
pub mod enroll;
pub mod fleet;
mod identity;
pub mod status;

use ah_daemon::logging::LogError;
use ah_identity_provider::{Code, Explained};

use crate::LOG_TARGETS;

fn log_fault(error: &LogError) -> Explained {
    Explained::new(Code::Usage, error.to_string())
        .hint("for example RUST_LOG=ah_identity_provider=debug,ah_cli=debug")
}
