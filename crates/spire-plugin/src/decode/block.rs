//! Blocks with named fields, and blocks that are decoded later.

use std::collections::BTreeMap;
use std::fmt;

use super::node::join;
use super::{Decode, Entry, Node, prefix};
use crate::hcl::{HclError, Item, Key, KeyStyle, Object, Position, Value};

/// The items of a block, to be taken field by field. [`config_block!`](crate::config_block) writes the calls.
pub struct Block<'a> {
    path: String,
    entries: Vec<Entry<'a>>,
}

impl<'a> Block<'a> {
    /// Opens a node as a block.
    pub fn open(path: &str, node: Node<'a>) -> Result<Self, HclError> {
        let position = node.position();
        let wrong = |found: &str| {
            let message = format!("{}expected a block, found {found}", prefix(path));
            HclError::new(position, message)
        };
        let found = node.describe();
        let entries = match node {
            Node::Entry(entry) => match entry.value {
                Value::Object(object) => Node::Object(object).entries(),
                value => return Err(wrong(Node::from(value).describe())),
            },
            node => node.entries(),
        };
        Ok(Self {
            path: path.to_owned(),
            entries: entries.ok_or_else(|| wrong(found))?,
        })
    }

    /// Decodes what the key leads to, if it is there, into the field.
    pub fn field<T: Decode>(&self, key: &str, field: &mut T) -> Result<(), HclError> {
        let path = join(&self.path, key);
        let found = self.entries.iter().filter_map(|entry| entry.below(key));
        let (plain, labelled): (Vec<_>, Vec<_>) = found.partition(|entry| entry.keys.is_empty());
        if let Some(first) = labelled.first() {
            let position = first.position();
            field.decode(
                &path,
                Node::Entries {
                    position,
                    entries: labelled,
                },
            )?;
        }
        for entry in plain {
            field.decode(&path, Node::from(entry.value))?;
        }
        Ok(())
    }

    /// Adds the keys that are none of those known.
    ///
    /// As upstream does it, quoted keys are not looked at, nor labelled blocks but for the first item. In JSON the
    /// inner keys of a flattened object are not taken for keys of this block, which upstream sometimes does.
    pub fn unknown(&self, known: &[&str], unknown: &mut UnknownKeys) {
        for (index, entry) in self.entries.iter().enumerate() {
            if index > 0 && entry.keys.len() > 1 {
                continue;
            }
            for (level, key) in entry.keys.iter().enumerate() {
                let counts = match key.style {
                    KeyStyle::Bare => true,
                    KeyStyle::Quoted => false,
                    KeyStyle::Json => level == 0,
                };
                if counts
                    && !known
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(&key.name))
                {
                    unknown.add(key, known);
                }
            }
        }
    }
}

/// Keys that a block does not have, with their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownKeys(BTreeMap<String, Unknown>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Unknown {
    positions: Vec<Position>,
    /// A key that the block does have and that may have been meant.
    nearest: Option<String>,
}

impl UnknownKeys {
    /// Whether all keys are known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys in alphabetical order, each with every place where it stands.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Position])> {
        self.0
            .iter()
            .map(|(key, unknown)| (key.as_str(), unknown.positions.as_slice()))
    }

    fn add(&mut self, key: &Key, known: &[&str]) {
        let unknown = self.0.entry(key.name.clone()).or_insert_with(|| Unknown {
            positions: Vec::new(),
            nearest: nearest(&key.name, known),
        });
        unknown.positions.push(key.position);
    }
}

/// The known key with the fewest letters to change, at most a third of them.
fn nearest(key: &str, known: &[&str]) -> Option<String> {
    // No known key is nearly as long, and the search takes space by length.
    if key.len() > 80 {
        return None;
    }
    let key = key.to_ascii_lowercase();
    let distance = |known: &str| strsim::damerau_levenshtein(&key, &known.to_ascii_lowercase());
    let (distance, nearest) = known.iter().map(|known| (distance(known), *known)).min()?;
    (distance * 3 <= nearest.len()).then(|| nearest.to_owned())
}

impl fmt::Display for UnknownKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, unknown)) in self.0.iter().enumerate() {
            let places: Vec<String> = unknown.positions.iter().map(Position::to_string).collect();
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{key:?} ({}", places.join("; "))?;
            if let Some(nearest) = &unknown.nearest {
                write!(f, "; did you mean {nearest:?}?")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// A block that somebody else decodes. Given twice, it is refused: upstream would silently drop the second.
#[derive(Clone, Default)]
pub struct Deferred(pub Option<Object>);

impl Decode for Deferred {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let position = node.position();
        if let Some(first) = &self.0 {
            let message = format!(
                "{}given a second time; put everything into the first one ({})",
                prefix(path),
                first.position
            );
            return Err(HclError::new(position, message));
        }
        let found = node.describe();
        let Some(entries) = node.entries() else {
            let message = format!("{}expected a block, found {found}", prefix(path));
            return Err(HclError::new(position, message));
        };
        let items = entries
            .into_iter()
            .map(|entry| Item {
                keys: entry.keys.to_vec(),
                value: entry.value.clone(),
            })
            .collect();
        self.0 = Some(Object { position, items });
        Ok(())
    }
}
