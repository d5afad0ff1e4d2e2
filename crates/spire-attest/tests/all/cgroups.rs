//! Control groups for tests: those of a procfs that a test writes, and real ones where they can be had.

use std::fs;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::ProcRoot;
use ah_testkit::cgroup::ControlGroup;
use tempfile::TempDir;

use crate::processes::{Running, idle, sleep};

/// This process, whose control groups are as a test says.
pub(crate) struct FakeProc(TempDir);

impl FakeProc {
    pub(crate) fn with(cgroup: &str) -> Self {
        let root = TempDir::new().unwrap();
        let folder = root.path().join(std::process::id().to_string());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("cgroup"), cgroup).unwrap();
        Self(root)
    }

    pub(crate) fn root(&self) -> ProcRoot {
        ProcRoot::at(self.0.path())
    }
}

pub(crate) fn this_process() -> PeerInfo {
    PeerInfo::of_process(std::process::id().cast_signed()).unwrap()
}

/// Numbers of containers and jobs that nobody else on this machine has.
pub(crate) fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id()) << 20 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A process in a control group that this machine's kernel keeps.
pub(crate) struct Grouped {
    // Ends before its group goes.
    running: Running,
    _group: ControlGroup,
}

impl Grouped {
    /// None where [`ControlGroup::make`] makes none.
    pub(crate) fn in_group(kind: &str, path: &str) -> Option<Self> {
        let group = ControlGroup::make(kind, path)?;
        let running = idle(&sleep());
        assert!(group.join(running.pid().unsigned_abs()));
        Some(Self {
            running,
            _group: group,
        })
    }

    pub(crate) fn peer(&self) -> PeerInfo {
        PeerInfo::of_process(self.running.pid()).unwrap()
    }
}
