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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    use tokio::time::timeout;

    use super::*;

    /// Notification is what these tests are about: nothing here looks at the files a second time by itself.
    async fn assert_notified(watch: &Watch) {
        let woken = timeout(Duration::from_secs(20), watch.notified()).await;
        assert!(woken.is_ok(), "no notification");
    }

    async fn watching(path: &Path) -> (Watch, Fingerprint) {
        let mut watch = Watch::new(vec![path.to_owned()]);
        let looks = watch.look().await;
        (watch, looks)
    }

    // FI-2
    #[tokio::test]
    async fn fi_2_each_way_to_change_a_file_notifies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        let new = dir.path().join("new");
        let ways: [&dyn Fn(); 5] = [
            &|| fs::write(&path, "in place").unwrap(),
            &|| fs::rename(&new, &path).unwrap(),
            &|| fs::remove_file(&path).unwrap(),
            &|| fs::write(&path, "made again").unwrap(),
            &|| {
                let file = File::options().append(true).open(&path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            },
        ];
        fs::write(&path, "first").unwrap();
        fs::write(&new, "renamed").unwrap();
        for change in ways {
            let (mut watch, before) = watching(&path).await;
            change();
            assert_notified(&watch).await;
            assert_ne!(watch.look().await, before);
        }
    }

    // FI-2: the links of a Kubernetes volume, and the directory behind them.
    #[tokio::test]
    async fn fi_2_every_directory_on_the_way_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        let elsewhere = dir.path().join("elsewhere");
        for made in [&mount.join("..1"), &mount.join("..2"), &elsewhere] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(mount.join("..1/cert.pem"), "one").unwrap();
        symlink(elsewhere.join("cert.pem"), mount.join("..2/cert.pem")).unwrap();
        symlink("..1", mount.join("..data")).unwrap();
        symlink("..data/cert.pem", mount.join("cert.pem")).unwrap();
        let path = mount.join("cert.pem");

        let (mut watch, before) = watching(&path).await;
        symlink("..2", mount.join("swap")).unwrap();
        fs::rename(mount.join("swap"), mount.join("..data")).unwrap();
        assert_notified(&watch).await;
        assert_ne!(watch.look().await, before);

        // Three links on, in another directory, a file appears.
        let (mut watch, before) = watching(&path).await;
        fs::write(elsewhere.join("cert.pem"), "two").unwrap();
        assert_notified(&watch).await;
        assert_ne!(watch.look().await, before);
    }

    #[tokio::test]
    async fn fi_2_a_replaced_directory_is_watched_anew() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("pki");
        fs::create_dir(&dir).unwrap();
        let path = dir.join("cert.pem");
        let (mut watch, _) = watching(&path).await;
        fs::rename(&dir, outer.path().join("aside")).unwrap();
        fs::create_dir(&dir).unwrap();
        watch.look().await;
        // News of the old directory is not what is waited for.
        while timeout(Duration::from_millis(100), watch.notified())
            .await
            .is_ok()
        {}
        fs::write(&path, "in the new one").unwrap();
        assert_notified(&watch).await;
    }

    #[test]
    fn links_in_a_circle_come_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let found = directories(&[dir.path().join("a/cert.pem")]);
        assert!(found.contains_key(dir.path()));
    }

    // Reading must not look like a change, or each look would cause the next.
    #[test]
    fn reading_is_no_news() {
        use notify::event::{CreateKind, ModifyKind};
        let open = AccessKind::Open(AccessMode::Any);
        let closed = AccessKind::Close(AccessMode::Read);
        assert!(!matters(EventKind::Access(open)));
        assert!(!matters(EventKind::Access(closed)));
        assert!(matters(EventKind::Create(CreateKind::File)));
        assert!(matters(EventKind::Modify(ModifyKind::Any)));
    }
}
