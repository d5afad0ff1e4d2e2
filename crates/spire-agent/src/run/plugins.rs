//! The `plugins { }` of the agent's file as what they stand for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::node::join_token::{JoinTokenAgent, Token};
use ah_spire_attest::node::{AgentHalf, Conversation, Payload};
use ah_spire_attest::workload::ProcRoot;
use ah_spire_attest::workload::unix::{Unix, UnixConfig};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::{config_block, decode};
use zeroize::Zeroizing;

use crate::keys::{DiskKeys, KeyManager, MemoryKeys};
use crate::workload::Attestors;

/// What an agent is made of.
pub(super) struct Plugins {
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) node: NodeHalf,
    pub(super) workload: Attestors<Unix>,
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

/// What a configuration asks for, before anything is opened.
struct Wanted {
    /// The directory of `disk`; `None` for `memory`.
    keys: Option<PathBuf>,
    node: NodeHalf,
    workload: Vec<UnixConfig>,
}

impl Plugins {
    pub(super) fn check(config: &AgentConfig) -> Result<(), Explained> {
        Wanted::read(config).map(|_| ())
    }

    pub(super) fn open(config: &AgentConfig) -> Result<Self, Explained> {
        let wanted = Wanted::read(config)?;
        let keys: Arc<dyn KeyManager> = match &wanted.keys {
            Some(directory) => {
                Arc::new(DiskKeys::open(directory).map_err(|error| error.explained().clone())?)
            }
            None => Arc::new(MemoryKeys::default()),
        };
        let unix = wanted.workload.into_iter();
        let unix = unix.map(|config| Unix::new(config, ProcRoot::from_env()));
        Ok(Self {
            keys,
            node: wanted.node,
            workload: Attestors(unix.collect()),
        })
    }
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
                    node = Some(NodeHalf::JoinToken(JoinTokenHalf::new(config)?));
                }
                (PluginType::WorkloadAttestor, "unix") => workload.push(unix(plugin)?),
                (kind, _) => return Err(unsupported(plugin, built_in(kind))),
            }
        }
        // A token takes the place of whatever node attestor is configured, as with upstream.
        if config.join_token.is_some() {
            node = Some(NodeHalf::JoinToken(JoinTokenHalf::new(config)?));
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
        PluginType::NodeAttestor => "built in is: join_token",
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

/// Says which keys are read and have no effect.
pub(super) fn tell_what_is_missing(config: &AgentConfig) {
    let telemetry = &config.telemetry;
    let missing = [
        (config.admin_socket.is_some(), "admin_socket_path"),
        (config.experimental.broker.is_some(), "experimental.broker"),
        (config.profiling.enabled, "profiling_enabled"),
        (
            telemetry.prometheus.is_some()
                || !telemetry.statsd.is_empty()
                || !telemetry.dog_statsd.is_empty()
                || !telemetry.m3.is_empty()
                || telemetry.in_memory,
            "telemetry",
        ),
    ];
    for (set, key) in missing {
        if set {
            tracing::warn!("{key} is set, and this agent does not have it yet: it has no effect");
        }
    }
}

/// The node attestors of this agent.
pub(super) enum NodeHalf {
    JoinToken(JoinTokenHalf),
}

/// A join token from the configuration, or from a file that is read again for each attempt: an operator gets an
/// evicted node back with a new token in it.
pub(super) struct JoinTokenHalf {
    configured: JoinTokenAgent,
    file: Option<PathBuf>,
}

impl JoinTokenHalf {
    fn new(config: &AgentConfig) -> Result<Self, Explained> {
        let token = match &config.join_token {
            Some(token) => Some(
                Token::new(&Zeroizing::new(token.reveal().to_owned()))
                    .map_err(|error| error.explained().clone())?,
            ),
            None => None,
        };
        Ok(Self {
            configured: JoinTokenAgent::new(token),
            file: config.join_token_file.clone(),
        })
    }
}

impl AgentHalf for NodeHalf {
    type Conversation = NodeConversation;

    fn name(&self) -> &str {
        match self {
            Self::JoinToken(half) => half.configured.name(),
        }
    }

    async fn begin(&self) -> Result<(Payload, NodeConversation), AttestError> {
        match self {
            Self::JoinToken(half) => {
                let fresh = half.file.as_deref().and_then(token_of);
                let (payload, conversation) = match fresh {
                    Some(token) => JoinTokenAgent::new(Some(token)).begin().await?,
                    None => half.configured.begin().await?,
                };
                Ok((payload, NodeConversation::JoinToken(conversation)))
            }
        }
    }
}

/// Answers the challenges of one attestation.
pub(super) enum NodeConversation {
    JoinToken(<JoinTokenAgent as AgentHalf>::Conversation),
}

impl Conversation for NodeConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        match self {
            Self::JoinToken(conversation) => conversation.answer(challenge).await,
        }
    }
}

/// A file that is gone or empty by now leaves the token that was in it at the start.
fn token_of(path: &Path) -> Option<Token> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).ok()?;
    Token::new(&text).ok()
}
