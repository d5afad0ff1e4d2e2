//! A tree as the decoder walks it: with keys that were already followed cut off.

use crate::hcl::{Item, Key, List, Literal, Object, Position, Value};

/// A place in a tree.
#[derive(Clone)]
pub enum Node<'a> {
    /// A text, number or truth value.
    Literal(&'a Literal),
    /// A list.
    List(&'a List),
    /// An object that was reached as a value.
    Object(&'a Object),
    /// One item, as an element of a list of items.
    Entry(Entry<'a>),
    /// Several items.
    Entries {
        /// Where they begin.
        position: Position,
        /// In the order written.
        entries: Vec<Entry<'a>>,
    },
}

/// An [`Item`] of which some keys may have been followed already.
#[derive(Clone)]
pub struct Entry<'a> {
    /// The keys that are left.
    pub keys: &'a [Key],
    /// What they lead to.
    pub value: &'a Value,
}

impl<'a> From<&'a Item> for Entry<'a> {
    fn from(item: &'a Item) -> Self {
        Self {
            keys: &item.keys,
            value: &item.value,
        }
    }
}

impl<'a> Entry<'a> {
    /// The entry behind its first key, if that is the one.
    pub(crate) fn below(&self, name: &str) -> Option<Self> {
        let (key, keys) = self.keys.split_first()?;
        key.name.eq_ignore_ascii_case(name).then_some(Self {
            keys,
            value: self.value,
        })
    }

    pub(super) fn position(&self) -> Position {
        self.keys
            .first()
            .map_or_else(|| self.value.position(), |key| key.position)
    }
}

impl<'a> From<&'a Object> for Node<'a> {
    fn from(object: &'a Object) -> Self {
        Self::Object(object)
    }
}

impl<'a> From<&'a Value> for Node<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Literal(literal) => Self::Literal(literal),
            Value::List(list) => Self::List(list),
            Value::Object(object) => Self::Object(object),
        }
    }
}

impl<'a> Node<'a> {
    /// Where it begins.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Literal(literal) => literal.position,
            Self::List(list) => list.position,
            Self::Object(object) => object.position,
            Self::Entry(entry) => entry.position(),
            Self::Entries { position, .. } => *position,
        }
    }

    /// What it is, for errors.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Literal(literal) => literal.scalar.kind(),
            Self::List(_) => "a list",
            Self::Object(_) | Self::Entry(_) | Self::Entries { .. } => "a block",
        }
    }

    /// The items, where there are some.
    pub(super) fn entries(self) -> Option<Vec<Entry<'a>>> {
        match self {
            Self::Object(object) => Some(object.items.iter().map(Entry::from).collect()),
            Self::Entry(entry) => Some(vec![entry]),
            Self::Entries { entries, .. } => Some(entries),
            Self::Literal(_) | Self::List(_) => None,
        }
    }

    /// The object that JSON's flattening turned into two keys, where a block has to be read from it.
    pub(super) fn unflattened(self) -> Self {
        let position = self.position();
        match self {
            Self::Entry(Entry {
                keys: [_, inner],
                value,
            }) => {
                let keys = std::slice::from_ref(inner);
                let entries = vec![Entry { keys, value }];
                Self::Entries { position, entries }
            }
            node => node,
        }
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    let separator = if path.is_empty() { "" } else { "." };
    format!("{path}{separator}{}", name.escape_debug())
}
