//! SIGUSR1: every `plugin_data_file` is read again, and what changed is told to its plugin.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::WorkloadAttestor;
use ah_spire_attest::workload::unix::Unix;
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::{PluginConfig, PluginData, PluginType};
use ah_spire_plugin_host::Plugin;
use ah_spire_wire::model::Selector;

use super::external::{Running, Workload};
use super::node::{NodeHalf, node_agent};
use super::{BuiltInNode, unix, unix_attestor, x509pop};
use crate::health::one_line;

/// An attestor whose place another may take. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Replaceable<A> {
    name: String,
    attestor: Arc<RwLock<A>>,
}

impl<A: WorkloadAttestor> Replaceable<A> {
    pub(super) fn new(attestor: A) -> Self {
        Self {
            name: attestor.name().to_owned(),
            attestor: Arc::new(RwLock::new(attestor)),
        }
    }

    fn replace(&self, attestor: A) {
        let mut now = self
            .attestor
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *now = attestor;
    }
}

impl<A: WorkloadAttestor + Clone> WorkloadAttestor for Replaceable<A> {
    fn name(&self) -> &str {
        &self.name
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let attestor = {
            let now = self.attestor.read().unwrap_or_else(PoisonError::into_inner);
            now.clone()
        };
        attestor.attest(peer).await
    }
}

/// The plugins that have a file, and what was in it.
pub(crate) struct Reload {
    config: AgentConfig,
    watched: Vec<Watched>,
}

struct Watched {
    plugin: PluginConfig,
    file: PathBuf,
    content: Option<Vec<u8>>,
    part: Part,
}

/// What a plugin became.
#[derive(Clone)]
enum Part {
    /// Its directory cannot change: the keys are in it.
    Keys,
    Node(NodeHalf),
    Unix(Replaceable<Unix>),
    External(Plugin),
}

impl Reload {
    /// `workload` in the order of the configuration.
    pub(super) fn new(
        config: &AgentConfig,
        node: NodeHalf,
        workload: Vec<Workload>,
        running: &Running,
    ) -> Self {
        let mut unix = workload.into_iter().filter_map(|it| match it {
            Workload::Unix(unix) => Some(unix),
            Workload::External(_) => None,
        });
        let enabled = config.plugins.iter().filter(|plugin| plugin.enabled);
        let watched = enabled.filter_map(|plugin| {
            let part = match plugin.plugin_type {
                // One that a join token took the place of does not run.
                _ if plugin.command.is_some() => Part::External(running.plugin(plugin).ok()?),
                PluginType::NodeAttestor => Part::Node(node.clone()),
                PluginType::WorkloadAttestor => Part::Unix(unix.next()?),
                _ => Part::Keys,
            };
            let PluginData::File(file) = &plugin.data else {
                return None;
            };
            Some(Watched {
                plugin: plugin.clone(),
                file: file.clone(),
                content: std::fs::read(file).ok(),
                part,
            })
        });
        Self {
            watched: watched.collect(),
            config: config.clone(),
        }
    }

    /// Reads all files again. What cannot be used is told, and the plugin goes on as it was. Returns what was done,
    /// for people.
    pub(crate) async fn run(&mut self) -> String {
        if self.watched.is_empty() {
            tracing::info!("no plugin has a plugin_data_file: there is nothing to read again");
            return "no plugin has a plugin_data_file".to_owned();
        }
        let (mut changed, mut failed) = (0, 0);
        for watched in &mut self.watched {
            let plugin = format!("{} {:?}", watched.plugin.plugin_type, watched.plugin.name);
            let file = watched.file.display();
            let content = std::fs::read(&watched.file).ok();
            if content.is_some() && content == watched.content {
                continue;
            }
            match Box::pin(watched.apply(&self.config)).await {
                Ok(()) => {
                    changed += 1;
                    watched.content = content;
                    tracing::info!(plugin, %file, "the plugin was configured anew");
                }
                Err(error) => {
                    failed += 1;
                    let error = one_line(&error);
                    tracing::error!(plugin, %file, error, "the plugin cannot be configured anew; it goes on as it was");
                }
            }
        }
        format!("{changed} plugins were configured anew, {failed} cannot be")
    }
}

impl Watched {
    async fn apply(&self, config: &AgentConfig) -> Result<(), Explained> {
        match &self.part {
            Part::Keys => Err(Explained::new(
                Code::Usage,
                "a key manager keeps its directory while the agent runs",
            )
            .hint("restart the agent")),
            Part::External(plugin) => plugin.reconfigure().await.map(|_| ()),
            Part::Unix(attestor) => {
                attestor.replace(unix_attestor(unix(&self.plugin)?));
                Ok(())
            }
            Part::Node(half) => {
                // With a token another attestor stands in the configured one's place.
                if self.plugin.name == "x509pop" && config.join_token.is_none() {
                    let wanted = BuiltInNode::X509Pop(x509pop(&self.plugin)?);
                    half.replace(node_agent(wanted, config).await?);
                }
                Ok(())
            }
        }
    }
}
