//! The limits the kernel sets to this process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How many files this process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The soft limit before.
    pub before: u64,
    /// The soft limit now, which is the hard limit.
    pub now: u64,
}

/// Raises the soft limit of open files to the hard one.
///
/// Each connection costs a descriptor, and the usual soft limit of 1,024 dates from `select(2)`, which
/// nothing here uses.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFiles {
        before: soft,
        now: hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // From below, so that there is something to raise.
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        let raised = raise_open_files().unwrap();
        assert_eq!(raised.before, hard.min(512));
        assert_eq!(raised.now, hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
