//! The unix socket: whoever may open it may do everything.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ah_spire_wire::{Limits, serve};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::accept_loop;
use tower::Layer;

use crate::api::{Calls, Core, local_routes};
use crate::store::Store;

/// A listening socket of mode 0770, in a directory that is made with 0750. The file goes with it.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Takes `path`, also from a server that was killed and left it behind.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let because = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
        };
        if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(directory)
                .map_err(|error| because("unable to create socket directory of", error))?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let error = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(because("there is a file that is no socket at", error));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                let error = io::Error::from(io::ErrorKind::AddrInUse);
                return Err(because("another server answers on", error));
            }
            Ok(_) => {
                std::fs::remove_file(path)
                    .map_err(|error| because("unable to remove the old socket", error))?;
            }
            Err(_) => {}
        }
        let listener =
            UnixListener::bind(path).map_err(|error| because("cannot listen on", error))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o770))
            .map_err(|error| because("cannot set the mode of", error))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers calls until `stop`, and those under way then.
    pub async fn run<S: Store>(self, core: Arc<Core<S>>, stop: CancellationToken) {
        let routes = local_routes(&core);
        let connection = |(stream, _): (UnixStream, _)| {
            let calls = Calls::local(core.clone(), routes.clone(), &stream);
            let calls = core.rpc.layer(calls);
            let stop = stop.clone().cancelled_owned();
            async move {
                if let Err(error) = serve(stream, calls, Limits::default(), stop).await {
                    tracing::debug!(%error, "A local connection ended");
                }
            }
        };
        accept_loop(|| self.listener.accept(), connection, stop.cancelled()).await;
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
