//! What a configuration says, with the place where it says it.
//!
//! None of these types can be printed by `Debug`: a configuration holds join tokens and passwords.

use std::fmt;

use zeroize::Zeroizing;

/// A place in a text. Both count from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

impl Position {
    /// The first character.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// The items between two braces, or a whole text.
#[derive(Clone)]
pub struct Object {
    /// Its opening brace.
    pub position: Position,
    /// In the order written. A key may come more than once.
    pub items: Vec<Item>,
}

/// `key = value`, `key { … }` or `key "label" { … }`.
#[derive(Clone)]
pub struct Item {
    /// At least one. More than one only before an [`Object`].
    pub keys: Vec<Key>,
    /// What they name.
    pub value: Value,
}

/// A key or label.
#[derive(Clone)]
pub struct Key {
    /// Where it begins.
    pub position: Position,
    /// Without quotes.
    pub name: String,
    /// How it was written.
    pub style: KeyStyle,
}

/// How a key was written. SPIRE looks for unknown keys among bare ones and those of JSON, not among quoted ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStyle {
    /// `key`
    Bare,
    /// `"key"`
    Quoted,
    /// `"key"` in JSON.
    Json,
}

/// Anything that can stand behind a key.
#[derive(Clone)]
pub enum Value {
    /// A text, number or truth value.
    Literal(Literal),
    /// `[…]`
    List(List),
    /// `{…}`
    Object(Object),
}

/// A text, number or truth value.
#[derive(Clone)]
pub struct Literal {
    /// Where it begins.
    pub position: Position,
    /// What it is.
    pub scalar: Scalar,
}

/// The value of a [`Literal`]. Numbers stay as written, since what they become depends on the field.
#[derive(Clone)]
pub enum Scalar {
    /// A whole number: decimal, `0x…` or octal `0…`.
    Number(Zeroizing<String>),
    /// A number with fraction or exponent.
    Float(String),
    /// `true` or `false`.
    Bool(bool),
    /// A quoted text or heredoc, escapes resolved.
    Text(Zeroizing<String>),
}

/// `[…]`
#[derive(Clone)]
pub struct List {
    /// Its opening bracket.
    pub position: Position,
    /// In the order written.
    pub values: Vec<Value>,
}

impl Value {
    /// Where it begins.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Literal(literal) => literal.position,
            Self::List(list) => list.position,
            Self::Object(object) => object.position,
        }
    }
}

impl Scalar {
    /// The kind as errors name it; never the value, which may be a secret.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Number(_) => "a number",
            Self::Float(_) => "a number with a fraction",
            Self::Bool(_) => "true or false",
            Self::Text(_) => "a text",
        }
    }
}
