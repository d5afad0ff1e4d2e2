//! How plugins are written: labels in any shape that HCL 1 and JSON have for them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{PluginConfig, PluginData, PluginType, Role, check};
use crate::check::nonempty;
use crate::config_block;
use crate::decode::{Decode, Deferred, Entry, Node};
use crate::error::ConfigError;
use crate::hcl::{HclError, Item, Key, Object, Position, Value};

config_block! {
    struct PluginBlock {
        command: String = "plugin_cmd",
        arguments: Vec<String> = "plugin_args",
        checksum: String = "plugin_checksum",
        data: Deferred = "plugin_data",
        data_file: Option<String> = "plugin_data_file",
        enabled: Option<bool> = "enabled",
    }
}

/// The plugins in the order written, in the numbers that the role needs. Keys that a plugin block does not have are
/// told in `warnings`: upstream passes over them in silence.
pub(crate) fn plugins(
    role: Role,
    section: Deferred,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<PluginConfig>, ConfigError> {
    let Some(section) = section.0 else {
        return ConfigError::rule("plugins section must be configured");
    };
    let plugins = read(role, &section, warnings).map_err(ConfigError::decode(path))?;
    check(role, &plugins)?;
    Ok(plugins)
}

fn read(
    role: Role,
    section: &Object,
    warnings: &mut Vec<String>,
) -> Result<Vec<PluginConfig>, HclError> {
    let mut found = Vec::new();
    labels(&section.items, &[], &mut found);
    let blocks = decoded(section)?;

    let mut plugins: Vec<PluginConfig> = Vec::with_capacity(found.len());
    for (type_key, name_key) in found {
        let plugin_type = known_type(role, type_key)?;
        let name = present_name(plugin_type, &name_key.name);
        let same =
            |plugin: &&PluginConfig| plugin.plugin_type == plugin_type && plugin.name == name;
        if let Some(first) = plugins.iter().find(same) {
            let message = format!(
                "plugin {plugin_type} {name:?} is declared more than once; the first is at {}",
                first.position
            );
            return Err(HclError::new(name_key.position, message));
        }
        let block = blocks
            .iter()
            .filter_map(|types| types.get(&type_key.name))
            .find_map(|names| names.0.get(&name_key.name))
            .cloned()
            .unwrap_or_default();
        if !block.unknown.is_empty() {
            warnings.push(format!(
                "plugin {plugin_type} {name:?} has keys without meaning: {}",
                block.unknown
            ));
        }
        plugins.push(PluginConfig {
            plugin_type,
            position: name_key.position,
            data: data(&block, plugin_type, name, name_key.position)?,
            name: name.to_owned(),
            command: nonempty(block.command).map(Into::into),
            arguments: block.arguments,
            checksum: nonempty(block.checksum),
            enabled: block.enabled.unwrap_or(true),
        });
    }
    Ok(plugins)
}

/// Old names for what has a new one (SR-2).
fn present_name(plugin_type: PluginType, name: &str) -> &str {
    match (plugin_type, name) {
        (PluginType::NodeAttestor, "x509_pop") => "x509pop",
        _ => name,
    }
}

fn known_type(role: Role, key: &Key) -> Result<PluginType, HclError> {
    PluginType::of(role)
        .find(|kind| kind.as_str() == key.name)
        .ok_or_else(|| {
            let known: Vec<&str> = PluginType::of(role).map(PluginType::as_str).collect();
            let message = format!(
                "unsupported plugin type {:?}; expected one of {}",
                key.name,
                known.join(", ")
            );
            HclError::new(key.position, message)
        })
}

fn data(
    block: &PluginBlock,
    kind: PluginType,
    name: &str,
    position: Position,
) -> Result<PluginData, HclError> {
    match (&block.data.0, &block.data_file) {
        (Some(_), Some(_)) => {
            let message = format!(
                "plugin {kind} {name:?}: only one of plugin_data and plugin_data_file can be used"
            );
            Err(HclError::new(position, message))
        }
        (Some(object), None) => Ok(PluginData::Block(object.clone())),
        (None, Some(path)) => Ok(PluginData::File(path.into())),
        (None, None) => Ok(PluginData::None),
    }
}

/// The first two keys on the way to each plugin, however deep they are nested, in the order written.
fn labels<'a>(items: &'a [Item], above: &[&'a Key], found: &mut Vec<(&'a Key, &'a Key)>) {
    for item in items {
        let keys: Vec<&Key> = above.iter().copied().chain(&item.keys).collect();
        match (keys.as_slice(), &item.value) {
            ([type_key, name_key, ..], _) => found.push((type_key, name_key)),
            (keys, Value::Object(object)) => labels(&object.items, keys, found),
            (keys, Value::List(list)) => {
                for value in &list.values {
                    if let Value::Object(object) = value {
                        labels(&object.items, keys, found);
                    }
                }
            }
            (_, Value::Literal(_)) => {}
        }
    }
}

/// By type and name, one map for each item of the section.
fn decoded(section: &Object) -> Result<Vec<BTreeMap<String, Names>>, HclError> {
    let node = Node::Entries {
        position: section.position,
        entries: section.items.iter().map(Entry::from).collect(),
    };
    let mut blocks = Vec::new();
    blocks.decode("plugins", node)?;
    Ok(blocks)
}

#[derive(Default)]
struct Names(BTreeMap<String, PluginBlock>);

impl Decode for Names {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        self.0.decode(path, node)
    }
}
