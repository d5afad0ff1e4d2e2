//! Unix sockets that belong to one process and one user.

use std::io;
use std::os::unix::fs::PermissionsExt;
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
        let fault = |verb: &str, error: io::Error| {
            Explained::new(
                Code::Other,
                format!("cannot {verb} {what} {}", path.display()),
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
        // Bound under another name first, so that no one can connect before the mode is set.
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault("replace", error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&draft).map_err(|error| fault("create", error))?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&draft, path))
            .map_err(|error| fault("protect", error))?;
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
