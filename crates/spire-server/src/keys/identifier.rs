//! Which server keys belong to, where several servers have theirs in one place.

use std::path::PathBuf;

use uuid::Uuid;

use super::KeyError;
use super::disk::replace;

/// `key_identifier_file` or `key_identifier_value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identifier {
    /// A UUID in a file, which is made when there is none. Who loses the file loses its keys.
    File(PathBuf),
    /// As it is.
    Value(String),
}

impl Identifier {
    /// What the keys of this server are marked with.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds something else.
    pub fn read(&self) -> Result<String, KeyError> {
        let path = match self {
            Self::Value(value) => return Ok(value.clone()),
            Self::File(path) => path,
        };
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            KeyError::Storage(format!(
                "cannot {what} key_identifier_file {}: {why}",
                path.display()
            ))
        };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let id = Uuid::try_parse(text.trim());
                let id = id.map_err(|_| failed("use", &"it holds no UUID; put the server's own back, or remove it to begin with new keys"))?;
                Ok(id.to_string())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = Uuid::new_v4().to_string();
                replace(path, id.as_bytes()).map_err(|error| failed("write", &error))?;
                Ok(id)
            }
            Err(error) => Err(failed("read", &error)),
        }
    }
}

/// The name of a new key of `server`, which no other key ever had: `SERVER-UUID-ID`, as upstream has it.
pub(super) fn name_of(server: &str, unique: Uuid, id: &str) -> String {
    format!("{server}-{unique}-{id}")
}

/// What is in such a name; `None` for keys of others.
pub(super) fn parts_of<'a>(server: &str, name: &'a str) -> Option<(Uuid, &'a str)> {
    let rest = name.strip_prefix(server)?.strip_prefix('-')?;
    let (unique, id) = rest.split_at_checked(36)?;
    let id = id.strip_prefix('-').filter(|id| !id.is_empty())?;
    Some((Uuid::try_parse(unique).ok()?, id))
}
