//! Control groups that this machine's kernel keeps, where a test may make some.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::eventually;

/// A control group, which goes with this value.
#[derive(Debug)]
pub struct ControlGroup {
    folder: PathBuf,
    /// The folders that were made, the outermost first.
    made: Vec<PathBuf>,
}

impl ControlGroup {
    /// `path` in the first hierarchy of the file system `kind` (`cgroup`, `cgroup2`) that takes processes there.
    /// If there is none, one line says that it is not tested.
    pub fn make(kind: &str, path: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hierarchies = mounts.lines().filter_map(|line| {
            let (fields, end) = line.split_once(" - ")?;
            let place = fields.split(' ').nth(4)?;
            (end.split(' ').next()? == kind).then(|| PathBuf::from(place))
        });
        let mut usable = hierarchies.filter_map(|hierarchy| Self::below(&hierarchy, path));
        let found = usable.next();
        if found.is_none() {
            println!("skipped: no control group of {kind} can be made here");
        }
        found
    }

    fn below(hierarchy: &Path, path: &str) -> Option<Self> {
        let mut group = Self {
            folder: hierarchy.to_owned(),
            made: Vec::new(),
        };
        for name in path.split('/') {
            group.folder.push(name);
            match fs::create_dir(&group.folder) {
                Ok(()) => group.made.push(group.folder.clone()),
                Err(_) if group.folder.is_dir() => {}
                Err(_) => return None,
            }
        }
        let mut visitor = std::process::Command::new("sleep").arg("60").spawn().ok()?;
        let joined = group.join(visitor.id());
        let _ = visitor.kill();
        let _ = visitor.wait();
        joined.then_some(group)
    }

    /// Moves the process `pid` there. Says whether it is.
    pub fn join(&self, pid: u32) -> bool {
        fs::write(self.processes(), pid.to_string()).is_ok()
    }

    /// The file that takes processes: whoever writes `0` to it moves itself.
    pub fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // The kernel lets go of an ended process a moment later. A folder above may have others' by now.
            if std::thread::panicking() {
                let _ = fs::remove_dir(folder);
                continue;
            }
            eventually("the control group is empty", || {
                let removed = fs::remove_dir(folder);
                let left_to_others = fs::read_dir(folder)
                    .is_ok_and(|all| all.flatten().any(|entry| entry.path().is_dir()));
                (removed.is_ok() || left_to_others || !folder.exists()).then_some(())
            });
        }
    }
}
