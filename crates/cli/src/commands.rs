//! One file for each command.

pub mod access_point;
pub mod audit;
pub mod completions;
pub mod demo;
pub mod enroll;
pub mod fleet;
mod identity;
pub mod status;

use std::path::Path;

use ah_daemon::logging::LogError;
use ah_daemon::paths::create_private;
use ah_identity_provider::{Code, Explained};

use crate::LOG_TARGETS;

fn log_fault(error: &LogError) -> Explained {
    Explained::new(Code::Usage, error.to_string())
        .hint("for example RUST_LOG=ah_identity_provider=debug,ah_cli=debug")
}

/// Makes the directory of a file that is about to be made, for this user alone, when it is missing.
fn make_room(file: &Path) -> Result<(), Explained> {
    let Some(directory) = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    else {
        return Ok(());
    };
    if directory.exists() {
        return Ok(());
    }
    create_private(directory).map_err(|error| {
        Explained::new(
            Code::Other,
            format!("cannot make the directory {}", directory.display()),
        )
        .cause(error)
        .hint("make it for the user of this process, or set STATE_DIRECTORY and RUNTIME_DIRECTORY")
    })
}
