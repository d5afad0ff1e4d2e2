//! `unix`: user, groups and executable of a process.

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use serde::Deserialize;

use crate::peer::{PeerInfo, about_proc};
use crate::workload::WorkloadAttestor;
use crate::workload::proc::{ProcRoot, Stat, Status};
use crate::{AttestError, Builtin, Selector};

mod accounts;
mod executable;

use accounts::Accounts;
pub use accounts::Directory;
pub use accounts::SystemDirectory;
use executable::{Digests, Executable};

/// The attestor's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixConfig {
    /// Also tell the executable: `path` and `sha256`. The agent must be allowed to read `/proc/<pid>/exe` of others.
    #[serde(default)]
    pub discover_workload_path: bool,
    /// The largest executable that is hashed, in bytes; a larger one fails the attestation. 0 is no limit, and
    /// less than 0 hashes none.
    #[serde(default)]
    pub workload_size_limit: i64,
}

/// The attestor. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct Unix {
    config: UnixConfig,
    proc: ProcRoot,
    accounts: Arc<Accounts>,
    digests: Arc<Digests>,
}

impl Unix {
    /// The attestor that reads processes in `proc` and names in the system's user database.
    pub fn new(config: UnixConfig, proc: ProcRoot) -> Self {
        Self::with_directory(config, proc, SystemDirectory)
    }

    /// As [`Self::new`], with names from `directory`.
    pub fn with_directory(config: UnixConfig, proc: ProcRoot, directory: impl Directory) -> Self {
        Self {
            config,
            proc,
            accounts: Arc::new(Accounts::new(directory)),
            digests: Arc::default(),
        }
    }

    /// How many executables were hashed so far, for metrics.
    pub fn hashed(&self) -> u64 {
        self.digests.made()
    }
}

impl WorkloadAttestor for Unix {
    fn name(&self) -> &str {
        Builtin::Unix.name()
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let status = self.status(peer)?;
        let mut found = Found::default();
        found.add("uid", status.uid);
        if let Some(name) = self.accounts.user(status.uid).await {
            found.add("user", name);
        }
        found.add("gid", status.gid);
        if let Some(name) = self.accounts.group(status.gid).await {
            found.add("group", name);
        }
        for gid in status.groups {
            found.add("supplementary_gid", gid);
            if let Some(name) = self.accounts.group(gid).await {
                found.add("supplementary_group", name);
            }
        }
        if self.config.discover_workload_path {
            let executable = Executable::of(&self.proc, peer.pid());
            found.add("path", executable.path()?);
            if let Ok(limit) = u64::try_from(self.config.workload_size_limit) {
                let limit = (limit > 0).then_some(limit);
                found.add("sha256", self.digests.digest(&executable, limit).await?);
            }
        }
        Ok(found.0)
    }
}

impl Unix {
    /// Reading procfs does not wait for any device, so it is done in place.
    fn status(&self, peer: &PeerInfo) -> Result<Status, AttestError> {
        let fault = |error| about_proc(peer.pid(), "reading procfs", error);
        let stat = Stat::read(&self.proc, peer.pid()).map_err(fault)?;
        if stat.start != peer.start() {
            return Err(self.other_namespace(peer.pid()));
        }
        Ok(Status::read(&self.proc, peer.pid()).map_err(fault)?)
    }

    fn other_namespace(&self, pid: i32) -> AttestError {
        let root = self.proc.path().display();
        AttestError::Internal(
            Explained::new(
                Code::Other,
                format!("process {pid} of {root} is not the caller"),
            )
            .cause("they started at different times")
            .hint(format!(
                "if HOST_PROC names {root}, the agent must run in the PID namespace that this procfs shows (hostPID, --pid=host)"
            )),
        )
    }
}

#[derive(Default)]
struct Found(Vec<Selector>);

impl Found {
    fn add(&mut self, key: &str, value: impl std::fmt::Display) {
        let value = format!("{key}:{value}");
        self.0.push(Selector::new(Builtin::Unix.name(), value));
    }
}

/// A path as a selector can hold it.
fn utf8(path: PathBuf) -> Result<String, AttestError> {
    path.into_os_string().into_string().map_err(|path| {
        AttestError::internal(
            format!("path lookup: {} is not UTF-8", path.display()),
            "give the executable a name that is UTF-8, or turn discover_workload_path off",
        )
    })
}
