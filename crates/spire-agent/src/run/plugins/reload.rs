//! SIGUSR1: every `plugin_data_file` is read again, and what changed is told to its plugin.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Reference, WorkloadAttestor};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::{DataFiles, PluginConfig, PluginType};
use ah_spire_plugin_host::Plugin;
use ah_spire_wire::model::Selector;

use super::external::{Running, Workload};
use super::node::{BuiltInNode, NodeHalf, node_agent};
use super::workload::{BuiltIn, BuiltInWorkload};
use crate::health::one_line;

/// An attestor whose place another may take. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Replaceable<A> {
    name: String,
    attestor: Arc<RwLock<A>>,
}

impl<A: WorkloadAttestor + Clone> Replaceable<A> {
    pub(super) fn new(attestor: A) -> Self {
        Self {
            name: attestor.name().to_owned(),
            attestor: Arc::new(RwLock::new(attestor)),
        }
    }

    fn now(&self) -> A {
        let now = self.attestor.read().unwrap_or_else(PoisonError::into_inner);
        now.clone()
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

    fn deadline(&self) -> Duration {
        self.now().deadline()
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        self.now().attest(peer).await
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        self.now().attest_reference(reference).await
    }
}

/// The plugins that have a file.
pub(crate) struct Reload {
    config: AgentConfig,
    files: DataFiles<Part>,
}

/// What a plugin became.
#[derive(Clone)]
enum Part {
    /// Its directory cannot change: the keys are in it.
    Keys,
    /// Its folder cannot change: nobody would take away what is in the old one.
    Store,
    Node(NodeHalf),
    Workload(Replaceable<BuiltIn>),
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
        let mut workload = workload.into_iter().filter_map(|it| match it {
            Workload::BuiltIn(attestor) => Some(attestor),
            Workload::External(_) => None,
        });
        let enabled = config.plugins.iter().filter(|plugin| plugin.enabled);
        let parts = enabled.filter_map(|plugin| {
            let part = match plugin.plugin_type {
                // One that a join token took the place of does not run.
                _ if plugin.command.is_some() => Part::External(running.plugin(plugin).ok()?),
                PluginType::NodeAttestor => Part::Node(node.clone()),
                PluginType::WorkloadAttestor => Part::Workload(workload.next()?),
                PluginType::SvidStore => Part::Store,
                _ => Part::Keys,
            };
            Some((plugin.clone(), part))
        });
        Self {
            files: DataFiles::new(parts),
            config: config.clone(),
        }
    }

    /// Reads all files again. Returns what was done, for people.
    pub(crate) async fn run(&mut self) -> String {
        let config = &self.config;
        let apply = |plugin, part: Part| async move {
            let applied = Box::pin(part.apply(&plugin, config)).await;
            applied.map_err(|error| one_line(&error))
        };
        self.files.read_again(apply).await
    }
}

impl Part {
    async fn apply(&self, plugin: &PluginConfig, config: &AgentConfig) -> Result<(), Explained> {
        match self {
            Self::Keys => Err(Explained::new(
                Code::Usage,
                "a key manager keeps its directory while the agent runs",
            )
            .hint("restart the agent")),
            Self::Store => Err(Explained::new(
                Code::Usage,
                "an SVIDStore keeps its folder while the agent runs",
            )
            .hint("restart the agent")),
            Self::External(plugin) => plugin.reconfigure().await.map(|_| ()),
            Self::Workload(attestor) => {
                if let Some(wanted) = BuiltInWorkload::read(plugin)? {
                    attestor.replace(wanted.open().await?);
                }
                Ok(())
            }
            Self::Node(half) => {
                // With a token another attestor stands in the configured one's place.
                if config.join_token.is_none()
                    && let Some(wanted) = BuiltInNode::read(plugin)?
                {
                    half.replace(node_agent(wanted, config).await?);
                }
                Ok(())
            }
        }
    }
}
