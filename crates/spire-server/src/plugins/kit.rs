//! Plugins of the configuration for tests.

use ah_spire_plugin::catalog::{PluginConfig, PluginData, PluginType};
use ah_spire_plugin::hcl::Position;

/// What `read` makes of the plugin `name` with this data.
pub(super) fn with<T>(
    kind: PluginType,
    name: &str,
    text: &str,
    read: impl Fn(&PluginConfig) -> T,
) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.hcl");
    std::fs::write(&path, text).unwrap();
    read(&PluginConfig {
        plugin_type: kind,
        name: name.into(),
        position: Position { line: 1, column: 1 },
        command: None,
        arguments: Vec::new(),
        checksum: None,
        enabled: true,
        data: PluginData::File(path),
    })
}
