//! What says of a process what it is: the workload attestors that are built in.

use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::docker::{Docker, DockerConfig};
use ah_spire_attest::workload::k8s::{K8s, K8sConfig};
use ah_spire_attest::workload::slurm::Slurm;
use ah_spire_attest::workload::systemd::Systemd;
use ah_spire_attest::workload::unix::{Unix, UnixConfig};
use ah_spire_attest::workload::{ProcRoot, Reference, WorkloadAttestor, by_process};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::decode::UnknownKeys;
use ah_spire_plugin::{config_block, duration};
use ah_spire_wire::model::Selector;

use super::data;

mod k8s;
mod sigstore;

use sigstore::SigstoreData;

config_block! {
    /// `WorkloadAttestor "docker"`
    struct DockerData {
        docker_socket_path: String = "docker_socket_path",
        docker_version: String = "docker_version",
        podman_socket_path: String = "podman_socket_path",
        podman_socket_path_template: String = "podman_socket_path_template",
        container_id_cgroup_matchers: Vec<String> = "container_id_cgroup_matchers",
        use_new_container_locator: Option<bool> = "use_new_container_locator",
        verbose_container_locator_logs: bool = "verbose_container_locator_logs",
        sigstore: Option<SigstoreData> = "sigstore",
    }
}

config_block! {
    /// `WorkloadAttestor "slurm"` and `"systemd"`
    struct NoData {}
}

config_block! {
    /// `WorkloadAttestor "unix"`
    struct UnixData {
        discover_workload_path: bool = "discover_workload_path",
        workload_size_limit: i64 = "workload_size_limit",
    }
}

/// A built-in workload attestor's settings.
pub(super) enum BuiltInWorkload {
    Docker(Box<DockerConfig>),
    K8s(Box<K8sConfig>),
    Slurm,
    Systemd,
    Unix(UnixConfig),
}

impl BuiltInWorkload {
    /// `None` if there is no such attestor.
    pub(super) fn read(plugin: &PluginConfig) -> Result<Option<Self>, Explained> {
        Ok(Some(match plugin.name.as_str() {
            "docker" => Self::Docker(Box::new(docker(plugin)?)),
            "k8s" => Self::K8s(Box::new(k8s::read(plugin)?)),
            "slurm" => {
                let data: NoData = data(plugin)?;
                known(plugin, &data.unknown)?;
                Self::Slurm
            }
            "systemd" => {
                let data: NoData = data(plugin)?;
                known(plugin, &data.unknown)?;
                Self::Systemd
            }
            "unix" => Self::Unix(unix(plugin)?),
            _ => return Ok(None),
        }))
    }

    pub(super) async fn open(self) -> Result<BuiltIn, Explained> {
        let told = |error: AttestError, name: &str| {
            let mut explained = error.explained().clone();
            explained.text = format!("WorkloadAttestor {name:?}: {}", explained.text);
            explained
        };
        Ok(match self {
            Self::Docker(config) => {
                let docker = Docker::configure(&config, ProcRoot::own()).await;
                BuiltIn::Docker(docker.map_err(|error| told(error, "docker"))?)
            }
            Self::K8s(config) => {
                let k8s = K8s::configure(&config, ProcRoot::own()).await;
                BuiltIn::K8s(k8s.map_err(|error| told(error, "k8s"))?)
            }
            Self::Slurm => BuiltIn::Slurm(Slurm::new(ProcRoot::own())),
            Self::Systemd => {
                let systemd = Systemd::new(&variable("DBUS_SYSTEM_BUS_ADDRESS"));
                BuiltIn::Systemd(systemd.map_err(|error| told(error, "systemd"))?)
            }
            Self::Unix(config) => BuiltIn::Unix(Unix::new(config, ProcRoot::from_env())),
        })
    }
}

fn docker(plugin: &PluginConfig) -> Result<DockerConfig, Explained> {
    let data: DockerData = data(plugin)?;
    known(plugin, &data.unknown)?;
    Ok(DockerConfig {
        sigstore: sigstore::read(plugin, data.sigstore)?,
        docker_socket_path: data.docker_socket_path,
        docker_version: data.docker_version,
        podman_socket_path: data.podman_socket_path,
        podman_socket_path_template: data.podman_socket_path_template,
        container_id_cgroup_matchers: data.container_id_cgroup_matchers,
        use_new_container_locator: data.use_new_container_locator,
        verbose_container_locator_logs: data.verbose_container_locator_logs,
    })
}

/// Empty where it is not set.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn span(plugin: &PluginConfig, key: &str, text: &str) -> Result<Duration, Explained> {
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    duration::parse(text).map_err(|error| {
        refused(plugin, &format!("{key}: {error}")).hint("write it as in \"500ms\" or \"1m\"")
    })
}

fn unix(plugin: &PluginConfig) -> Result<UnixConfig, Explained> {
    let data: UnixData = data(plugin)?;
    Ok(UnixConfig {
        discover_workload_path: data.discover_workload_path,
        workload_size_limit: data.workload_size_limit,
    })
}

/// As upstream, these take no key that they do not know.
fn known(plugin: &PluginConfig, unknown: &UnknownKeys) -> Result<(), Explained> {
    if unknown.is_empty() {
        return Ok(());
    }
    Err(refused(plugin, &format!("unknown keys: {unknown}"))
        .hint("take them out of its plugin_data"))
}

fn refused(plugin: &PluginConfig, why: &str) -> Explained {
    let kind = plugin.plugin_type.as_str();
    Explained::new(Code::Usage, format!("{kind} {:?}: {why}", plugin.name))
}

/// An attestor that is built in. Clones are one.
#[derive(Clone)]
pub(in crate::run) enum BuiltIn {
    Docker(Docker),
    K8s(K8s),
    Slurm(Slurm),
    Systemd(Systemd),
    Unix(Unix),
}

impl WorkloadAttestor for BuiltIn {
    fn name(&self) -> &str {
        match self {
            Self::Docker(attestor) => attestor.name(),
            Self::K8s(attestor) => attestor.name(),
            Self::Slurm(attestor) => attestor.name(),
            Self::Systemd(attestor) => attestor.name(),
            Self::Unix(attestor) => attestor.name(),
        }
    }

    fn deadline(&self) -> Duration {
        match self {
            Self::Docker(attestor) => attestor.deadline(),
            Self::K8s(attestor) => attestor.deadline(),
            Self::Slurm(attestor) => attestor.deadline(),
            Self::Systemd(attestor) => attestor.deadline(),
            Self::Unix(attestor) => attestor.deadline(),
        }
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        match self {
            Self::Docker(attestor) => attestor.attest(peer).await,
            Self::K8s(attestor) => attestor.attest(peer).await,
            Self::Slurm(attestor) => attestor.attest(peer).await,
            Self::Systemd(attestor) => attestor.attest(peer).await,
            Self::Unix(attestor) => attestor.attest(peer).await,
        }
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        match self {
            Self::K8s(attestor) => attestor.attest_reference(reference).await,
            _ => by_process(self, reference).await,
        }
    }
}
