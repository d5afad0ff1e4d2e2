//! The `plugins { }` of the agent's file as what they stand for.

mod reload;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::node::join_token::{JoinTokenAgent, Token};
use ah_spire_attest::node::x509pop::{X509PopAgent, X509PopAgentConfig};
use ah_spire_attest::node::{AgentHalf, BuiltinAgent, BuiltinConversation, Payload};
use ah_spire_attest::workload::ProcRoot;
use ah_spire_attest::workload::unix::{Unix, UnixConfig};
use ah_spire_plugin::agent::{AgentConfig, SdsConfig};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::{config_block, decode};
use ah_spire_telemetry::Metrics;
use zeroize::Zeroizing;

use crate::keys::{DiskKeys, KeyManager, MemoryKeys, MeteredKeys};
use crate::workload::{Attestors, MeteredAttestor};
pub(super) use reload::Reload;
use reload::Replaceable;

/// What an agent is made of.
pub(super) struct Plugins {
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) node: NodeHalf,
    pub(super) workload: Attestors<MeteredAttestor<Replaceable<Unix>>>,
    pub(super) reload: Reload,
}

config_block! {
    /// `KeyManager "disk"`
    struct DiskData {
        directory: String = "directory",
    }
}

config_block! {
    /// `WorkloadAttestor "unix"`
    struct UnixData {
        discover_workload_path: bool = "discover_workload_path",
        workload_size_limit: i64 = "workload_size_limit",
    }
}

config_block! {
    /// `NodeAttestor "x509pop"`
    struct X509PopData {
        private_key_path: String = "private_key_path",
        certificate_path: String = "certificate_path",
        intermediates_path: String = "intermediates_path",
        spiffe_endpoint_socket: String = "spiffe_endpoint_socket",
    }
}

/// What a configuration asks for, before anything is opened.
struct Wanted {
    /// The directory of `disk`; `None` for `memory`.
    keys: Option<PathBuf>,
    node: NodeWanted,
    workload: Vec<UnixConfig>,
}

enum NodeWanted {
    JoinToken,
    X509Pop(X509PopAgentConfig),
}

impl Plugins {
    /// Reads what [`Plugins::open`] does, and makes nothing.
    pub(super) async fn check(config: &AgentConfig) -> Result<(), Explained> {
        let wanted = Wanted::read(config)?;
        NodeHalf::open(wanted.node, config).await.map(|_| ())
    }

    pub(super) async fn open(config: &AgentConfig, metrics: &Metrics) -> Result<Self, Explained> {
        let wanted = Wanted::read(config)?;
        let keys: Arc<dyn KeyManager> = match &wanted.keys {
            Some(directory) => {
                let keys = DiskKeys::open(directory);
                let keys = keys.map_err(|error| error.explained().clone())?;
                Arc::new(MeteredKeys::new(keys, metrics))
            }
            None => Arc::new(MeteredKeys::new(MemoryKeys::default(), metrics)),
        };
        let unix = wanted.workload.into_iter();
        let unix: Vec<_> = unix
            .map(|config| Replaceable::new(unix_attestor(config)))
            .collect();
        let node = NodeHalf::open(wanted.node, config).await?;
        let metered = unix.iter().cloned();
        let metered = metered.map(|unix| MeteredAttestor::new(unix, metrics));
        Ok(Self {
            keys,
            workload: Attestors(metered.collect()),
            reload: Reload::new(config, node.clone(), unix),
            node,
        })
    }
}

fn unix_attestor(config: UnixConfig) -> Unix {
    Unix::new(config, ProcRoot::from_env())
}

impl Wanted {
    fn read(config: &AgentConfig) -> Result<Self, Explained> {
        let mut keys = None;
        let mut node = None;
        let mut workload = Vec::new();
        for plugin in config.plugins.iter().filter(|plugin| plugin.enabled) {
            if plugin.command.is_some() {
                return Err(unsupported(
                    plugin,
                    "plugins that run as processes of their own (plugin_cmd) are not supported yet",
                ));
            }
            match (plugin.plugin_type, plugin.name.as_str()) {
                (PluginType::KeyManager, "disk") => keys = Some(Some(disk(plugin)?)),
                (PluginType::KeyManager, "memory") => keys = Some(None),
                (PluginType::NodeAttestor, "join_token") => {
                    node = Some(NodeWanted::JoinToken);
                }
                (PluginType::NodeAttestor, "x509pop") => {
                    node = Some(NodeWanted::X509Pop(x509pop(plugin)?));
                }
                (PluginType::WorkloadAttestor, "unix") => workload.push(unix(plugin)?),
                (kind, _) => return Err(unsupported(plugin, built_in(kind))),
            }
        }
        // A token takes the place of whatever node attestor is configured, as with upstream.
        if config.join_token.is_some() {
            node = Some(NodeWanted::JoinToken);
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
        })
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

fn unix(plugin: &PluginConfig) -> Result<UnixConfig, Explained> {
    let data: UnixData = data(plugin)?;
    Ok(UnixConfig {
        discover_workload_path: data.discover_workload_path,
        workload_size_limit: data.workload_size_limit,
    })
}

fn x509pop(plugin: &PluginConfig) -> Result<X509PopAgentConfig, Explained> {
    let data: X509PopData = data(plugin)?;
    Ok(X509PopAgentConfig {
        private_key_path: data.private_key_path.into(),
        certificate_path: data.certificate_path.into(),
        intermediates_path: data.intermediates_path.into(),
        spiffe_endpoint_socket: data.spiffe_endpoint_socket,
    })
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
        PluginType::NodeAttestor => "built in are: join_token, x509pop",
        PluginType::WorkloadAttestor => "built in is: unix",
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

/// Which keys are set and have no effect.
pub(super) fn missing(config: &AgentConfig) -> Vec<String> {
    let rates = &config.experimental.rate_limit;
    let missing = [
        (config.experimental.broker.is_some(), "experimental.broker"),
        (config.profiling.enabled, "profiling_enabled"),
        (
            !config.authorized_delegates.is_empty(),
            "authorized_delegates",
        ),
        (config.sds != SdsConfig::default(), "sds"),
        (
            rates.stream_secrets != 0,
            "experimental.ratelimit.stream_secrets",
        ),
        (
            rates.fetch_secrets != 0,
            "experimental.ratelimit.fetch_secrets",
        ),
    ];
    let set = missing.iter().filter(|(set, _)| *set);
    set.map(|(_, key)| {
        format!("{key} is set, and this agent does not have it yet: it has no effect")
    })
    .collect()
}

/// What the agent's user is not allowed to do for its plugins.
pub(super) fn limits_of_user(config: &AgentConfig) -> Result<Vec<String>, Explained> {
    let wanted = Wanted::read(config)?;
    let discovers = wanted.workload.iter().any(|it| it.discover_workload_path);
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

/// The agent's half of a node attestor. Clones are one.
///
/// The file of a join token is read again for each attempt: an operator gets an evicted node back with a new token in
/// it.
#[derive(Clone)]
pub(super) struct NodeHalf {
    name: String,
    agent: Arc<RwLock<Arc<BuiltinAgent>>>,
    token_file: Option<PathBuf>,
}

impl NodeHalf {
    async fn open(wanted: NodeWanted, config: &AgentConfig) -> Result<Self, Explained> {
        let agent = node_agent(wanted, config).await?;
        Ok(Self {
            name: agent.name().to_owned(),
            agent: Arc::new(RwLock::new(Arc::new(agent))),
            token_file: config.join_token_file.clone(),
        })
    }

    fn agent(&self) -> Arc<BuiltinAgent> {
        let agent = self.agent.read().unwrap_or_else(PoisonError::into_inner);
        agent.clone()
    }

    fn replace(&self, agent: BuiltinAgent) {
        let mut now = self.agent.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(agent);
    }
}

async fn node_agent(wanted: NodeWanted, config: &AgentConfig) -> Result<BuiltinAgent, Explained> {
    let told = |error: AttestError| error.explained().clone();
    Ok(match wanted {
        NodeWanted::X509Pop(wanted) => {
            BuiltinAgent::X509Pop(X509PopAgent::configure(wanted).await.map_err(told)?)
        }
        NodeWanted::JoinToken => {
            let token = config
                .join_token
                .as_ref()
                .map(|token| Token::new(&Zeroizing::new(token.reveal().to_owned())).map_err(told));
            BuiltinAgent::JoinToken(JoinTokenAgent::new(token.transpose()?))
        }
    })
}

impl AgentHalf for NodeHalf {
    type Conversation = BuiltinConversation;

    fn name(&self) -> &str {
        &self.name
    }

    async fn begin(&self) -> Result<(Payload, BuiltinConversation), AttestError> {
        let agent = self.agent();
        let fresh = match (agent.as_ref(), &self.token_file) {
            (BuiltinAgent::JoinToken(_), Some(file)) => token_of(file),
            _ => None,
        };
        match fresh {
            Some(token) => {
                let agent = BuiltinAgent::JoinToken(JoinTokenAgent::new(Some(token)));
                agent.begin().await
            }
            None => agent.begin().await,
        }
    }
}

/// A file that is gone or empty by now leaves the token that was in it at the start.
fn token_of(path: &Path) -> Option<Token> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).ok()?;
    Token::new(&text).ok()
}
