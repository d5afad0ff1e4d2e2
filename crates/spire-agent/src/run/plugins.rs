//! The `plugins { }` of the agent's file as what they stand for.

mod external;
mod node;
mod reload;
mod store;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::{config_block, decode};
use ah_spire_plugin_host::keys::{Keys, Side};
use ah_spire_plugin_host::svids;
use ah_spire_plugin_host::workload::Workloads;
use ah_spire_telemetry::Metrics;

use crate::keys::{DiskKeys, ExternalKeys, KeyManager, MemoryKeys, MeteredKeys};
use crate::svid_store::SvidStore;
use crate::workload::{Attestors, MeteredAttestor};
use external::{Running, Workload};
use node::{BuiltInNode, NodeHalf};
pub(super) use reload::Reload;
use reload::Replaceable;
use store::BuiltInStore;
use workload::BuiltInWorkload;

/// What an agent is made of.
pub(super) struct Plugins {
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) node: NodeHalf,
    pub(super) workload: Attestors<MeteredAttestor<Workload>>,
    pub(super) stores: Vec<Arc<dyn SvidStore>>,
    pub(super) reload: Reload,
    /// Those in processes of their own, which have to be ended.
    pub(super) running: Running,
}

config_block! {
    /// `KeyManager "disk"`
    struct DiskData {
        directory: String = "directory",
    }
}

/// What a configuration asks for, before anything is opened.
struct Wanted {
    keys: KeysWanted,
    node: NodeWanted,
    workload: Vec<WorkloadWanted>,
    stores: Vec<StoreWanted>,
}

enum KeysWanted {
    Memory,
    /// The directory.
    Disk(PathBuf),
    External(PluginConfig),
}

enum NodeWanted {
    BuiltIn(BuiltInNode),
    External(PluginConfig),
}

enum StoreWanted {
    BuiltIn(BuiltInStore),
    External(PluginConfig),
}

enum WorkloadWanted {
    BuiltIn(BuiltInWorkload),
    External(PluginConfig),
}

/// Plugins that are ready.
struct Opened {
    keys: Arc<dyn KeyManager>,
    node: NodeHalf,
    workload: Vec<Workload>,
    stores: Vec<Arc<dyn SvidStore>>,
}

impl Plugins {
    /// Reads what [`Plugins::open`] does, and makes nothing. Plugins in processes of their own are asked.
    pub(super) async fn check(config: &AgentConfig) -> Result<(), Explained> {
        let wanted = Wanted::read(config)?;
        for plugin in wanted.external() {
            external::check(plugin, config).await?;
        }
        for attestor in wanted.workload {
            if let WorkloadWanted::BuiltIn(attestor) = attestor {
                attestor.open().await?;
            }
        }
        match wanted.node {
            NodeWanted::External(_) => Ok(()),
            NodeWanted::BuiltIn(node) => NodeHalf::open(node, config).await.map(|_| ()),
        }
    }

    pub(super) async fn open(config: &AgentConfig, metrics: &Metrics) -> Result<Self, Explained> {
        let mut running = Running::default();
        let opened = Self::open_with(config, metrics, &mut running).await;
        match opened {
            Ok(Opened {
                keys,
                node,
                workload,
                stores,
            }) => {
                let metered = workload.iter().cloned();
                let metered = metered.map(|it| MeteredAttestor::new(it, metrics));
                Ok(Self {
                    keys,
                    workload: Attestors(metered.collect()),
                    stores,
                    reload: Reload::new(config, node.clone(), workload, &running),
                    node,
                    running,
                })
            }
            Err(error) => {
                running.stop().await;
                Err(error)
            }
        }
    }

    async fn open_with(
        config: &AgentConfig,
        metrics: &Metrics,
        running: &mut Running,
    ) -> Result<Opened, Explained> {
        let wanted = Wanted::read(config)?;
        for plugin in wanted.external() {
            running.start(plugin, config, metrics).await?;
        }
        let told = |error: &crate::keys::KeyError| error.explained().clone();
        let keys: Arc<dyn KeyManager> = match &wanted.keys {
            KeysWanted::Disk(directory) => {
                let keys = DiskKeys::open(directory).map_err(|error| told(&error))?;
                Arc::new(MeteredKeys::new(keys, metrics))
            }
            KeysWanted::Memory => Arc::new(MeteredKeys::new(MemoryKeys::default(), metrics)),
            KeysWanted::External(plugin) => {
                let keys = Keys::new(running.plugin(plugin)?, Side::Agent);
                let keys = ExternalKeys::open(keys).await;
                Arc::new(MeteredKeys::new(
                    keys.map_err(|error| told(&error))?,
                    metrics,
                ))
            }
        };
        let mut attestors = Vec::new();
        for attestor in wanted.workload {
            attestors.push(match attestor {
                WorkloadWanted::BuiltIn(wanted) => {
                    Workload::BuiltIn(Replaceable::new(wanted.open().await?))
                }
                WorkloadWanted::External(plugin) => {
                    Workload::External(Workloads::new(running.plugin(&plugin)?))
                }
            });
        }
        let node = match wanted.node {
            NodeWanted::External(plugin) => NodeHalf::external(running.plugin(&plugin)?),
            NodeWanted::BuiltIn(node) => NodeHalf::open(node, config).await?,
        };
        let mut stores: Vec<Arc<dyn SvidStore>> = Vec::new();
        for store in wanted.stores {
            stores.push(match store {
                StoreWanted::BuiltIn(store) => store.open(&config.trust_domain),
                StoreWanted::External(plugin) => {
                    Arc::new(svids::Store::new(running.plugin(&plugin)?))
                }
            });
        }
        Ok(Opened {
            keys,
            node,
            workload: attestors,
            stores,
        })
    }
}

impl Wanted {
    fn read(config: &AgentConfig) -> Result<Self, Explained> {
        let mut keys = None;
        let mut node = None;
        let (mut workload, mut stores) = (Vec::new(), Vec::new());
        for plugin in config.plugins.iter().filter(|plugin| plugin.enabled) {
            let external = plugin.command.is_some();
            match (plugin.plugin_type, plugin.name.as_str()) {
                (PluginType::KeyManager, _) if external => {
                    keys = Some(KeysWanted::External(plugin.clone()));
                }
                (PluginType::NodeAttestor, _) if external => {
                    node = Some(NodeWanted::External(plugin.clone()));
                }
                (PluginType::WorkloadAttestor, _) if external => {
                    workload.push(WorkloadWanted::External(plugin.clone()));
                }
                (PluginType::SvidStore, _) if external => {
                    stores.push(StoreWanted::External(plugin.clone()));
                }
                _ if external => {
                    return Err(unsupported(
                        plugin,
                        "plugins of this type cannot be processes of their own (plugin_cmd)",
                    ));
                }
                (PluginType::KeyManager, "disk") => {
                    keys = Some(KeysWanted::Disk(disk(plugin)?));
                }
                (PluginType::KeyManager, "memory") => keys = Some(KeysWanted::Memory),
                (kind @ PluginType::NodeAttestor, _) => {
                    let wanted = BuiltInNode::read(plugin)?;
                    let wanted = wanted.ok_or_else(|| unsupported(plugin, built_in(kind)))?;
                    node = Some(NodeWanted::BuiltIn(wanted));
                }
                (kind @ PluginType::WorkloadAttestor, _) => {
                    let wanted = BuiltInWorkload::read(plugin)?;
                    let why = match plugin.name.as_str() {
                        "windows" => "it is for Windows alone, and this agent is for Linux",
                        _ => built_in(kind),
                    };
                    let wanted = wanted.ok_or_else(|| unsupported(plugin, why))?;
                    workload.push(WorkloadWanted::BuiltIn(wanted));
                }
                (kind @ PluginType::SvidStore, _) => {
                    let wanted = BuiltInStore::read(plugin)?;
                    let wanted = wanted.ok_or_else(|| unsupported(plugin, built_in(kind)))?;
                    stores.push(StoreWanted::BuiltIn(wanted));
                }
                (kind, _) => return Err(unsupported(plugin, built_in(kind))),
            }
        }
        // A token takes the place of whatever node attestor is configured, as with upstream.
        if config.join_token.is_some() {
            node = Some(NodeWanted::BuiltIn(BuiltInNode::JoinToken));
        }
        let missing = |what: &str| {
            Explained::new(Code::Usage, format!("plugins: there is no {what}"))
                .hint("the plugins section needs one KeyManager, one NodeAttestor, and a WorkloadAttestor at least")
        };
        if workload.is_empty() {
            return Err(missing("WorkloadAttestor"));
        }
        Ok(Self {
            keys: keys.ok_or_else(|| missing("KeyManager"))?,
            node: node.ok_or_else(|| missing("NodeAttestor"))?,
            workload,
            stores,
        })
    }

    /// What has a `plugin_cmd`, in the order: keys, node, workloads, stores.
    fn external(&self) -> impl Iterator<Item = &PluginConfig> {
        let keys = match &self.keys {
            KeysWanted::External(plugin) => Some(plugin),
            KeysWanted::Memory | KeysWanted::Disk(_) => None,
        };
        let node = match &self.node {
            NodeWanted::External(plugin) => Some(plugin),
            NodeWanted::BuiltIn(_) => None,
        };
        let workload = self.workload.iter().filter_map(|it| match it {
            WorkloadWanted::External(plugin) => Some(plugin),
            WorkloadWanted::BuiltIn(_) => None,
        });
        let stores = self.stores.iter().filter_map(|it| match it {
            StoreWanted::External(plugin) => Some(plugin),
            StoreWanted::BuiltIn(_) => None,
        });
        keys.into_iter().chain(node).chain(workload).chain(stores)
    }
}

fn disk(plugin: &PluginConfig) -> Result<PathBuf, Explained> {
    let data: DiskData = data(plugin)?;
    if data.directory.is_empty() {
        return Err(
            Explained::new(Code::Usage, "KeyManager \"disk\": directory is required")
                .hint("let `directory` in its plugin_data name where keys.json is to be, such as the data_dir"),
        );
    }
    Ok(data.directory.into())
}

fn data<T: decode::Decode>(plugin: &PluginConfig) -> Result<T, Explained> {
    let failed = |cause: String| {
        Explained::new(
            Code::Usage,
            format!(
                "{} {:?}: plugin_data cannot be used",
                plugin.plugin_type.as_str(),
                plugin.name
            ),
        )
        .cause(cause)
    };
    let object = plugin
        .data
        .load()
        .map_err(|error| failed(error.to_string()))?;
    decode::from_object(&object).map_err(|error| failed(error.to_string()))
}

fn built_in(kind: PluginType) -> &'static str {
    match kind {
        PluginType::KeyManager => "built in are: disk, memory",
        PluginType::NodeAttestor => {
            "built in are: aws_iid, azure_imds, azure_msi, gcp_iit, http_challenge, join_token, k8s_psat, k8s_sat, sshpop, tpm_devid, x509pop"
        }
        PluginType::WorkloadAttestor => "built in are: docker, k8s, slurm, systemd, unix",
        PluginType::SvidStore => "built in are: aws_secretsmanager, directory, gcp_secretmanager",
        _ => "this agent has no plugins of this type",
    }
}

fn unsupported(plugin: &PluginConfig, why: &str) -> Explained {
    Explained::new(
        Code::Usage,
        format!(
            "{} {:?} (line {}) is not supported",
            plugin.plugin_type.as_str(),
            plugin.name,
            plugin.position.line
        ),
    )
    .cause(why)
    .hint("take the block out of the plugins section, or set `enabled = false` in it")
}

/// What the agent's user is not allowed to do for its plugins.
pub(super) fn limits_of_user(config: &AgentConfig) -> Result<Vec<String>, Explained> {
    let wanted = Wanted::read(config)?;
    let discovers = wanted
        .workload
        .iter()
        .any(|it| matches!(it, WorkloadWanted::BuiltIn(BuiltInWorkload::Unix(config)) if config.discover_workload_path));
    let limits = (discovers && !may_look_at_others()).then(|| {
        "the agent may not look at processes of other users: WorkloadAttestor \"unix\" with discover_workload_path \
         fails for them; run the agent as root or with CAP_SYS_PTRACE"
            .to_owned()
    });
    Ok(limits.into_iter().collect())
}

/// Whether this process has `CAP_SYS_PTRACE` (capabilities(7)).
fn may_look_at_others() -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & CAP_SYS_PTRACE != 0)
}
