//! SVIDStore `directory`: PEM files for programs that read files.
//!
//! ```text
//! <path>/<name>/tls.crt ─► current/tls.crt       chain, leaf first
//!               tls.key ─► current/tls.key       PKCS #8, mode 0600
//!               ca.crt  ─► current/ca.crt        roots of the own trust domain
//!               federated-<domain>.crt           roots of those that the entry federates with, in `current`
//!               current ─► svid-<number>         the one link that is ever replaced
//! ```
//!
//! A reader sees the old files or the new ones and never a key beside another key's certificate.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use ah_spire_plugin_host::svids::StoredSvid;
use tokio::task::spawn_blocking;

use super::secret::{certificates, private_key};
use super::{StoreFault, SvidStore, parse_metadata};

/// What leads to the files of now.
const CURRENT: &str = "current";

/// Folders of files begin with it.
const GENERATION: &str = "svid-";

/// The files that every SVID has.
const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Folders below one that the configuration names.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Below `path`, which is made if it is missing.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn folder(&self, metadata: &[String]) -> Result<PathBuf, StoreFault> {
        let metadata = parse_metadata(metadata)?;
        if let Some(other) = metadata.keys().find(|key| **key != "name") {
            return Err(StoreFault::Malformed(format!(
                "selector \"directory:{other}:…\" is not known: use \"directory:name:NAME\""
            )));
        }
        let name = metadata.get("name").copied().unwrap_or_default();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(fits) {
            return Err(StoreFault::Malformed(format!(
                "selector \"directory:name:{name}\" has to name a folder: letters, digits, '-', '_' and '.'"
            )));
        }
        Ok(self.path.join(name))
    }
}

#[tonic::async_trait]
impl SvidStore for Directory {
    fn name(&self) -> &str {
        "directory"
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault> {
        let (folder, svid) = (self.folder(metadata)?, svid.clone());
        on_disk(folder, move |folder| put(folder, &svid)).await
    }

    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault> {
        let folder = self.folder(metadata)?;
        on_disk(folder, delete).await
    }
}

async fn on_disk(
    folder: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<(), StoreFault> {
    let shown = folder.display().to_string();
    let done = spawn_blocking(move || work(&folder)).await;
    done.map_err(|error| StoreFault::Failed(error.to_string()))?
        .map_err(|error| StoreFault::Failed(format!("{shown}: {error}")))
}

fn put(folder: &Path, svid: &StoredSvid) -> io::Result<()> {
    // Who may read what is below is for the operator to say; files of keys are private all the same.
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)?;
    let old = current(folder)?;
    let mut number = 1_u64;
    let generation = loop {
        let name = format!("{GENERATION}{number}");
        if old.as_deref() != Some(name.as_str()) {
            break name;
        }
        number = number.saturating_add(1);
    };
    let inner = folder.join(&generation);
    // One that was left half made.
    remove_folder(&inner)?;
    DirBuilder::new().mode(0o755).create(&inner)?;
    let mut files = vec![
        ("tls.crt".to_owned(), certificates(&svid.chain), 0o644),
        ("ca.crt".to_owned(), certificates(&svid.bundle), 0o644),
    ];
    for (domain, roots) in &svid.federated {
        files.push((
            format!("federated-{domain}.crt"),
            certificates(roots),
            0o644,
        ));
    }
    for (name, text, mode) in &files {
        write(&inner.join(name), text.as_bytes(), *mode)?;
    }
    write(&inner.join("tls.key"), private_key(svid).as_bytes(), 0o600)?;
    File::open(&inner)?.sync_all()?;

    let beside = folder.join("current.new");
    remove_file(&beside)?;
    symlink(&generation, &beside)?;
    fs::rename(&beside, folder.join(CURRENT))?;
    for name in FILES {
        link(folder, name)?;
    }
    File::open(folder)?.sync_all()?;
    // Whoever has read the link before reads the old files to their end: open files stay.
    if let Some(old) = old {
        remove_folder(&folder.join(old))?;
    }
    Ok(())
}

/// The folder that the link leads to.
fn current(folder: &Path) -> io::Result<Option<String>> {
    match fs::read_link(folder.join(CURRENT)) {
        Ok(target) => {
            let name = target.to_str().filter(|name| name.starts_with(GENERATION));
            Ok(name.filter(|name| !name.contains('/')).map(str::to_owned))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn link(folder: &Path, name: &str) -> io::Result<()> {
    let target = Path::new(CURRENT).join(name);
    match symlink(target, folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What is not ours stays, and the folder with it.
fn delete(folder: &Path) -> io::Result<()> {
    let old = match current(folder) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in FILES.into_iter().chain([CURRENT]) {
        remove_file(&folder.join(name))?;
    }
    if let Some(old) = old {
        remove_folder(&folder.join(old))?;
    }
    match fs::remove_dir(folder) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    gone(fs::remove_file(path))
}

fn remove_folder(path: &Path) -> io::Result<()> {
    gone(fs::remove_dir_all(path))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
