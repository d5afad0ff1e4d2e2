//! What the kernel says about a process: CPU time, memory, descriptors.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// User and system CPU time of a process and all its threads so far (`/proc/PID/stat`, in steps of a clock tick).
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = cpu_ticks(&stat).ok_or_else(|| malformed("stat"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(100);
    Ok(Duration::from_millis(ticks * 1_000 / per_second))
}

/// The name of a process may hold spaces and brackets, so fields are counted from the last bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident set size.
    pub(crate) resident: u64,
    /// Proportional set size: shared pages divided by their users.
    pub(crate) proportional: u64,
}

impl Memory {
    /// Reads `/proc/PID/smaps_rollup`.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let bytes = |name: &str| {
            field_kib(&text, name)
                .map(|kib| kib * 1_024)
                .ok_or_else(|| malformed("smaps_rollup"))
        };
        Ok(Self {
            resident: bytes("Rss:")?,
            proportional: bytes("Pss:")?,
        })
    }
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Number of open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> io::Result<u64> {
    entries(&format!("/proc/{pid}/fd"))
}

fn entries(folder: &str) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        entry?;
        count += 1;
    }
    Ok(count)
}

/// What must not grow in a process that comes back to the same work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    /// Proportional set size in bytes.
    pub(crate) memory: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
}

impl Size {
    /// Mean of readings a second apart in a twelfth of `length`, a minute at most, for which it blocks: a single one sees
    /// what just came or went. `under_way` says how many of the descriptors are connections that come and go.
    pub(crate) fn of(
        pid: u32,
        length: Duration,
        mut under_way: impl FnMut() -> io::Result<f64>,
    ) -> io::Result<Self> {
        let readings = (length.as_secs() / 12).clamp(1, 60);
        let mut size = Self::default();
        for _ in 0..readings {
            size.memory += Memory::of(pid)?.proportional as f64;
            size.descriptors += descriptors(pid)? as f64 - under_way()?;
            size.threads += entries(&format!("/proc/{pid}/task"))? as f64;
            thread::sleep(Duration::from_secs(1));
        }
        size.memory /= readings as f64;
        size.descriptors /= readings as f64;
        size.threads /= readings as f64;
        Ok(size)
    }
}

/// Raises the limit of open descriptors of this process and its children to the hard limit and says what it is now.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot read {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_a_name_with_brackets() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 31 11 0 0 20 0 1 0 9 0 0";
        assert_eq!(cpu_ticks(stat), Some(42));
    }

    #[test]
    fn own_figures_are_plausible() {
        let pid = std::process::id();
        let memory = Memory::of(pid).unwrap();
        assert!(memory.proportional <= memory.resident);
        assert!(memory.resident > 100_000);
        assert!(descriptors(pid).unwrap() >= 3);
        cpu_time(pid).unwrap();
    }
}
