//! Key manager `disk`: all keys in one JSON file, in the format of upstream's plugin of that name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{KeyError, KeyManager, KeyType, LocalKey, SigningKey};

/// Six keys take 20 KiB at most.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Keys in a file that only its owner may read: `{"keys": {NAME: base64 of PKCS #8}}`. The file is replaced whole, and
/// a new key is used only after the file with it is on the disk.
pub struct DiskKeys(Arc<Inner>);

struct Inner {
    path: PathBuf,
    // Held while the file is written: what is here is what stands there.
    keys: Mutex<BTreeMap<String, Arc<LocalKey>>>,
}

impl DiskKeys {
    /// Reads the keys at `path`. No file is no keys.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let keys = match read(path)? {
            Some(text) => parse(&text)
                .map_err(|why| KeyError::Storage(format!("{}: {why}", path.display())))?,
            None => BTreeMap::new(),
        };
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            keys: Mutex::new(keys),
        })))
    }
}

impl KeyManager for DiskKeys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        let inner = self.0.clone();
        let id = id.to_owned();
        let made = tokio::task::spawn_blocking(move || inner.generate(&id, kind));
        let key = made
            .await
            .map_err(|error| KeyError::Failed(error.to_string()))??;
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(|key| key.clone() as Arc<dyn SigningKey>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(keys
            .values()
            .map(|key| key.clone() as Arc<dyn SigningKey>)
            .collect())
    }
}

impl Inner {
    fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<LocalKey>, KeyError> {
        let key = Arc::new(LocalKey::generate(id, kind)?);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = keys.clone();
        after.insert(id.to_owned(), key.clone());
        let text = render(&after)?;
        replace(&self.path, text.as_bytes()).map_err(|error| {
            KeyError::Storage(format!("cannot write {}: {error}", self.path.display()))
        })?;
        *keys = after;
        Ok(key)
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, KeyError> {
    let failed = |error: &dyn std::fmt::Display| {
        KeyError::Storage(format!("cannot read {}: {error}", path.display()))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let size = file.metadata().map_err(|error| failed(&error))?.len();
    if size > MAX_FILE_BYTES {
        return Err(failed(&"it is larger than 1 MiB, which no file of keys is"));
    }
    // All room at once: a buffer that grows leaves copies of the keys behind.
    let room = usize::try_from(size).unwrap_or(0).saturating_add(1);
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
    Ok(Some(text))
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow, default)]
    keys: Option<BTreeMap<Cow<'a, str>, Encoded<'a>>>,
}

#[derive(Deserialize)]
struct Encoded<'a>(#[serde(borrow)] Cow<'a, str>);

fn parse(text: &str) -> Result<BTreeMap<String, Arc<LocalKey>>, String> {
    let document: Document<'_> = serde_json::from_str(text)
        .map_err(|error| format!("unable to decode keys JSON: {error}"))?;
    let mut keys = BTreeMap::new();
    for (id, encoded) in document.keys.unwrap_or_default() {
        let pkcs8 = STANDARD
            .decode(encoded.0.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| format!("unable to parse key \"{id}\": not base64"))?;
        let key = LocalKey::from_pkcs8(&id, &pkcs8)
            .map_err(|error| format!("unable to make entry: {error}"))?;
        keys.insert(id.into_owned(), Arc::new(key));
    }
    Ok(keys)
}

/// With tabs, as upstream writes it.
fn render(keys: &BTreeMap<String, Arc<LocalKey>>) -> Result<Zeroizing<String>, KeyError> {
    // An RSA key of 4096 bits is 3.2 KiB of base64. Growing would leave copies of the keys behind.
    let room = keys.len().saturating_mul(4096).saturating_add(64);
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str("{\n\t\"keys\": {");
    for (at, (id, key)) in keys.iter().enumerate() {
        let pkcs8 = key.to_pkcs8()?;
        let name =
            serde_json::to_string(id).map_err(|error| KeyError::Failed(error.to_string()))?;
        text.push_str(if at == 0 { "\n\t\t" } else { ",\n\t\t" });
        text.push_str(&name);
        text.push_str(": \"");
        STANDARD.encode_string(pkcs8.as_slice(), &mut text);
        text.push('"');
    }
    text.push_str(if keys.is_empty() { "}\n}" } else { "\n\t}\n}" });
    Ok(text)
}

/// Puts a file in place whole: written beside it, brought to the disk, renamed. Nothing is left beside it when that
/// fails, and what a killed process left there is overwritten.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let written = (|| {
        remove(&beside)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = remove(&beside);
    }
    written?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
