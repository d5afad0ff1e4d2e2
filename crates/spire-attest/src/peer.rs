//! Which process is at the other end of a unix socket.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use crate::workload::proc::{self, ProcRoot, Stat};

/// A process, held by a descriptor of the process itself (`pidfd_open(2)`).
///
/// A process id says who it was, and after its end names somebody else. While [`PeerInfo::is_alive`] holds, the
/// id still belongs to the process that the descriptor was taken of, so whoever reads `/proc/<pid>` asks
/// [`PeerInfo::verify`] afterwards. Cheap to clone.
#[derive(Clone)]
pub struct PeerInfo {
    pid: i32,
    uid: u32,
    gid: u32,
    start: u64,
    process: Arc<OwnedFd>,
}

/// Why a process cannot be taken for a caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The socket has no credentials of a process that is seen from here.
    #[error(
        "could not resolve caller information: its process is in a PID namespace that is not seen from here; run the agent in the host's PID namespace (hostPID, --pid=host)"
    )]
    Unseen,
    /// The process has ended.
    #[error("caller (PID {pid}) is gone: the process that opened the connection has ended")]
    Gone {
        /// The id it had.
        pid: i32,
    },
    /// The process runs under another user or group than when it connected, as after starting a set-user-ID program.
    #[error(
        "caller (PID {pid}) has changed its credentials from {from} to {to} since it connected; connect again"
    )]
    Changed {
        /// The process id.
        pid: i32,
        /// `uid:gid` when it connected.
        from: String,
        /// `uid:gid` now.
        to: String,
    },
    /// The kernel or procfs gave something else.
    #[error("caller (PID {pid}): {what}: {error}")]
    System {
        /// The process id; 0 where it is not known.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What came of it.
        error: String,
    },
}

impl PeerInfo {
    /// The process that connected `stream`: its credentials at that time, and a descriptor of it.
    ///
    /// Linux 6.5 and later give the descriptor with the socket (`SO_PEERPIDFD`). Before that it is opened by process
    /// id, and a process that ended and whose id was reused between its connecting and this call is told by
    /// what is left to tell: a start after this call, or other credentials.
    pub fn of(stream: &UnixStream) -> Result<Self, PeerError> {
        let uptime = proc::uptime();
        let credentials = stream
            .peer_cred()
            .map_err(|error| system(0, "reading the socket's credentials", error))?;
        let pid = credentials.pid().filter(|pid| *pid > 0);
        let pid = pid.ok_or(PeerError::Unseen)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let process = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(process) => process,
            Err(nix::Error::ENOPROTOOPT) => {
                let uptime = uptime.map_err(|error| system(pid, "reading /proc/uptime", error))?;
                return Self::by_id(pid, uid, gid, uptime);
            }
            Err(nix::Error::ESRCH | nix::Error::EINVAL | nix::Error::ENODATA) => {
                return Err(PeerError::Gone { pid });
            }
            Err(error) => return Err(system(pid, "SO_PEERPIDFD", error.into())),
        };
        Self::held(pid, uid, gid, process)
    }

    /// The process `pid` as it is now, for callers that name one by number.
    pub fn of_process(pid: i32) -> Result<Self, PeerError> {
        let process = open(pid)?;
        let (uid, gid) = credentials(pid)?;
        Self::held(pid, uid, gid, process)
    }

    /// The process `pid`, if it was there at `uptime` already.
    fn by_id(pid: i32, uid: u32, gid: u32, uptime: u64) -> Result<Self, PeerError> {
        let peer = Self::held(pid, uid, gid, open(pid)?)?;
        if peer.start > uptime {
            return Err(PeerError::Gone { pid });
        }
        Ok(peer)
    }

    fn held(pid: i32, uid: u32, gid: u32, process: OwnedFd) -> Result<Self, PeerError> {
        let stat = Stat::read(&ProcRoot::own(), pid);
        let stat = stat.map_err(|error| about_proc(pid, "reading /proc/<pid>/stat", error))?;
        let peer = Self {
            pid,
            uid,
            gid,
            start: stat.start,
            process: Arc::new(process),
        };
        peer.verify()?;
        Ok(peer)
    }

    /// Its process id, as seen from this process's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its effective user id when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group id when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// When it started, in clock ticks since boot (`proc_pid_stat(5)`, field 22).
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether the process has not ended. One system call, no file.
    pub fn is_alive(&self) -> bool {
        // A descriptor of a process can be read from once the process has ended (pidfd_open(2)).
        let mut polled = [PollFd::new(&self.process, PollFlags::IN)];
        let at_once = Timespec::default();
        matches!(rustix::event::poll(&mut polled, Some(&at_once)), Ok(0))
    }

    /// That it is alive under the credentials that it connected with: what was read of `/proc/<pid>` before is
    /// of this process.
    ///
    /// A caller could hand its socket to a child and start a set-user-ID program under its own id; the program
    /// would be attested in the child's stead.
    pub fn verify(&self) -> Result<(), PeerError> {
        let now = credentials(self.pid)?;
        if !self.is_alive() {
            return Err(PeerError::Gone { pid: self.pid });
        }
        let then = (self.uid, self.gid);
        if now != then {
            let text = |(uid, gid)| format!("{uid}:{gid}");
            return Err(PeerError::Changed {
                pid: self.pid,
                from: text(then),
                to: text(now),
            });
        }
        Ok(())
    }
}

impl AsFd for PeerInfo {
    /// The descriptor of the process, to wait for its end with.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl fmt::Debug for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerInfo")
            .field("pid", &self.pid)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish_non_exhaustive()
    }
}

fn open(pid: i32) -> Result<OwnedFd, PeerError> {
    let gone = || PeerError::Gone { pid };
    // Only a positive number can be given to `Pid`.
    let number = (pid > 0).then(|| Pid::from_raw(pid)).flatten();
    let number = number.ok_or_else(gone)?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => Ok(process),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Err(gone()),
        Err(error) => Err(system(pid, "pidfd_open", error.into())),
    }
}

/// Effective user and group of `pid` now: whom its folder in procfs belongs to (`proc_pid(5)`).
fn credentials(pid: i32) -> Result<(u32, u32), PeerError> {
    let folder = ProcRoot::own().file(pid, "");
    match std::fs::metadata(folder) {
        Ok(found) => Ok((found.uid(), found.gid())),
        Err(error) => Err(about_proc(pid, "looking at /proc/<pid>", error)),
    }
}

/// Procfs has a process's files as long as it is there; without them it has ended.
pub(crate) fn about_proc(pid: i32, what: &'static str, error: io::Error) -> PeerError {
    let ended = error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32);
    if ended {
        PeerError::Gone { pid }
    } else {
        system(pid, what, error)
    }
}

fn system(pid: i32, what: &'static str, error: io::Error) -> PeerError {
    PeerError::System {
        pid,
        what,
        error: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_descriptor_from_the_socket_a_process_that_started_later_is_not_the_caller() {
        let pid = std::process::id().cast_signed();
        let own = PeerInfo::of_process(pid).unwrap();
        let by_id = |uptime| PeerInfo::by_id(pid, own.uid, own.gid, uptime).map(|peer| peer.pid);
        assert_eq!(by_id(proc::uptime().unwrap()), Ok(pid));
        assert_eq!(by_id(own.start - 1), Err(PeerError::Gone { pid }));
    }

    #[test]
    fn without_a_descriptor_from_the_socket_a_process_of_another_user_is_not_the_caller() {
        let pid = std::process::id().cast_signed();
        let own = PeerInfo::of_process(pid).unwrap();
        let error = PeerInfo::by_id(pid, own.uid + 1, own.gid, proc::uptime().unwrap());
        assert!(matches!(error, Err(PeerError::Changed { .. })));
    }

    #[test]
    fn no_process_has_these_ids() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            let error = PeerInfo::of_process(pid).map(|peer| peer.pid);
            assert_eq!(error, Err(PeerError::Gone { pid }));
        }
    }
}
