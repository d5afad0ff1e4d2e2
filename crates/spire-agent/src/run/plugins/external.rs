//! Plugins in processes of their own (`plugin_cmd`).

use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Reference, WorkloadAttestor};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin_host::workload::{self, Workloads};
use ah_spire_plugin_host::{HostServices, Limits, Plugin, Settings, keys, launch, node, svids};
use ah_spire_telemetry::Metrics;
use ah_spire_wire::model::Selector;

use super::reload::Replaceable;
use super::workload::BuiltIn;

/// Any workload attestor. Clones are one.
#[derive(Clone)]
pub(in crate::run) enum Workload {
    BuiltIn(Replaceable<BuiltIn>),
    External(Workloads),
}

impl WorkloadAttestor for Workload {
    fn name(&self) -> &str {
        match self {
            Self::BuiltIn(attestor) => attestor.name(),
            Self::External(plugin) => plugin.name(),
        }
    }

    fn deadline(&self) -> Duration {
        match self {
            Self::BuiltIn(attestor) => attestor.deadline(),
            Self::External(plugin) => plugin.deadline(),
        }
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        match self {
            Self::BuiltIn(attestor) => attestor.attest(peer).await,
            Self::External(plugin) => plugin.attest(peer).await,
        }
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        match self {
            Self::BuiltIn(attestor) => attestor.attest_reference(reference).await,
            Self::External(plugin) => plugin.attest_reference(reference).await,
        }
    }
}

/// The plugins that run, in the order of their start.
#[derive(Default)]
pub(in crate::run) struct Running(Vec<(PluginType, Plugin)>);

impl Running {
    pub(super) async fn start(
        &mut self,
        plugin: &PluginConfig,
        config: &AgentConfig,
        metrics: &Metrics,
    ) -> Result<(), Explained> {
        let started = Plugin::start(settings(plugin, config, metrics)).await?;
        self.0.push((plugin.plugin_type, started));
        Ok(())
    }

    /// The one of a block of the configuration.
    pub(super) fn plugin(&self, of: &PluginConfig) -> Result<Plugin, Explained> {
        let found = self
            .0
            .iter()
            .find(|(kind, plugin)| *kind == of.plugin_type && plugin.name() == of.name);
        found.map(|(_, plugin)| plugin.clone()).ok_or_else(|| {
            let kind = of.plugin_type;
            Explained::new(Code::Other, format!("{kind} {:?} does not run", of.name))
        })
    }

    /// Ends them all, the last one first.
    pub(in crate::run) async fn stop(self) {
        for (_, plugin) in self.0.into_iter().rev() {
            plugin.stop().await;
        }
    }
}

/// Asks the plugin what it thinks of its configuration.
pub(super) async fn check(plugin: &PluginConfig, config: &AgentConfig) -> Result<(), Explained> {
    let notes = Plugin::validate(settings(plugin, config, &Metrics::off())).await?;
    if notes.is_empty() {
        return Ok(());
    }
    let (kind, name) = (plugin.plugin_type, &plugin.name);
    let error = Explained::new(
        Code::Usage,
        format!("{kind} {name:?}: plugin_data is not valid"),
    );
    Err(notes.iter().fold(error, Explained::cause))
}

fn settings(plugin: &PluginConfig, config: &AgentConfig, metrics: &Metrics) -> Settings {
    Settings {
        config: plugin.clone(),
        service: match plugin.plugin_type {
            PluginType::KeyManager => keys::AGENT_SERVICE,
            PluginType::NodeAttestor => node::AGENT_SERVICE,
            PluginType::SvidStore => svids::SERVICE,
            _ => workload::SERVICE,
        },
        trust_domain: config.trust_domain.clone(),
        services: HostServices::new(metrics),
        launcher: Some(launch::own_program()),
        limits: Limits::default(),
    }
}
