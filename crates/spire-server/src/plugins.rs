//! The `plugins { }` of the server's file as what they stand for.

mod aws;
mod compose;
mod datastore;
pub(crate) mod external;
mod keys;
#[cfg(test)]
mod kit;
mod node;
mod outside;
mod reload;
mod upstream;
mod vault;

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::{Clock, SystemClock};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::decode::{Decode, UnknownKeys, from_object};
use ah_spire_plugin::server::ServerConfig;
use ah_spire_wire::aws::Environment;
use spiffe::TrustDomain;

pub(crate) use self::compose::ComposerWanted;
use self::external::Running;
pub(crate) use self::keys::KeysWanted;
pub(crate) use self::node::{NodeAttestors, NodeWanted, OwnAuthorities};
pub(crate) use self::outside::OutsideWanted;
pub(crate) use self::reload::Reload;
use self::upstream::Upstream;
use crate::ca::{Composers, UpstreamAuthority};
use crate::store::StoreConfig;

/// What a configuration asks for, before anything is opened.
pub(crate) struct Wanted {
    pub(crate) store: StoreConfig,
    pub(crate) keys: KeysWanted,
    pub(crate) upstream: Option<Upstream>,
    pub(crate) composers: Vec<ComposerWanted>,
    pub(crate) outside: Vec<OutsideWanted>,
    pub(crate) node: Vec<NodeWanted>,
    /// What has a `plugin_cmd`, in the order of the file.
    pub(crate) external: Vec<PluginConfig>,
}

impl Wanted {
    /// Reads the plugins. The error names the plugin and the remedy.
    pub(crate) fn read(config: &ServerConfig) -> Result<Self, String> {
        let (mut store, mut keys) = (None, None);
        let mut wanted = Self {
            store: StoreConfig::default(),
            keys: KeysWanted::Memory,
            upstream: None,
            composers: Vec::new(),
            outside: Vec::new(),
            node: Vec::new(),
            external: Vec::new(),
        };
        let variable = |name: &str| std::env::var(name).ok();
        for plugin in config.plugins.iter().filter(|plugin| plugin.enabled) {
            let external = plugin.command.is_some();
            match (plugin.plugin_type, plugin.name.as_str()) {
                (PluginType::NodeAttestor, _) if external => {
                    wanted.external.push(plugin.clone());
                }
                (PluginType::KeyManager, name) if external => {
                    keys = Some(KeysWanted::External(name.to_owned()));
                    wanted.external.push(plugin.clone());
                }
                (PluginType::UpstreamAuthority, name) if external => {
                    wanted.upstream = Some(Upstream::External(name.to_owned()));
                    wanted.external.push(plugin.clone());
                }
                (PluginType::CredentialComposer, name) if external => {
                    let composer = ComposerWanted::External(name.to_owned());
                    wanted.composers.push(composer);
                    wanted.external.push(plugin.clone());
                }
                (kind @ (PluginType::BundlePublisher | PluginType::Notifier), name) if external => {
                    let outside = OutsideWanted::External(kind, name.to_owned());
                    wanted.outside.push(outside);
                    wanted.external.push(plugin.clone());
                }
                _ if external => {
                    return Err(unsupported(
                        plugin,
                        "plugins of this type cannot be processes of their own (plugin_cmd)",
                    ));
                }
                (PluginType::DataStore, "sql") => {
                    store = Some(datastore::sql(plugin, &Environment::of_process())?)
                }
                (PluginType::KeyManager, _) => {
                    let read = KeysWanted::read(plugin, &config.trust_domain, variable)?;
                    let unknown = || unsupported(plugin, "this server has no such plugin");
                    keys = Some(read.ok_or_else(unknown)?);
                }
                (PluginType::UpstreamAuthority, _) => {
                    let read = Upstream::read(plugin, &config.trust_domain, variable)?;
                    let unknown = || unsupported(plugin, "this server has no such plugin");
                    wanted.upstream = Some(read.ok_or_else(unknown)?);
                }
                (PluginType::CredentialComposer, "uniqueid") => {
                    wanted.composers.push(ComposerWanted::UniqueId);
                }
                (PluginType::BundlePublisher | PluginType::Notifier, _) => {
                    let read = OutsideWanted::read(plugin)?;
                    let unknown = || unsupported(plugin, "this server has no such plugin");
                    wanted.outside.push(read.ok_or_else(unknown)?);
                }
                // Tokens are judged by the API itself, as with upstream also without this plugin.
                (PluginType::NodeAttestor, "join_token") => {}
                (PluginType::NodeAttestor, _) => {
                    let read = NodeWanted::read(plugin)?;
                    let unknown = || unsupported(plugin, "this server has no such plugin");
                    wanted.node.push(read.ok_or_else(unknown)?);
                }
                _ => return Err(unsupported(plugin, "this server has no such plugin")),
            }
        }
        wanted.store = store.ok_or("plugins: there is no DataStore \"sql\"")?;
        wanted.keys = keys.ok_or("plugins: there is no KeyManager; use \"disk\" or \"memory\"")?;
        Ok(wanted)
    }

    /// What changes certificates and tokens.
    pub(crate) fn composers(&self, running: &Running) -> Result<Composers, String> {
        ComposerWanted::open(&self.composers, running)
    }

    /// The upstream authority.
    pub(crate) fn upstream(
        &self,
        of: &TrustDomain,
        clock: Arc<dyn Clock>,
        running: &Running,
    ) -> Result<Option<Arc<dyn UpstreamAuthority>>, String> {
        let upstream = self.upstream.as_ref();
        upstream
            .map(|upstream| upstream.open(of, clock, running))
            .transpose()
    }

    /// Finds what is wrong with a built-in upstream authority without asking anybody on the network.
    pub(crate) fn check_upstream(&self, of: &TrustDomain) -> Result<(), String> {
        match &self.upstream {
            // Plugins that run are asked themselves.
            None | Some(Upstream::External(_)) => Ok(()),
            Some(upstream) => upstream
                .open(of, Arc::new(SystemClock), &Running::default())
                .map(|_| ()),
        }
    }
}

fn unsupported(plugin: &PluginConfig, why: &str) -> String {
    format!(
        "{} \"{}\" cannot be used: {why}; remove it or set enabled = false",
        plugin.plugin_type, plugin.name
    )
}

fn wrong(plugin: &PluginConfig, why: impl std::fmt::Display) -> String {
    format!("{} \"{}\": {why}", plugin.plugin_type, plugin.name)
}

fn decoded<T: Decode>(plugin: &PluginConfig) -> Result<T, String> {
    let object = plugin.data.load().map_err(|error| wrong(plugin, error))?;
    from_object(&object).map_err(|error| wrong(plugin, error))
}

fn data<T: Decode>(
    plugin: &PluginConfig,
    unknown: impl Fn(&T) -> &UnknownKeys,
) -> Result<T, String> {
    let data = decoded(plugin)?;
    let keys: Vec<&str> = unknown(&data).iter().map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(data);
    }
    Err(wrong(plugin, format!("unknown keys: {}", keys.join(", "))))
}

fn all_known(plugin: &PluginConfig, block: &str, unknown: &UnknownKeys) -> Result<(), String> {
    let keys: Vec<&str> = unknown.iter().map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let keys = keys.join(", ");
    Err(wrong(plugin, format!("unknown keys in {block}: {keys}")))
}

fn path(text: &str) -> Option<PathBuf> {
    Some(text)
        .filter(|text| !text.is_empty())
        .map(PathBuf::from)
}

fn required(plugin: &PluginConfig, key: &str, value: &str) -> Result<PathBuf, String> {
    path(value).ok_or_else(|| wrong(plugin, format!("{key} is required")))
}
