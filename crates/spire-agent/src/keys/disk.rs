use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyError, KeyKind, KeyManager, NodeKey, PrivateKey};
use crate::files;

/// Keys in `keys.json` of a directory, in upstream's format.
pub struct DiskKeys {
    path: PathBuf,
    keys: Mutex<BTreeMap<String, Arc<PrivateKey>>>,
}

/// PKCS#8 DER in base64, by slot.
#[derive(Serialize, Deserialize)]
struct KeysFile {
    keys: BTreeMap<String, Zeroizing<String>>,
}

impl DiskKeys {
    /// The keys in `directory`, which is made when it is not there.
    ///
    /// A file that cannot be understood is set aside, as keys can be made anew; one that cannot be read is an error.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let path = directory.join("keys.json");
        files::create_directory(directory).map_err(|error| unusable(directory, &error))?;
        let keys = match files::read(&path).map_err(|error| unusable(&path, &error))? {
            None => BTreeMap::new(),
            Some(bytes) => match parse(&Zeroizing::new(bytes)) {
                Ok(keys) => keys,
                Err(why) => {
                    let aside = files::set_aside(&path).map_err(|error| unusable(&path, &error))?;
                    tracing::error!(
                        path = %path.display(),
                        kept_as = %aside.display(),
                        error = why,
                        "the key file cannot be understood; new keys will be made, and the node has to attest again"
                    );
                    BTreeMap::new()
                }
            },
        };
        Ok(Self {
            path,
            keys: Mutex::new(keys),
        })
    }
}

impl KeyManager for DiskKeys {
    fn name(&self) -> &str {
        "disk"
    }

    fn persists(&self) -> bool {
        true
    }

    fn generate(&self, id: &str, kind: KeyKind) -> Result<NodeKey, KeyError> {
        let key = PrivateKey::generate(kind)?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = keys.clone();
        next.insert(id.to_owned(), key.clone());
        files::put(&self.path, &encode(&next)?).map_err(|error| unusable(&self.path, &error))?;
        *keys = next;
        Ok(NodeKey::Here(key))
    }

    fn keys(&self) -> Vec<(String, NodeKey)> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter()
            .map(|(id, key)| (id.clone(), NodeKey::Here(key.clone())))
            .collect()
    }
}

impl fmt::Debug for DiskKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskKeys")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn parse(json: &[u8]) -> Result<BTreeMap<String, Arc<PrivateKey>>, String> {
    // The error of the parser may quote the file, which is a secret.
    let file: KeysFile = serde_json::from_slice(json)
        .map_err(|error| format!("line {}, column {}", error.line(), error.column()))?;
    let mut keys = BTreeMap::new();
    for (id, text) in file.keys {
        let der = STANDARD
            .decode(text.as_bytes())
            .map_err(|_| format!("key {id:?} is not base64"))?;
        let key = PrivateKey::from_pkcs8(Zeroizing::new(der))
            .map_err(|_| format!("key {id:?} is no PKCS#8 key that can be used"))?;
        keys.insert(id, key);
    }
    Ok(keys)
}

fn encode(keys: &BTreeMap<String, Arc<PrivateKey>>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let text = |key: &PrivateKey| Zeroizing::new(STANDARD.encode(key.pkcs8().as_slice()));
    let keys = keys.iter().map(|(id, key)| (id.clone(), text(key)));
    let file = KeysFile {
        keys: keys.collect(),
    };
    serde_json::to_vec_pretty(&file)
        .map(Zeroizing::new)
        .map_err(|error| KeyError::new("cannot encode the keys", error, "report this as a bug"))
}

fn unusable(path: &Path, error: &io::Error) -> KeyError {
    KeyError::new(
        format!("cannot use {} for the agent's keys", path.display()),
        error,
        "let the agent's user own the directory of KeyManager \"disk\" and let the disk have room",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_and_a_broken_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let keys = DiskKeys::open(directory.path()).unwrap();
        let made = keys.generate("agent-svid-A", KeyKind::EcP256).unwrap();
        let again = DiskKeys::open(directory.path()).unwrap();
        assert_eq!(again.keys()[0].1.spki(), made.spki());

        std::fs::write(directory.path().join("keys.json"), "{\"keys\": {\"a\"").unwrap();
        let broken = DiskKeys::open(directory.path()).unwrap();
        assert!(broken.keys().is_empty());
        assert!(directory.path().join("keys.json.corrupt").exists());
    }

    #[test]
    fn the_disk_is_asked_before_the_key_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let keys = DiskKeys::open(directory.path()).unwrap();
        let made = keys.generate("agent-svid-A", KeyKind::EcP256).unwrap();
        // What stands in the way cannot be removed as a file, whoever tries.
        std::fs::create_dir_all(directory.path().join("keys.json.tmp/x")).unwrap();
        let error = keys.generate("agent-svid-A", KeyKind::EcP256).unwrap_err();
        assert!(error.to_string().contains("keys.json"), "{error}");
        assert_eq!(keys.keys()[0].1.spki(), made.spki());
    }
}
