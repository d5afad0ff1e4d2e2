//! The file of the public socket.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ah_identity_provider::{Code, Explained};
use tokio::net::{UnixListener, UnixStream};

/// Every process may call.
const SOCKET_MODE: u32 = 0o777;

/// Every process may reach the socket; only the agent's user may put another in its place.
const FOLDER_MODE: u32 = 0o755;

/// `sun_path` of unix(7) and its final NUL.
const LONGEST_PATH: usize = 107;

/// A listening socket and its file.
pub(super) struct PublicSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    file: (u64, u64),
    /// What was told about the file last, to tell it once.
    told: Option<String>,
}

impl PublicSocket {
    /// Takes `path`: a socket that nobody listens on is replaced, anything else that is there is left alone.
    pub(super) fn bind(path: &Path) -> Result<Self, Explained> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(failed(
                path,
                format_args!("the path is longer than {LONGEST_PATH} bytes"),
                "set socket_path to a shorter path",
            ));
        }
        make_folder(path)?;
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(|error| about(path, &error))?;
        let opened = fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
            .and_then(|()| identify(path));
        Ok(Self {
            file: opened.map_err(|error| about(path, &error))?,
            path: path.to_owned(),
            listener,
            told: None,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Puts right what happened to the file: connections that are open never noticed.
    pub(super) fn look(&mut self) {
        let told = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => match Self::bind(&self.path) {
                Ok(again) => {
                    tracing::warn!(socket = %self.path.display(), "the socket was removed; it is there again");
                    *self = again;
                    return;
                }
                Err(error) => Some(error.report()),
            },
            Err(error) => Some(error.to_string()),
            Ok(found) if (found.dev(), found.ino()) != self.file => Some(
                "something else has taken the socket's place; workloads cannot reach this agent: \
                 stop what put it there and remove it"
                    .to_owned(),
            ),
            Ok(found) if found.mode() & 0o777 != SOCKET_MODE => {
                let mode = format!("{:04o}", found.mode() & 0o7777);
                match fs::set_permissions(&self.path, Permissions::from_mode(SOCKET_MODE)) {
                    Ok(()) => {
                        tracing::warn!(
                            socket = %self.path.display(), mode,
                            "the socket's mode was changed; it is 0777 again, so that every workload may call"
                        );
                        None
                    }
                    Err(error) => Some(format!("its mode is {mode} and not 0777: {error}")),
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

    /// Removes the file, unless it is somebody else's by now.
    pub(super) fn remove(&self) {
        if identify(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identify(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Makes the folder and what is missing above it, whatever the umask.
fn make_folder(path: &Path) -> Result<(), Explained> {
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
        let made = fs::DirBuilder::new().mode(FOLDER_MODE).create(folder);
        match made {
            Ok(()) => fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| about(folder, &error))?;
    }
    match fs::metadata(folder) {
        Ok(found) if found.mode() & 0o001 == 0 => {
            tracing::warn!(
                folder = %folder.display(),
                mode = format!("{:04o}", found.mode() & 0o7777),
                "other users cannot reach the socket in this folder; chmod 0755 lets their workloads call"
            );
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(about(folder, &error)),
    }
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path) -> Result<(), Explained> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(about(path, &error)),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(failed(
            path,
            "something that is not a socket is there",
            format!(
                "move {} away, or set socket_path to another path",
                path.display()
            ),
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(failed(
            path,
            "another process is listening on it",
            "stop the other agent, or set socket_path to another path",
        )),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing a socket that nobody listens on");
            fs::remove_file(path).map_err(|error| about(path, &error))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // Such as a full queue: somebody is there.
        Err(error) => Err(about(path, &error)),
    }
}

fn about(path: &Path, error: &io::Error) -> Explained {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => {
            "the agent's user needs to write to that folder; change its owner, or set socket_path to another path"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "set socket_path to a path on a file system that can be written to"
        }
        _ => "set socket_path to a path in a folder where the agent may create files",
    };
    failed(path, error, hint)
}

fn failed(path: &Path, why: impl std::fmt::Display, hint: impl Into<String>) -> Explained {
    let text = format!(
        "cannot listen on the Workload API socket {}: {why}",
        path.display()
    );
    Explained::new(Code::Other, text).hint(hint)
}
