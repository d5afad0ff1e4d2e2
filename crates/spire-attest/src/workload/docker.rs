//! `docker`: the container that a process runs in, as Docker or Podman knows it.
//!
//! The container is found by the process's control groups, and asked for over the engine's socket
//! (`/containers/<id>/json`): labels, environment, the image's name and the digest of its configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::peer::PeerInfo;
use crate::workload::container::{Found, Locator};
use crate::workload::sigstore::{self, Sigstore, SigstoreConfig};
use crate::workload::{ProcRoot, WorkloadAttestor};
use crate::{AttestError, Builtin, Selector};

mod engine;
mod matchers;
mod sockets;

use engine::Engine;
use matchers::Matchers;
use sockets::Sockets;

/// The attestor's settings, under the names of SPIRE's configuration files. What is empty has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// Docker's socket: `unix:///var/run/docker.sock`.
    pub docker_socket_path: String,
    /// The version of Docker's API, such as `1.44`; the engine's newest.
    pub docker_version: String,
    /// The socket of Podman that root runs: `unix:///run/podman/podman.sock`.
    pub podman_socket_path: String,
    /// The sockets of Podman that users run, with one `%d` for the user's id; none is asked.
    pub podman_socket_path_template: String,
    /// Where IDs of containers stand in paths of control groups: `/docker/<id>`, `/my.slice/*/<id>/*`.
    pub container_id_cgroup_matchers: Vec<String>,
    /// Whether IDs of containers are known by their form. True unless it is set.
    pub use_new_container_locator: Option<bool>,
    /// Logs the control groups of each process, at debug.
    pub verbose_container_locator_logs: bool,
    /// Which signatures the container's image has to have; none.
    pub sigstore: Option<SigstoreConfig>,
}

/// The attestor. Cheap to clone.
#[derive(Clone)]
pub struct Docker(Arc<Inner>);

struct Inner {
    locator: Locator,
    matchers: Option<Matchers>,
    sockets: Sockets,
    version: String,
    sigstore: Option<Sigstore>,
}

impl Docker {
    /// The attestor that reads processes in `proc`, which has to be procfs of this PID namespace.
    ///
    /// # Errors
    /// Name the setting that cannot be used, or the file that cannot be read.
    pub async fn configure(config: &DockerConfig, proc: ProcRoot) -> Result<Self, AttestError> {
        let matchers = match config.container_id_cgroup_matchers.as_slice() {
            [] => None,
            _ if config.use_new_container_locator != Some(false) => {
                return Err(AttestError::invalid(
                    "the new container locator and custom cgroup matchers cannot both be used",
                    "take container_id_cgroup_matchers out, or set use_new_container_locator = false",
                ));
            }
            patterns => Some(Matchers::new(patterns)?),
        };
        let version = config.docker_version.trim_start_matches('v');
        if !version
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
        {
            return Err(AttestError::invalid(
                format!("docker_version: {version:?} is no version"),
                "write it as in \"1.44\", or leave it out",
            ));
        }
        Ok(Self(Arc::new(Inner {
            locator: Locator {
                proc,
                pods: false,
                verbose: config.verbose_container_locator_logs,
            },
            matchers,
            sockets: Sockets::new(config)?,
            version: version.to_owned(),
            sigstore: match &config.sigstore {
                Some(config) => Some(Sigstore::configure(config).await?),
                None => None,
            },
        })))
    }
}

impl WorkloadAttestor for Docker {
    fn name(&self) -> &str {
        Builtin::Docker.name()
    }

    fn deadline(&self) -> Duration {
        let engine = Duration::from_secs(10);
        match self.0.sigstore {
            Some(_) => engine.saturating_add(sigstore::TIMEOUT),
            None => engine,
        }
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let mut found = self.0.locator.locate(peer.pid())?;
        if let Some(matchers) = &self.0.matchers {
            found.container = matchers.find(&found.paths)?;
        }
        let Found {
            container, paths, ..
        } = found;
        let Some(id) = container else {
            return Ok(Vec::new());
        };
        let engine = Engine {
            socket: self.0.sockets.of(&paths)?,
            version: &self.0.version,
        };
        let described = engine.describe(&id).await?;
        let mut values = described.values;
        if let Some(sigstore) = &self.0.sigstore {
            let signed = signed(sigstore, &described.digests).await;
            values.extend(signed.map_err(|why| unsigned(&described.image, &why))?);
        }
        let selector = |value| Selector::new(Builtin::Docker.name(), value);
        Ok(values.into_iter().map(selector).collect())
    }
}

/// Values of selectors of the signatures of an image that registries have under `digests`: those of the first that is
/// right.
async fn signed(sigstore: &Sigstore, digests: &[String]) -> Result<Vec<String>, String> {
    let mut failed = Vec::new();
    for digest in digests {
        match sigstore.verify(digest).await {
            Ok(values) => return Ok(values),
            Err(why) => failed.push(format!("{digest}: {why}")),
        }
    }
    if failed.is_empty() {
        return Err("no repo digest found: the image was not pulled from a registry".into());
    }
    Err(failed.join("; "))
}

fn unsigned(image: &str, why: &str) -> AttestError {
    AttestError::internal(
        format!("sigstore signature verification failed for image {image}: {why}"),
        "see who signed the image with `cosign tree` and `cosign verify`; skipped_images lists images that need no \
         signature",
    )
}

/// The path of `unix://PATH`, in the setting `key`.
fn socket_path(key: &str, address: &str) -> Result<PathBuf, AttestError> {
    let path = address
        .strip_prefix("unix://")
        .filter(|path| path.starts_with('/'));
    path.map(PathBuf::from).ok_or_else(|| {
        AttestError::invalid(
            format!("{key}: {address:?} is no unix socket"),
            "write it as in \"unix:///run/docker.sock\"; over a network anybody could answer",
        )
    })
}
