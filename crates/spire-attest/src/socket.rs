//! Listening unix sockets, whose files are kept as they were made.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// What a socket is for.
#[derive(Debug)]
pub struct Purpose {
    /// The API that is served on it.
    pub api: &'static str,
    /// The key that names its path.
    pub key: &'static str,
    /// The file's mode.
    pub mode: u32,
    /// The mode of folders that are made for it. Only the process's user may put another socket in its place.
    pub folder_mode: u32,
}

/// How often the socket's file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Pause after a failed accept: without descriptors the next one fails too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// `sun_path` of unix(7) and its final NUL.
const LONGEST_PATH: usize = 107;

/// A listening socket and its file, which goes with it.
#[derive(Debug)]
pub struct Socket {
    purpose: &'static Purpose,
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    file: (u64, u64),
    looks: Interval,
    /// What was told about the file last, to tell it once.
    told: Option<String>,
}

impl Socket {
    /// Takes `path`: a socket that nobody listens on is replaced, anything else that is there is left alone. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// What is in the way, and the remedy.
    pub fn bind(path: &Path, purpose: &'static Purpose) -> Result<Self, Explained> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(purpose.failed(
                path,
                format_args!("the path is longer than {LONGEST_PATH} bytes"),
                format!("set {} to a shorter path", purpose.key),
            ));
        }
        purpose.make_folder(path)?;
        purpose.clear(path)?;
        let about = |error: io::Error| purpose.about(path, &error);
        let listener = UnixListener::bind(path).map_err(about)?;
        let opened = fs::set_permissions(path, Permissions::from_mode(purpose.mode))
            .and_then(|()| identify(path));
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            purpose,
            file: opened.map_err(about)?,
            path: path.to_owned(),
            listener,
            looks,
            told: None,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection. Whoever waits for one keeps the file in its place.
    pub fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        while self.looks.poll_tick(context).is_ready() {
            self.look();
        }
        let (stream, _) = ready!(self.listener.poll_accept(context))?;
        Poll::Ready(Ok(stream))
    }

    /// Gives each connection to `take`, until `stop`; then the file goes.
    pub async fn serve(mut self, stop: impl Future<Output = ()>, take: impl Fn(UnixStream)) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = std::future::poll_fn(|context| self.poll_accept(context)) => accepted,
            };
            match accepted {
                Ok(stream) => take(stream),
                Err(error) => {
                    tracing::warn!(api = self.purpose.api, %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Puts right what happened to the file: connections that are open never noticed.
    fn look(&mut self) {
        let told = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match Self::bind(&self.path, self.purpose) {
                    Ok(again) => {
                        tracing::warn!(socket = %self.path.display(), "the socket was removed; it is there again");
                        *self = again;
                        return;
                    }
                    Err(error) => Some(error.report()),
                }
            }
            Err(error) => Some(error.to_string()),
            Ok(found) if (found.dev(), found.ino()) != self.file => Some(
                "something else has taken the socket's place; nobody can reach this process on it: \
                 stop what put it there and remove it"
                    .to_owned(),
            ),
            Ok(found) if found.mode() & 0o777 != self.purpose.mode => {
                let wanted = format!("{:04o}", self.purpose.mode);
                let mode = format!("{:04o}", found.mode() & 0o7777);
                match fs::set_permissions(&self.path, Permissions::from_mode(self.purpose.mode)) {
                    Ok(()) => {
                        tracing::warn!(
                            socket = %self.path.display(), mode,
                            "the socket's mode was changed; it is {wanted} again"
                        );
                        None
                    }
                    Err(error) => Some(format!("its mode is {mode} and not {wanted}: {error}")),
                }
            }
            Ok(_) => None,
        };
        if told != self.told
            && let Some(what) = &told
        {
            tracing::error!(socket = %self.path.display(), "{what}");
        }
        self.told = told;
    }
}

impl Drop for Socket {
    /// Removes the file, unless it is somebody else's by now.
    fn drop(&mut self) {
        if identify(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identify(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Purpose {
    /// Makes the folder and what is missing above it, whatever the umask.
    fn make_folder(&self, path: &Path) -> Result<(), Explained> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let Some(folder) = folder else {
            return Ok(());
        };
        let mut missing = Vec::new();
        let mut at = folder;
        while !at.exists() {
            missing.push(at);
            match at.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => at = parent,
                _ => break,
            }
        }
        for folder in missing.into_iter().rev() {
            let made = fs::DirBuilder::new().mode(self.folder_mode).create(folder);
            match made {
                Ok(()) => fs::set_permissions(folder, Permissions::from_mode(self.folder_mode)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|error| self.about(folder, &error))?;
        }
        match fs::metadata(folder) {
            Ok(found) if self.mode & 0o001 != 0 && found.mode() & 0o001 == 0 => {
                tracing::warn!(
                    folder = %folder.display(),
                    mode = format!("{:04o}", found.mode() & 0o7777),
                    "other users cannot reach the socket in this folder; chmod 0755 lets their workloads call"
                );
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.about(folder, &error)),
        }
    }

    /// Removes a socket that nobody listens on.
    fn clear(&self, path: &Path) -> Result<(), Explained> {
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.about(path, &error)),
            Ok(found) => found,
        };
        if !found.file_type().is_socket() {
            return Err(self.failed(
                path,
                "something that is not a socket is there",
                format!(
                    "move {} away, or set {} to another path",
                    path.display(),
                    self.key
                ),
            ));
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(self.failed(
                path,
                "another process is listening on it",
                format!("stop the other one, or set {} to another path", self.key),
            )),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                tracing::info!(socket = %path.display(), "replacing a socket that nobody listens on");
                fs::remove_file(path).map_err(|error| self.about(path, &error))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // Such as a full queue: somebody is there.
            Err(error) => Err(self.about(path, &error)),
        }
    }

    fn about(&self, path: &Path, error: &io::Error) -> Explained {
        let key = self.key;
        let hint = match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "the process's user needs to write to that folder; change its owner, or set {key} to another path"
            ),
            ErrorKind::ReadOnlyFilesystem => {
                format!("set {key} to a path on a file system that can be written to")
            }
            _ => format!("set {key} to a path in a folder where the process may create files"),
        };
        self.failed(path, error, hint)
    }

    fn failed(
        &self,
        path: &Path,
        why: impl std::fmt::Display,
        hint: impl Into<String>,
    ) -> Explained {
        let text = format!(
            "cannot listen on the {} socket {}: {why}",
            self.api,
            path.display()
        );
        Explained::new(Code::Other, text).hint(hint)
    }
}
