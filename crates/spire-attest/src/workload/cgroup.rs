//! Which control groups a process is in (`cgroups(7)`).

use std::fs::File;
use std::io::{self, Read};

use crate::AttestError;
use crate::peer::about_proc;
use crate::workload::ProcRoot;

/// The most of a file in procfs that is read, in bytes. A process may have as many mounts as it likes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The path in each hierarchy, as seen from this process's cgroup namespace; the unified one (v2) is one of them.
/// None for a kernel without control groups.
pub(super) fn paths(proc: &ProcRoot, pid: i32) -> Result<Vec<String>, AttestError> {
    let text = match read(proc, pid, "cgroup") {
        Ok(text) => text,
        // A process that ended is told by whoever verifies it afterwards.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(about_proc(pid, "reading /proc/<pid>/cgroup", error).into()),
    };
    text.lines().map(path_of).collect()
}

/// The file `name` of `pid`, whose bytes may be anything.
pub(super) fn read(proc: &ProcRoot, pid: i32, name: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = File::open(proc.file(pid, name))?;
    if file.take(MAX_BYTES).read_to_end(&mut bytes)? as u64 == MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name} is larger than {MAX_BYTES} bytes"),
        ));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `hierarchy:controllers:path`; a path may hold colons.
fn path_of(line: &str) -> Result<String, AttestError> {
    match line.splitn(3, ':').nth(2) {
        Some(path) => Ok(path.to_owned()),
        None => Err(AttestError::internal(
            format!("invalid cgroup entry: {line:?} has fewer than 3 fields"),
            "check that procfs is mounted at /proc",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_third_field_and_may_hold_colons() {
        let path = |line| path_of(line).map_err(|error| error.to_string());
        assert_eq!(path("0::/a").unwrap(), "/a");
        assert_eq!(path("2:cpu,cpuacct:/").unwrap(), "/");
        assert_eq!(path("0::/pod1.slice:cri:x").unwrap(), "/pod1.slice:cri:x");
        for line in ["", "0:", "0:/a"] {
            assert!(path(line).unwrap_err().contains("invalid cgroup entry"));
        }
    }
}
