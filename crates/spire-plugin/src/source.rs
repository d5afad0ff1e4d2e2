//! The configuration file: found, read, its variables replaced, taken apart.

use std::io;
use std::path::{Component, Path, PathBuf};

use zeroize::Zeroizing;

use crate::decode::{Decode, from_object};
use crate::error::ConfigError;
use crate::goflag::Flags;
use crate::{expand, hcl};

/// A variable of the environment, by its name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A text with the name that errors give it.
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    text: Zeroizing<String>,
}

impl<'a> Source<'a> {
    /// Reads the file that `-config` names, and replaces variables with `-expandEnv`.
    pub(crate) fn read(
        flags: &'a Flags,
        default_path: &'a str,
        environment: Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let path = Path::new(flags.nonempty("config").unwrap_or(default_path));
        let text = std::fs::read_to_string(path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                return ConfigError::NotFound(absolute(path).unwrap_or_else(|_| path.to_owned()));
            }
            ConfigError::Read {
                what: "configuration",
                path: path.to_owned(),
                source,
            }
        })?;
        let text = Zeroizing::new(text);
        let text = if flags.bool("expandEnv") {
            expand::expand(&text, environment)
        } else {
            text
        };
        Ok(Self { path, text })
    }

    pub(crate) fn decode<T: Decode>(&self) -> Result<T, ConfigError> {
        let decoded = hcl::parse(&self.text).and_then(|object| from_object(&object));
        decoded.map_err(ConfigError::decode(self.path))
    }
}

/// The path from the root, with `.` and `..` resolved by their names alone, as Go's `filepath.Abs` does.
pub(crate) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// [`absolute`] for the socket that a key names.
pub(crate) fn socket(key: &str, path: &str) -> Result<PathBuf, ConfigError> {
    absolute(Path::new(path)).map_err(|why| {
        ConfigError::Rule(format!(
            "the path {path:?} of {key} cannot be made absolute: {why}"
        ))
    })
}
