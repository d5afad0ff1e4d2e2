//! Unix sockets that belong to one process and one user.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ah_identity_provider::{Code, Explained};
use tokio::net::UnixListener;

/// A listening unix socket of mode 0600. The file goes when this does.
pub(crate) struct PrivateSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl PrivateSocket {
    /// Takes `path`, also from a process that was killed and left it behind. `what` names the socket in
    /// errors (`status socket`), `flag` the flag that moves it, `who` what is running when one answers.
    pub(crate) fn bind(path: &Path, what: &str, flag: &str, who: &str) -> Result<Self, Explained> {
        let fault = |error: io::Error| {
            Explained::new(
                Code::Other,
                format!("cannot create {what} {}", path.display()),
            )
            .cause(error)
            .hint(format!(
                "give another path with {flag}, or mend the directory: ls -ld {}",
                path.parent().unwrap_or(Path::new("/")).display()
            ))
        };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Explained::new(
                Code::Usage,
                format!("{who} is running already: {} answers", path.display()),
            )
            .hint(format!(
                "stop the other one, or give this one another path with {flag}"
            )));
        }
        // A path too long for a socket would bind elsewhere and never be reached.
        std::os::unix::net::SocketAddr::from_pathname(path).map_err(fault)?;
        // Made where nobody else can reach it, so that no one connects before the mode is set.
        let den = path.with_file_name(format!(".{:08x}", rand::random::<u32>()));
        let draft = den.join("s");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&den)
            .map_err(fault)?;
        let bound = UnixListener::bind(&draft).and_then(|listener| {
            std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&draft, path)?;
            Ok(listener)
        });
        let _ = std::fs::remove_file(&draft);
        let _ = std::fs::remove_dir(&den);
        let listener = bound.map_err(fault)?;
        Ok(Self {
            listener: Some(listener),
            path: path.to_owned(),
        })
    }

    /// The listener, once; keep `self` for as long as it listens.
    pub(crate) fn take_listener(&mut self) -> io::Result<UnixListener> {
        let taken = || io::Error::other("the listener was taken before");
        self.listener.take().ok_or_else(taken)
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
