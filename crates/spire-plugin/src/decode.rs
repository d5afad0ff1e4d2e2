//! From a tree to typed values, as HashiCorp's decoder for HCL 1 does it.
//!
//! Loose where that one is: a number may stand as a text (`bind_port = "8081"`) and a text as a number, keys match
//! without regard to case, a block may be repeated, and lists of blocks may be written as blocks (SR-3, SR-6).
//! Strict where that one is: `"true"` is no truth value.
//!
//! A plugin declares what it takes with [`config_block!`](crate::config_block) and decodes its
//! [`PluginData`](crate::catalog::PluginData):
//!
//! ```
//! use ah_spire_plugin::{config_block, decode, hcl};
//!
//! config_block! {
//!     /// What the attestor is told.
//!     pub struct K8s {
//!         /// The kubelet's port without TLS.
//!         pub read_only_port: i64 = "kubelet_read_only_port",
//!         /// Whether the kubelet's certificate is not looked at.
//!         pub skip_verification: bool = "skip_kubelet_verification",
//!     }
//! }
//!
//! let data = hcl::parse(r#"kubelet_read_only_port = "10255" oops = 1"#)?;
//! let config: K8s = decode::from_object(&data)?;
//! assert_eq!(config.read_only_port, 10255);
//! assert_eq!(config.unknown.to_string(), "\"oops\" (line 1, column 34)");
//! # Ok::<(), hcl::HclError>(())
//! ```

mod block;
mod node;
mod scalar;

use std::collections::BTreeMap;

pub use self::block::{Block, Deferred, UnknownKeys};
pub use self::node::{Entry, Node};
use crate::hcl::{HclError, Object};

/// A type that configuration can be read into.
///
/// As upstream's decoder works on variables, `decode` changes a value that may hold something already: what comes
/// twice is overwritten, added to or merged, by its type.
pub trait Decode: Default {
    /// Whether it is made of named fields.
    const IS_BLOCK: bool = false;

    /// Takes a node in. `path` names the field in errors: `agent.server_port`.
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError>;
}

/// Reads a whole object.
pub fn from_object<T: Decode>(object: &Object) -> Result<T, HclError> {
    let mut value = T::default();
    value.decode("", Node::from(object))?;
    Ok(value)
}

impl<T: Decode> Decode for Option<T> {
    const IS_BLOCK: bool = T::IS_BLOCK;

    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let mut value = self.take().unwrap_or_default();
        value.decode(path, node)?;
        *self = Some(value);
        Ok(())
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let nodes = match node {
            Node::Entries { entries, .. } => entries.into_iter().map(Node::Entry).collect(),
            node @ Node::Object(_) => vec![node],
            Node::List(list) => list.values.iter().map(Node::from).collect(),
            node => {
                let message = format!("{}expected a list, found {}", prefix(path), node.describe());
                return Err(HclError::new(node.position(), message));
            }
        };
        for (index, node) in nodes.into_iter().enumerate() {
            let node = if T::IS_BLOCK {
                node.unflattened()
            } else {
                node
            };
            let mut value = T::default();
            value.decode(&format!("{path}[{index}]"), node)?;
            self.push(value);
        }
        Ok(())
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let position = node.position();
        let Some(entries) = node.entries() else {
            let message = format!("{}expected a block of named values", prefix(path));
            return Err(HclError::new(position, message));
        };
        let mut done: Vec<&str> = Vec::new();
        for entry in &entries {
            let Some((key, labels)) = entry.keys.split_first() else {
                return Err(HclError::new(
                    position,
                    format!("{}expected a label", prefix(path)),
                ));
            };
            if done.contains(&key.name.as_str()) {
                continue;
            }
            let node = if labels.is_empty() {
                Node::from(entry.value)
            } else {
                done.push(&key.name);
                let entries = entries
                    .iter()
                    .filter_map(|entry| entry.below(&key.name))
                    .collect();
                Node::Entries {
                    position: key.position,
                    entries,
                }
            };
            let value = self.entry(key.name.clone()).or_default();
            value.decode(&node::join(path, &key.name), node)?;
        }
        Ok(())
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

/// Declares a block of configuration: the fields, and the key of each. It gets a field `unknown`, with the keys that
/// it does not know, and [`Decode`]. A field that the configuration does not set has its type's default.
#[macro_export]
macro_rules! config_block {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident {
            $( $(#[$field_meta:meta])* $field_visibility:vis $field:ident : $type:ty = $key:literal ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Default)]
        $visibility struct $name {
            $( $(#[$field_meta])* $field_visibility $field: $type, )*
            /// Keys that are none of the fields.
            pub unknown: $crate::decode::UnknownKeys,
        }

        impl $crate::decode::Decode for $name {
            const IS_BLOCK: bool = true;

            fn decode(
                &mut self,
                path: &str,
                node: $crate::decode::Node<'_>,
            ) -> ::std::result::Result<(), $crate::hcl::HclError> {
                let block = $crate::decode::Block::open(path, node)?;
                $( block.field($key, &mut self.$field)?; )*
                block.unknown(&[$($key),*], &mut self.unknown);
                Ok(())
            }
        }
    };
}
