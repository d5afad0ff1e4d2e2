//! Which container a process runs in, and which pod, by the names of its control groups.
//!
//! Container runtimes put the ID of a container, 64 hexadecimal digits, into the name of its control group, and
//! Kubernetes the UID of the pod into the name of the group above. A process cannot choose where it is:
//! `/proc/<pid>/cgroup` is the kernel's word.
//!
//! A process in the agent's own container has `/` there. Its mounts say where that is; a process makes its own mounts
//! in a mount namespace of its own, so that they count for processes in the agent's alone.

mod names;

use std::io;

use names::Place;
pub(super) use names::{legacy, place};

use crate::AttestError;
use crate::peer::about_proc;
use crate::workload::{ProcRoot, cgroup};

/// Where a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The container's ID.
    pub(super) container: Option<String>,
    /// The UID of the pod that it is in, as Kubernetes writes it.
    pub(super) pod: Option<String>,
    /// The paths of the process's control groups.
    pub(super) paths: Vec<String>,
}

/// How containers are looked up.
#[derive(Clone, Debug)]
pub(super) struct Locator {
    pub(super) proc: ProcRoot,
    /// Whether pods are looked for, too.
    pub(super) pods: bool,
    /// `verbose_container_locator_logs`
    pub(super) verbose: bool,
}

impl Locator {
    /// Where `pid` runs.
    ///
    /// # Errors
    /// When procfs cannot be read, and when there are several answers: none is chosen then.
    pub(super) fn locate(&self, pid: i32) -> Result<Found, AttestError> {
        let paths = cgroup::paths(&self.proc, pid)?;
        let mut found = self.agreed(pid, "cgroup", &paths)?;
        if found.container.is_none() && self.proc.shares_mounts(pid) {
            found = self.agreed(pid, "mountinfo", &self.mounted(pid)?)?;
        }
        found.paths = paths;
        Ok(found)
    }

    fn agreed(&self, pid: i32, file: &str, paths: &[String]) -> Result<Found, AttestError> {
        let mut found = Found::default();
        for path in paths {
            if self.verbose {
                tracing::debug!(pid, file, path, "a control group of a workload");
            }
            if let Some(place) = place(path, self.pods) {
                add(&mut found, place)?;
            }
        }
        Ok(found)
    }

    /// The roots of the control groups that are mounted where `pid` is (`proc_pid_mountinfo(5)`).
    fn mounted(&self, pid: i32) -> Result<Vec<String>, AttestError> {
        let text = match cgroup::read(&self.proc, pid, "mountinfo") {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(about_proc(pid, "reading /proc/<pid>/mountinfo", error).into());
            }
        };
        let roots = text.lines().filter_map(names::cgroup_mount);
        Ok(roots.map(ToOwned::to_owned).collect())
    }
}

/// Takes `next` beside what other control groups said. One that names a pod counts more than one that does not: a node
/// that is itself a container has its ID in the groups that Kubernetes does not manage.
pub(super) fn add(found: &mut Found, next: Place<'_>) -> Result<(), AttestError> {
    match (&found.pod, &next.pod) {
        (Some(_), None) => return Ok(()),
        (None, Some(_)) => found.container = None,
        (Some(before), Some(now)) if before != now => {
            return Err(several("pod UIDs", before, now));
        }
        _ => {}
    }
    if let Some(before) = &found.container
        && before != next.container
    {
        return Err(several("container IDs", before, next.container));
    }
    found.container = Some(next.container.to_owned());
    found.pod = next.pod;
    Ok(())
}

pub(super) fn several(what: &str, one: &str, other: &str) -> AttestError {
    AttestError::internal(
        format!("multiple {what} found ({one:?}, {other:?})"),
        "look at /proc/<pid>/cgroup of the process: its control groups are of different containers",
    )
}

#[cfg(test)]
mod tests;
