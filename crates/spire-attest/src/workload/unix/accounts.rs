//! Names of users and groups, which may come from another machine and take their time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};

use crate::remember::Remember;

/// How long a name is taken for granted.
const KEEP: Duration = Duration::from_secs(10);

/// How many names of each sort are held.
const MOST: usize = 4096;

/// Where names of users and groups are looked up. Calls may block.
pub trait Directory: Send + Sync + 'static {
    /// The name of user `uid`; none where there is no such user.
    fn user(&self, uid: u32) -> io::Result<Option<String>>;

    /// The name of group `gid`; none where there is no such group.
    fn group(&self, gid: u32) -> io::Result<Option<String>>;
}

/// The system's own: `nsswitch.conf(5)` says where it looks.
#[derive(Clone, Copy, Debug)]
pub struct SystemDirectory;

impl Directory for SystemDirectory {
    fn user(&self, uid: u32) -> io::Result<Option<String>> {
        Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name))
    }

    fn group(&self, gid: u32) -> io::Result<Option<String>> {
        Ok(Group::from_gid(Gid::from_raw(gid))?.map(|group| group.name))
    }
}

pub(super) struct Accounts {
    directory: Arc<dyn Directory>,
    users: Remember<u32, Option<String>>,
    groups: Remember<u32, Option<String>>,
}

impl Accounts {
    pub(super) fn new(directory: impl Directory) -> Self {
        Self {
            directory: Arc::new(directory),
            users: Remember::new(MOST, KEEP),
            groups: Remember::new(MOST, KEEP),
        }
    }

    /// A user without a name is no fault: containers run many. One whose name cannot be looked up loses the selector
    /// alone, which the log tells.
    pub(super) async fn user(&self, uid: u32) -> Option<String> {
        let directory = Arc::clone(&self.directory);
        let search = blocking(move || directory.user(uid));
        told("user", uid, self.users.answer(&uid, search).await)
    }

    /// As [`Self::user`].
    pub(super) async fn group(&self, gid: u32) -> Option<String> {
        let directory = Arc::clone(&self.directory);
        let search = blocking(move || directory.group(gid));
        told("group", gid, self.groups.answer(&gid, search).await)
    }
}

fn told(what: &str, id: u32, answer: io::Result<Option<String>>) -> Option<String> {
    answer.unwrap_or_else(|error| {
        tracing::warn!(
            what,
            id,
            %error,
            "no name can be looked up, so its selector is left out; try `getent passwd` and `getent group`"
        );
        None
    })
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|broken| Err(io::Error::other(broken)))
}
