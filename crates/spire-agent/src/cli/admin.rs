//! What the commands of the admin API have in common: its socket, and how they fail.

use std::path::PathBuf;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::agent::DEFAULT_ADMIN_SOCKET_PATH;
use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::Channel;
use tonic::Status;

use super::failure::{Failure, rpc_error};
use super::output;

/// `-output` and `-socketPath`
pub(super) fn flags(name: &str) -> FlagSet {
    output::with_flag(FlagSet::new(name)).string(
        "socketPath",
        DEFAULT_ADMIN_SOCKET_PATH,
        "Path to the SPIRE Agent admin API socket",
    )
}

/// A connection to the admin API.
pub(super) async fn connect(flags: &Flags) -> Result<Channel, Failure> {
    let path = PathBuf::from(flags.string("socketPath"));
    Channel::unix(&path).await.map_err(|error| {
        let text = format!(
            "failed to connect to the agent's admin API: {}: {error}",
            path.display()
        );
        let failed = Explained::new(Code::Unavailable, text).hint(
            "an agent has this socket when its configuration sets `admin_socket_path`; name it with -socketPath, as the agent's user or in its group",
        );
        failed.into()
    })
}

/// A refused call; `what` was tried.
pub(super) fn failed(what: &str, status: &Status) -> Failure {
    let during = if what.is_empty() { "" } else { ": " };
    Failure::new(format!("Error: {what}{during}{}", rpc_error(status)))
}
