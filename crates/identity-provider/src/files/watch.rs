//! When files look different: notification where the system gives it, and a cheap comparison always.
//!
//! Directories are watched and not the files, because a file that is replaced by a rename, or reached through
//! the `..data` link of a Kubernetes volume, is another file afterwards. Every directory on the way through
//! symbolic links is watched.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// As many symbolic links as Linux follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What the files look like from outside. Two that differ say that something was written, replaced, touched,
/// removed or made readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<Look>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    File {
        device: u64,
        inode: u64,
        size: u64,
        mode: u32,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    Missing(std::io::ErrorKind),
}

impl Fingerprint {
    fn of(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| look(path)).collect())
    }
}

fn look(path: &Path) -> Look {
    match fs::metadata(path) {
        Ok(found) => Look::File {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            mode: found.mode(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        },
        Err(error) => Look::Missing(error.kind()),
    }
}

/// Watches the directories that decide what a set of paths lead to.
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    woken: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// The directories being watched, with device and inode: one that was replaced must be watched anew.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    enabled: bool,
}

impl Watch {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            woken: Arc::new(Notify::new()),
            watcher: None,
            watched: BTreeMap::new(),
            enabled: true,
        }
    }

    pub(super) fn disable(&mut self) {
        self.enabled = false;
    }

    /// What the files look like now. Watches their directories first, so that nothing that happens after this
    /// look goes unnoticed.
    pub(super) async fn look(&mut self) -> Fingerprint {
        let paths = self.paths.clone();
        let directories = blocking(move || directories(&paths)).await;
        if self.enabled {
            self.rearm(directories.unwrap_or_default());
        }
        let paths = self.paths.clone();
        let looks = blocking(move || Fingerprint::of(&paths)).await;
        looks.unwrap_or(Fingerprint(Vec::new()))
    }

    /// Waits for news about any of the directories. News that came while nobody waited counts.
    pub(super) async fn notified(&self) {
        self.woken.notified().await;
    }

    /// Watches `directories` and nothing else. What cannot be watched is left to the poll.
    fn rearm(&mut self, directories: BTreeMap<PathBuf, (u64, u64)>) {
        if self.watched == directories {
            return;
        }
        if self.watcher.is_none() {
            let woken = Arc::clone(&self.woken);
            match notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.map_or(true, |event| matters(event.kind)) {
                    woken.notify_one();
                }
            }) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "files are not watched, only looked at every second"
                    );
                    self.enabled = false;
                    return;
                }
            }
        }
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (path, id) in &self.watched {
            if directories.get(path) != Some(id) {
                // A directory that is gone is no longer watched by the system either.
                let _ = watcher.unwatch(path);
            }
        }
        for (path, id) in &directories {
            if self.watched.get(path) != Some(id)
                && let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive)
            {
                tracing::debug!(path = %path.display(), %error, "directory is not watched");
            }
        }
        self.watched = directories;
    }
}

/// Reading a file is an event too; heeding it would make each look cause the next.
fn matters(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Every directory in which a change can make one of `paths` lead elsewhere, with device and inode.
fn directories(paths: &[PathBuf]) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    for path in paths {
        let mut links = 0;
        let mut pending = vec![absolute(path)];
        while let Some(path) = pending.pop() {
            note_parent(&path, &mut found);
            // The first link on the way decides where the rest of the path leads.
            let mut walked = PathBuf::new();
            let mut components = path.components();
            while let Some(component) = components.next() {
                walked.push(component);
                if component == Component::RootDir {
                    continue;
                }
                let Ok(target) = fs::read_link(&walked) else {
                    continue;
                };
                links += 1;
                if links <= MAX_LINKS {
                    note_parent(&walked, &mut found);
                    let parent = walked.parent().unwrap_or(Path::new("/"));
                    pending.push(parent.join(target).join(components.as_path()));
                }
                break;
            }
        }
    }
    found
}

fn note_parent(path: &Path, found: &mut BTreeMap<PathBuf, (u64, u64)>) {
    if let Some(parent) = path.parent()
        && let Ok(id) = fs::metadata(parent).map(|found: Metadata| (found.dev(), found.ino()))
    {
        found.insert(parent.to_owned(), id);
    }
}

fn absolute(path: &Path) -> PathBuf {
    // Without a current directory there is nothing better than the path as given.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
