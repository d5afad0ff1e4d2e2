//! Why a configuration cannot be used.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::decode::UnknownKeys;
use crate::hcl::HclError;

/// Why there is no configuration. `Display` is for the operator and names file, place and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("could not find config file {}: please use the -config flag", .0.display())]
    NotFound(PathBuf),
    /// A file cannot be read.
    #[error("unable to read {what} at {path:?}: {source}")]
    Read {
        /// What it is for.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is neither HCL 1 nor JSON, or a value does not fit its key.
    #[error("unable to decode configuration at {}:{}:{}: {}", .path.display(), .error.position.line, .error.position.column, .error.message)]
    Decode {
        /// Which file.
        path: PathBuf,
        /// What is wrong in it.
        error: HclError,
    },
    /// Keys that do not exist.
    #[error("unknown configuration detected in {}: {}", .path.display(), list(.sections))]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// The keys by section.
        sections: Vec<(String, UnknownKeys)>,
    },
    /// A rule about values is broken. The text names the keys.
    #[error("{0}")]
    Rule(String),
}

impl ConfigError {
    pub(crate) fn rule<T>(text: impl Into<String>) -> Result<T, Self> {
        Err(Self::Rule(text.into()))
    }

    pub(crate) fn decode(path: &Path) -> impl Fn(HclError) -> Self + '_ {
        |error| Self::Decode {
            path: path.to_owned(),
            error,
        }
    }
}

fn list(sections: &[(String, UnknownKeys)]) -> String {
    let mut text = String::new();
    for (index, (section, keys)) in sections.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let _ = write!(text, "{separator}{section}: {keys}");
    }
    text
}

/// Collects unknown keys of the sections in which upstream looks for them.
#[derive(Default)]
pub(crate) struct UnknownSections(Vec<(String, UnknownKeys)>);

impl UnknownSections {
    pub(crate) fn look(&mut self, section: &str, keys: &UnknownKeys) {
        if !keys.is_empty() {
            self.0.push((section.to_owned(), keys.clone()));
        }
    }

    pub(crate) fn into_result(self, path: &Path) -> Result<(), ConfigError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Unknown {
            path: path.to_owned(),
            sections: self.0,
        })
    }
}
