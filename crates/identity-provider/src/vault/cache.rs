//! The token on disk (VA-15): a restart does not log in again while it is good, and of the processes that share a
//! secret id one alone spends it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::Secret;
use super::secret::fingerprint;
use crate::put::put;

/// How often a lock that is taken is tried again.
const LOOK: Duration = Duration::from_millis(50);

/// How long another process may take for its login.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where one login's token is kept.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    name: String,
}

/// A token that was kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) token: Secret,
    /// `None`: it has no end.
    pub(super) expires: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Stored {
    version: u32,
    credential: String,
    token: Secret,
    expires: Option<u64>,
}

#[derive(Serialize)]
struct Storing<'a> {
    version: u32,
    credential: &'a str,
    token: &'a str,
    expires: Option<u64>,
}

/// The right to log in, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// What went wrong with the cache, in words for the log.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {error}", path = path.display())]
pub(super) struct CacheError {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl Cache {
    /// The cache of logins that `parts` tell from each other: servers, namespace, mount, role.
    pub(super) fn new<'a>(directory: PathBuf, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut name = fingerprint(parts);
        name.truncate(16);
        Self {
            directory,
            name: format!("vault-token-{name}"),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.name))
    }

    /// Waits until no other process logs in.
    pub(super) async fn lock(&self) -> Result<Lock, CacheError> {
        let path = self.directory.join(format!("{}.lock", self.name));
        let failed = |what, error| CacheError {
            what,
            path: path.clone(),
            error,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| failed("cannot create the directory of", error))?;
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("cannot open", error))?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => sleep(LOOK).await,
                Err(TryLockError::WouldBlock) => {
                    return Err(failed(
                        "another process keeps",
                        io::ErrorKind::TimedOut.into(),
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(failed("cannot lock", error)),
            }
        }
    }

    /// The token that was kept for `credential`, unless its time is over. What cannot be read counts as none.
    pub(super) fn read(&self, _lock: &Lock, credential: &str, now: SystemTime) -> Option<Kept> {
        let path = self.path();
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        match File::open(&path).and_then(|file| file.take(64 * 1024).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the vault token cache cannot be read, logging in instead");
                return None;
            }
        }
        let Ok(stored) = serde_json::from_slice::<Stored>(&bytes) else {
            tracing::warn!(path = %path.display(), "the vault token cache is damaged, logging in instead");
            return None;
        };
        let expires = stored
            .expires
            .map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at));
        let good = stored.version == 1
            && stored.credential == credential
            && expires.is_none_or(|expires| expires > now);
        good.then_some(Kept {
            token: stored.token,
            expires,
        })
    }

    /// Keeps `token`: written beside, brought to the disk, renamed. The name beside is ours while the lock is held.
    pub(super) fn write(
        &self,
        _lock: &Lock,
        credential: &str,
        token: &Secret,
        expires: Option<SystemTime>,
    ) -> Result<(), CacheError> {
        let path = self.path();
        let since_epoch = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
        let storing = Storing {
            version: 1,
            credential,
            token: token.expose(),
            expires: expires.and_then(since_epoch).map(|span| span.as_secs()),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        let written = serde_json::to_writer(&mut *bytes, &storing)
            .map_err(io::Error::from)
            .and_then(|()| put(&path, &bytes, 0o600));
        written.map_err(|error| CacheError {
            what: "cannot write",
            path,
            error,
        })
    }
}
