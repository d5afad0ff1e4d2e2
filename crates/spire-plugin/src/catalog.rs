//! The `plugins { }` section: which plugins run and what each is told.

use std::path::PathBuf;

use crate::hcl::{Object, Position};

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
