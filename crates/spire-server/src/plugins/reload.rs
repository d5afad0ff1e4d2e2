//! What plugins can be told anew while the server runs.

use std::sync::Arc;

use ah_spire_plugin::catalog::{DataFiles, PluginConfig, PluginType};
use ah_spire_plugin::server::ServerConfig;

use ah_spire_plugin_host::Plugin;

use super::external::{Running, told};
use super::{NodeAttestors, NodeWanted};

/// The plugins that have a file.
pub(crate) struct Reload {
    /// With the process of a plugin that has one.
    files: DataFiles<Option<Plugin>>,
    attestors: Arc<NodeAttestors>,
}

impl Reload {
    /// `attestors` were opened, and `running` started, with what `config` has.
    pub(crate) fn new(
        config: &ServerConfig,
        attestors: Arc<NodeAttestors>,
        running: &Running,
    ) -> Self {
        let enabled = config.plugins.iter().filter(|plugin| plugin.enabled);
        let parts = enabled.map(|plugin| (plugin.clone(), running.plugin(plugin).cloned()));
        Self {
            files: DataFiles::new(parts),
            attestors,
        }
    }

    /// Reads all files again. Returns what was done, for people.
    pub(crate) async fn run(&mut self) -> String {
        let attestors = &self.attestors;
        let apply = |plugin, process: Option<Plugin>| async move {
            match process {
                Some(process) => {
                    let told_it = Box::pin(process.reconfigure()).await;
                    told_it.map(|_| ()).map_err(|error| told(&error))
                }
                None => apply(&plugin, attestors).await,
            }
        };
        self.files.read_again(apply).await
    }
}

async fn apply(plugin: &PluginConfig, attestors: &NodeAttestors) -> Result<(), String> {
    match plugin.plugin_type {
        PluginType::NodeAttestor => match NodeWanted::read(plugin)? {
            Some(wanted) => attestors.replace(wanted).await,
            None => Ok(()),
        },
        kind => Err(format!(
            "a {kind} keeps what it was started with; restart the server"
        )),
    }
}
