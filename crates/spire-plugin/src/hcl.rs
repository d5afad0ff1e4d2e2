//! HCL 1, the language of SPIRE's configuration files, and its JSON form (SR-6).
//!
//! Read as HashiCorp's library of version 1 reads it, which later ones do not: several attributes on one line,
//! `key = { }` and `key { }` alike, quoted and bare keys, labels, repeated blocks.
//!
//! ```
//! let text = r#"agent { data_dir = "./data" server_port = 8081 } plugins { NodeAttestor "join_token" { plugin_data {} } }"#;
//! let object = ah_spire_plugin::hcl::parse(text)?;
//! assert_eq!(object.items.len(), 2);
//! # Ok::<(), ah_spire_plugin::hcl::HclError>(())
//! ```

mod ast;
mod heredoc;
mod json;
mod number;
mod parser;
mod print;
mod quoted;
mod scanner;

use zeroize::Zeroizing;

pub use self::ast::{Item, Key, KeyStyle, List, Literal, Object, Position, Scalar, Value};
pub use self::print::print;

/// Texts above this size are refused, in bytes. A configuration has some thousand.
pub const MAX_SIZE: usize = 4 * 1024 * 1024;
/// Blocks and lists nested deeper are refused.
pub const MAX_DEPTH: usize = 100;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {message}")]
pub struct HclError {
    /// Where reading stopped.
    pub position: Position,
    /// What was expected and what was found. No texts of the configuration are told, since they may be secrets.
    pub message: String,
}

impl HclError {
    pub(crate) fn new(position: Position, message: impl Into<String>) -> Self {
        Self {
            position,
            message: message.into(),
        }
    }
}

/// Reads HCL 1, or JSON when the first character is `{`.
pub fn parse(text: &str) -> Result<Object, HclError> {
    if text.len() > MAX_SIZE {
        return Err(HclError::new(
            Position::START,
            format!(
                "the text has {} bytes; at most {MAX_SIZE} are read",
                text.len()
            ),
        ));
    }
    if text.trim_start().starts_with('{') {
        return json::parse(text);
    }
    // Upstream's scanner knows \n alone.
    let text = Zeroizing::new(text.replace("\r\n", "\n"));
    parser::parse(&text)
}

/// Counts one level down, up to [`MAX_DEPTH`].
fn deeper(depth: usize, position: Position) -> Result<usize, HclError> {
    if depth >= MAX_DEPTH {
        let message = format!("blocks and lists are nested more than {MAX_DEPTH} deep");
        return Err(HclError::new(position, message));
    }
    Ok(depth + 1)
}
