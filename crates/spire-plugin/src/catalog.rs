//! The `plugins { }` section: which plugins run and what each is told.

mod data_files;
mod file;

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

pub use self::data_files::DataFiles;
pub(crate) use self::file::plugins;
use crate::error::ConfigError;
use crate::hcl::{self, Object, Position};

/// Who loads the plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `spire-agent`
    Agent,
    /// `spire-server`
    Server,
}

/// What a plugin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PluginType {
    /// Server: where the data is kept.
    DataStore,
    /// Both: where private keys are made and kept.
    KeyManager,
    /// Both: how an agent proves which node it is on.
    NodeAttestor,
    /// Server: who signs the server's CA.
    UpstreamAuthority,
    /// Server: what goes into certificates and tokens besides.
    CredentialComposer,
    /// Server: who is told of new bundles.
    Notifier,
    /// Server: where bundles are published.
    BundlePublisher,
    /// Agent: how a workload is recognised.
    WorkloadAttestor,
    /// Agent: where SVIDs are stored for those who cannot ask.
    SvidStore,
}

/// One enabled or disabled plugin. It has no `Debug`, since its data may hold passwords.
#[derive(Clone)]
pub struct PluginConfig {
    /// The first label.
    pub plugin_type: PluginType,
    /// The second label by its present name: `x509_pop` becomes `x509pop` (SR-2).
    pub name: String,
    /// Where the block begins.
    pub position: Position,
    /// `plugin_cmd`; `None` for what is built in.
    pub command: Option<PathBuf>,
    /// `plugin_args`
    pub arguments: Vec<String>,
    /// `plugin_checksum`, the SHA-256 of the binary in hex.
    pub checksum: Option<String>,
    /// `enabled`, true by default.
    pub enabled: bool,
    /// `plugin_data` or `plugin_data_file`
    pub data: PluginData,
}

/// What a plugin is told.
#[derive(Clone)]
pub enum PluginData {
    /// Nothing.
    None,
    /// `plugin_data`, to be decoded by the plugin.
    Block(Object),
    /// `plugin_data_file`, read again when the operator asks for it.
    File(PathBuf),
}

impl PluginType {
    const ALL: [Self; 9] = [
        Self::DataStore,
        Self::KeyManager,
        Self::NodeAttestor,
        Self::UpstreamAuthority,
        Self::CredentialComposer,
        Self::Notifier,
        Self::BundlePublisher,
        Self::WorkloadAttestor,
        Self::SvidStore,
    ];

    /// The name in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DataStore => "DataStore",
            Self::KeyManager => "KeyManager",
            Self::NodeAttestor => "NodeAttestor",
            Self::UpstreamAuthority => "UpstreamAuthority",
            Self::CredentialComposer => "CredentialComposer",
            Self::Notifier => "Notifier",
            Self::BundlePublisher => "BundlePublisher",
            Self::WorkloadAttestor => "WorkloadAttestor",
            Self::SvidStore => "SVIDStore",
        }
    }

    /// How many plugins of the type have to run, at least and at most; `None` where the role has no such type.
    fn bounds(self, role: Role) -> Option<(usize, usize)> {
        match (role, self) {
            (Role::Server, Self::DataStore)
            | (_, Self::KeyManager)
            | (Role::Agent, Self::NodeAttestor) => Some((1, 1)),
            (Role::Server, Self::UpstreamAuthority) => Some((0, 1)),
            (Role::Agent, Self::WorkloadAttestor) => Some((1, usize::MAX)),
            (Role::Agent, Self::SvidStore)
            | (
                Role::Server,
                Self::NodeAttestor
                | Self::CredentialComposer
                | Self::Notifier
                | Self::BundlePublisher,
            ) => Some((0, usize::MAX)),
            _ => None,
        }
    }

    /// The types that a role has.
    pub fn of(role: Role) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(move |kind| kind.bounds(role).is_some())
    }
}

impl fmt::Display for PluginType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks how many plugins of each type are enabled, and what is true of single ones whoever they are: the data
/// store is the built-in `sql`, and `join_token` is never external. Whether a built-in plugin exists is for those who
/// build them in.
pub fn check(role: Role, plugins: &[PluginConfig]) -> Result<(), ConfigError> {
    for plugin in plugins.iter().filter(|plugin| plugin.enabled) {
        let external = plugin.command.is_some();
        match (plugin.plugin_type, plugin.name.as_str()) {
            (PluginType::NodeAttestor, "join_token") if external => {
                return ConfigError::rule(
                    "NodeAttestor \"join_token\" is built in; remove its plugin_cmd",
                );
            }
            (PluginType::DataStore, name) if name != "sql" || external => {
                return ConfigError::rule(format!(
                    "DataStore {name:?} cannot be used: only the built-in \"sql\" is supported"
                ));
            }
            _ => {}
        }
    }
    for kind in PluginType::of(role) {
        let count = plugins
            .iter()
            .filter(|plugin| plugin.enabled && plugin.plugin_type == kind)
            .count();
        let expected = match kind.bounds(role) {
            Some((least, most)) if least == most && count != least => format!("exactly {least}"),
            Some((least, _)) if count < least => format!("at least {least}"),
            Some((_, most)) if count > most => format!("at most {most}"),
            _ => continue,
        };
        return ConfigError::rule(format!(
            "plugin type {:?} constraint not satisfied: expected {expected} but got {count}",
            kind.as_str()
        ));
    }
    Ok(())
}

impl PluginData {
    /// What the plugin is told, to be decoded; an empty block when nothing is. Reads the file each time.
    pub fn load(&self) -> Result<Object, ConfigError> {
        match self {
            Self::None => Ok(Object {
                position: Position::START,
                items: Vec::new(),
            }),
            Self::Block(object) => Ok(object.clone()),
            Self::File(path) => hcl::parse(&self.text()?).map_err(ConfigError::decode(path)),
        }
    }

    /// The same as HCL or JSON text, for a plugin in another process. Reads the file each time.
    pub fn text(&self) -> Result<Zeroizing<String>, ConfigError> {
        match self {
            Self::None => Ok(Zeroizing::default()),
            Self::Block(object) => Ok(hcl::print(object)),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map(Zeroizing::new);
                text.map_err(|source| ConfigError::Read {
                    what: "plugin_data_file",
                    path: path.clone(),
                    source,
                })
            }
        }
    }

    /// Whether the data can change while the process runs.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        matches!(self, Self::File(_))
    }
}
