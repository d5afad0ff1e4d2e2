//! The executable of a process, and its SHA-256.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ah_identity_provider::hex;
use aws_lc_rs::digest::{Context, SHA256};

use crate::AttestError;
use crate::peer::about_proc;
use crate::remember::Remember;
use crate::workload::proc::ProcRoot;
use crate::workload::unix::accounts::blocking;
use crate::workload::unix::utf8;

/// How many digests are held. One is some 200 bytes.
const MOST: usize = 4096;

/// A digest depends on the file alone, but memory is not for ever.
const KEEP: Duration = Duration::from_hours(24);

/// A file that was changed less than this before is not remembered: a change in the same tick of the file system's
/// clock would not be seen.
const SETTLED: Duration = Duration::from_secs(2);

/// The executable that a process runs, by way of procfs: the file itself, whatever has its path now.
pub(super) struct Executable {
    pid: i32,
    link: PathBuf,
}

impl Executable {
    pub(super) fn of(proc: &ProcRoot, pid: i32) -> Self {
        Self {
            pid,
            link: proc.file(pid, "exe"),
        }
    }

    /// Where it is, as its process sees it. The kernel adds ` (deleted)` when the file has no name any more.
    pub(super) fn path(&self) -> Result<String, AttestError> {
        let path = std::fs::read_link(&self.link);
        utf8(path.map_err(|error| self.fault("path lookup", error))?)
    }

    fn fault(&self, what: &'static str, error: io::Error) -> AttestError {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return AttestError::internal(
                format!("{what}: {}: {error}", self.link.display()),
                "run the agent as root or with CAP_SYS_PTRACE, or turn discover_workload_path off",
            );
        }
        about_proc(self.pid, what, error).into()
    }
}

/// What tells one content of one file from another, as far as the file system can.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileKey {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = since_epoch.map_or(0, |since| since.as_secs());
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        changed.saturating_add(SETTLED.as_secs()) < now
    }
}

/// Digests of executables, each made once.
pub(super) struct Digests {
    known: Remember<FileKey, Arc<str>>,
    made: Arc<AtomicU64>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            known: Remember::new(MOST, KEEP),
            made: Arc::default(),
        }
    }
}

impl Digests {
    /// SHA-256 of `executable` in lower-case hex. `limit` is the most bytes it may have.
    pub(super) async fn digest(
        &self,
        executable: &Executable,
        limit: Option<u64>,
    ) -> Result<Arc<str>, AttestError> {
        let link = executable.link.clone();
        let opened = blocking(move || {
            let file = File::open(link)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        let fault = |error| executable.fault("SHA256 digest", error);
        let (file, metadata) = opened.await.map_err(fault)?;
        if let Some(limit) = limit
            && metadata.size() > limit
        {
            return Err(too_large(executable, metadata.size(), limit));
        }
        let key = FileKey::of(&metadata);
        let settled = key.is_settled(SystemTime::now());
        let made = Arc::clone(&self.made);
        let expected = key.clone();
        let search = async {
            let stop = StopOnDrop::default();
            let stopped = Arc::clone(&stop.0);
            blocking(move || {
                made.fetch_add(1, Ordering::Relaxed);
                let digest = sha256(&file, &stopped)?;
                if FileKey::of(&file.metadata()?) != expected {
                    return Err(io::Error::other("the file changed while it was read"));
                }
                Ok(digest)
            })
            .await
        };
        if settled {
            self.known.answer(&key, search).await.map_err(fault)
        } else {
            search.await.map_err(fault)
        }
    }

    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

/// Ends the reading of a huge file when nobody waits for it any more.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sha256(mut file: &File, stopped: &AtomicBool) -> io::Result<Arc<str>> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        context.update(bytes);
        if stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for the digest any more"));
        }
    }
    Ok(hex(context.finish().as_ref()).into())
}

fn too_large(executable: &Executable, size: u64, limit: u64) -> AttestError {
    let link = executable.link.display();
    AttestError::internal(
        format!("SHA256 digest: workload {link} exceeds size limit ({size} > {limit})"),
        "raise workload_size_limit, or set it to -1 to leave sha256 selectors out",
    )
}
