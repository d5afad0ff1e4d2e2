//! The unix socket: whoever may open it may do everything.

use std::path::Path;
use std::sync::Arc;
use std::task::Context;

use ah_identity_provider::Explained;
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_wire::{Limits, serve};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::accept_loop;
use tower::Layer;

use crate::api::{Calls, Core, local_routes};
use crate::store::Store;

/// The server's user and group may call.
const PURPOSE: Purpose = Purpose {
    api: "server API",
    key: "socket_path",
    mode: 0o770,
    folder_mode: 0o750,
};

/// A listening socket, whose file is there for as long as it is.
#[derive(Debug)]
pub struct LocalSocket(Socket);

impl LocalSocket {
    /// Takes `path`, also from a server that was killed and left it behind. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// What is in the way, and the remedy.
    pub fn bind(path: &Path) -> Result<Self, Explained> {
        Socket::bind(path, &PURPOSE).map(Self)
    }

    /// Answers calls until `stop`, and those under way then.
    pub async fn run<S: Store>(mut self, core: Arc<Core<S>>, stop: CancellationToken) {
        let routes = local_routes(&core);
        let connection = |stream: UnixStream| {
            let calls = Calls::local(core.clone(), routes.clone(), &stream);
            let calls = core.rpc.layer(calls);
            let stop = stop.clone().cancelled_owned();
            async move {
                if let Err(error) = serve(stream, calls, Limits::default(), stop).await {
                    tracing::debug!(%error, "A local connection ended");
                }
            }
        };
        let accept = |context: &mut Context<'_>| self.0.poll_accept(context);
        accept_loop(accept, connection, stop.cancelled()).await;
    }
}
