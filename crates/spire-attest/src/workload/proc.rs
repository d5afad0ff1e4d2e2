//! What procfs tells of a process.

use std::io;
use std::path::{Path, PathBuf};

/// Where procfs is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcRoot(PathBuf);

impl ProcRoot {
    /// This machine's own: `/proc`.
    pub fn own() -> Self {
        Self(PathBuf::from("/proc"))
    }

    /// The folder that `HOST_PROC` names, for an agent in a container; `/proc` where it is unset or empty.
    pub fn from_env() -> Self {
        match std::env::var_os("HOST_PROC") {
            Some(path) if !path.is_empty() => Self(path.into()),
            _ => Self::own(),
        }
    }

    /// Procfs at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The file `name` of process `pid`.
    pub(crate) fn file(&self, pid: i32, name: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(name)
    }

    /// Whether process `pid` sees the mounts that this process does. What cannot be seen is not so.
    pub(crate) fn shares_mounts(&self, pid: i32) -> bool {
        let theirs = std::fs::read_link(self.file(pid, "ns/mnt"));
        let ours = std::fs::read_link(self.0.join("self/ns/mnt"));
        matches!((theirs, ours), (Ok(theirs), Ok(ours)) if theirs == ours)
    }

    /// As messages name it.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// Time since boot, in clock ticks: `/proc/uptime` has hundredths of a second, which is what a tick is to
/// programs (`USER_HZ`).
pub(crate) fn uptime() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    parse_uptime(&text).ok_or_else(|| malformed("uptime"))
}

fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let hundredths: u64 = hundredths.parse().ok()?;
    seconds.checked_mul(100)?.checked_add(hundredths)
}

/// The part of `stat` that is used (`proc_pid_stat(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Start, in clock ticks since boot.
    pub(crate) start: u64,
}

impl Stat {
    pub(crate) fn read(root: &ProcRoot, pid: i32) -> io::Result<Self> {
        // A program may give itself a name that is no UTF-8.
        let bytes = std::fs::read(root.file(pid, "stat"))?;
        Self::parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| malformed("stat"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may itself hold parentheses and spaces.
        let (_, after_name) = text.rsplit_once(')')?;
        let start = after_name.split_ascii_whitespace().nth(19)?;
        Some(Self {
            start: start.parse().ok()?,
        })
    }
}

/// The part of `status` that is used (`proc_pid_status(5)`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Effective user id.
    pub(crate) uid: u32,
    /// Effective group id.
    pub(crate) gid: u32,
    /// Supplementary group ids, in the kernel's order.
    pub(crate) groups: Vec<u32>,
}

impl Status {
    pub(crate) fn read(root: &ProcRoot, pid: i32) -> io::Result<Self> {
        let bytes = std::fs::read(root.file(pid, "status"))?;
        Self::parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| malformed("status"))
    }

    fn parse(text: &str) -> Option<Self> {
        // A line holds the real, effective, saved and file system ids, in this order.
        let effective = |name| -> Option<u32> {
            let ids: &str = field(text, name)?;
            ids.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let groups = field(text, "Groups:").unwrap_or_default();
        let groups = groups.split_ascii_whitespace().map(str::parse);
        Some(Self {
            uid: effective("Uid:")?,
            gid: effective("Gid:")?,
            groups: groups.collect::<Result<_, _>>().ok()?,
        })
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{file} is not as proc(5) says; is procfs mounted there?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_in_clock_ticks() {
        assert_eq!(parse_uptime("12.07 3.00\n"), Some(1207));
        assert_eq!(parse_uptime("12\n"), None);
        assert_eq!(parse_uptime(""), None);
    }

    #[test]
    fn a_program_cannot_name_itself_another_start() {
        let mut line = "7 (a) S 1 (b) S".to_owned();
        for field in 4..=52 {
            line.push_str(&format!(" {field}"));
        }
        assert_eq!(Stat::parse(&line), Some(Stat { start: 22 }));
        assert_eq!(Stat::parse("7 (a) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn the_effective_ids_are_the_second_ones() {
        let text = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \nNStgid:\t9\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.uid, status.gid), (2, 6));
        assert_eq!(status.groups, [10, 20]);
        assert_eq!(Status::parse("Uid:\t1\nGid:\t5\t6\t7\t8\n"), None);
        assert_eq!(Status::parse(""), None);
        assert!(
            Status::parse("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t \n")
                .unwrap()
                .groups
                .is_empty()
        );
    }
}
