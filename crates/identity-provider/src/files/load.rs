//! From the bytes of the files to one coherent identity, and the words for every way that fails.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{FilesConfig, interrupted};
use crate::chain::{ArrangeError, Arranged, arrange};
use crate::pem::{self, MAX_PEM_BYTES, PemError};
use crate::{Code, Explained, Identity, TrustBundles};

/// An identity and what an operator should know about the files it came from.
pub(super) struct Loaded {
    pub(super) identity: Identity,
    /// Lines for the log; empty when the files hold what they held before.
    pub(super) notes: Vec<String>,
}

/// Why the files give no identity.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) explained: Explained,
    /// Whether this is what files look like while somebody writes them (FI-3).
    pub(super) may_settle: bool,
}

impl Fault {
    fn lasting(explained: Explained) -> Self {
        Self {
            explained,
            may_settle: false,
        }
    }

    fn passing(explained: Explained) -> Self {
        Self {
            explained,
            may_settle: true,
        }
    }
}

/// Reads the files, and remembers what they gave so that unchanged bytes are not worked through again.
pub(super) struct Loader {
    config: Arc<FilesConfig>,
    last: Option<([u8; 32], Identity)>,
}

impl Loader {
    pub(super) fn new(config: FilesConfig) -> Self {
        Self {
            config: Arc::new(config),
            last: None,
        }
    }

    /// Makes the next load work through the files even if their bytes are the same.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Reads all files, off the runtime's threads: they may be on a network.
    pub(super) async fn load(&mut self) -> Result<Loaded, Fault> {
        let config = Arc::clone(&self.config);
        let last = self.last.clone();
        let work = tokio::task::spawn_blocking(move || {
            let contents = Contents::read(&config)?;
            let digest = contents.digest();
            match last {
                Some((before, identity)) if before == digest => Ok((
                    digest,
                    Loaded {
                        identity,
                        notes: Vec::new(),
                    },
                )),
                _ => contents.identity(&config).map(|loaded| (digest, loaded)),
            }
        });
        let (digest, loaded) = work
            .await
            .unwrap_or_else(|_| Err(Fault::lasting(interrupted("reading the identity's files"))))?;
        self.last = Some((digest, loaded.identity.clone()));
        Ok(loaded)
    }
}

/// The bytes of every file, read one after the other.
struct Contents {
    cert: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    passphrase: Option<Zeroizing<Vec<u8>>>,
    ca: Vec<(PathBuf, Zeroizing<Vec<u8>>)>,
    notes: Vec<String>,
}

impl Contents {
    fn read(config: &FilesConfig) -> Result<Self, Fault> {
        let mut notes = Vec::new();
        let cert = read(&config.cert, "--cert")?;
        let key = read(&config.key, "--key")?;
        if let Some(note) = check_permissions(&config.key, config.strict_key_permissions)? {
            notes.push(note);
        }
        let passphrase = match &config.key_passphrase_file {
            Some(path) => Some(read(path, "--key-passphrase-file")?),
            None => None,
        };
        let mut ca = Vec::new();
        for path in &config.ca {
            ca.push((path.clone(), read(path, "--ca")?));
        }
        Ok(Self {
            cert,
            key,
            passphrase,
            ca,
            notes,
        })
    }

    /// One digest of all: each file's own is hashed, so that no two sets of files run together.
    fn digest(&self) -> [u8; 32] {
        let mut all = Sha256::new();
        let files = [&self.cert, &self.key].into_iter();
        for bytes in files
            .chain(&self.passphrase)
            .chain(self.ca.iter().map(|(_, bytes)| bytes))
        {
            all.update(Sha256::digest(bytes.as_slice()));
        }
        all.finalize().into()
    }

    fn identity(mut self, config: &FilesConfig) -> Result<Loaded, Fault> {
        let certificates = pem::certificates(&self.cert)
            .map_err(|error| bad_pem(&config.cert, "--cert", error))?;
        let passphrase = self.passphrase.as_deref().map(|bytes| first_line(bytes));
        let key = pem::private_key(&self.key, passphrase)
            .map_err(|error| bad_pem(&config.key, "--key", error))?;
        let Arranged { chain, notes } =
            arrange(&certificates, &key).map_err(|error| bad_pair(config, error))?;
        self.notes.extend(notes);
        let mut unscoped = Vec::new();
        for (path, bytes) in &self.ca {
            for root in pem::certificates(bytes).map_err(|error| bad_pem(path, "--ca", error))? {
                if !unscoped.contains(&root) {
                    unscoped.push(root);
                }
            }
        }
        let bundles = TrustBundles {
            unscoped,
            ..TrustBundles::default()
        };
        let identity = Identity::new(chain, key, bundles).map_err(|error| {
            Fault::lasting(Explained::new(
                Code::Other,
                format!("cannot use {}: {error}", config.cert.display()),
            ))
        })?;
        Ok(Loaded {
            identity,
            notes: self.notes,
        })
    }
}

/// A passphrase is the first line of its file, so that an editor's line end does not become part of it.
fn first_line(bytes: &[u8]) -> &[u8] {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(bytes);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn read(path: &Path, flag: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let failed = |error: io::Error| unreadable(path, flag, &error);
    // Asked before it is opened: opening a pipe would wait for a writer.
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        let what = if found.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        };
        return Err(Fault::lasting(
            Explained::new(
                Code::Other,
                format!("cannot read {}: it is {what}", path.display()),
            )
            .hint(format!("name a PEM file with {flag}")),
        ));
    }
    let limit = u64::try_from(MAX_PEM_BYTES).unwrap_or(u64::MAX);
    let size = usize::try_from(found.len().min(limit)).unwrap_or(0);
    // Room for all of it at once: growing would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size.saturating_add(64)));
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(failed)?;
    Ok(bytes)
}

/// The certificates of a PEM file that holds roots. An error waits for an operator: the file is wrong as it is.
pub(super) fn roots(path: &Path, flag: &str) -> Result<Vec<CertificateDer<'static>>, Explained> {
    let bytes = read(path, flag).map_err(|fault| fault.explained)?;
    pem::certificates(&bytes).map_err(|error| bad_pem(path, flag, error).explained)
}

/// FI-4.
fn check_permissions(key: &Path, strict: bool) -> Result<Option<String>, Fault> {
    let Some(text) = mode_of(key)? else {
        return Ok(None);
    };
    let path = key.display();
    if strict {
        return Err(Fault::lasting(
            Explained::new(Code::Other, text)
                .cause("--strict-key-permissions is on")
                .hint(format!("chmod 600 {path}")),
        ));
    }
    Ok(Some(format!("{text}; close it with: chmod 600 {path}")))
}

/// As [`check_permissions`], without what to do.
pub(super) fn open_to_others(key: &Path) -> Result<Option<String>, Explained> {
    mode_of(key).map_err(|fault| fault.explained)
}

fn mode_of(key: &Path) -> Result<Option<String>, Fault> {
    let found = fs::metadata(key).map_err(|error| unreadable(key, "--key", &error))?;
    let mode = found.mode() & 0o777;
    let path = key.display();
    let text = || {
        format!("private key {path} can be read or changed by group or others (mode {mode:04o})")
    };
    Ok((mode & 0o077 != 0).then(text))
}

/// ER-8, ER-9 and whatever else a file system answers.
fn unreadable(path: &Path, flag: &str, error: &io::Error) -> Fault {
    let shown = path.display();
    match error.kind() {
        // A file is often put in place first and given to its reader afterwards.
        io::ErrorKind::PermissionDenied => Fault::passing(
            Explained::new(
                Code::PermissionDenied,
                format!("permission denied reading {shown}"),
            )
            .cause(who_may(path))
            .hint(format!(
                "let the user that this process runs as read it: sudo chown USER {shown} && sudo chmod 600 {shown} \
                 (644 for certificates); every directory above needs the x permission"
            )),
        ),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            let parent = nearest(path);
            // A file that is replaced is gone for a moment.
            Fault::passing(
                Explained::new(Code::NoSuchFile, format!("no such file: {shown}"))
                    .cause(format!(
                        "{flag} names it; the nearest directory that exists is {}",
                        parent.display()
                    ))
                    .hint(format!("ls -la {} and correct {flag}", parent.display())),
            )
        }
        _ => Fault::lasting(
            Explained::new(Code::Other, format!("cannot read {shown}: {error}"))
                .hint(format!("check the file that {flag} names")),
        ),
    }
}

/// The facts behind a refused read: who this process is, and whose the file or the closed directory is.
fn who_may(path: &Path) -> String {
    let user = fs::metadata("/proc/self").map_or_else(
        |_| "this process".to_owned(),
        |own| format!("this process runs as uid {} gid {}", own.uid(), own.gid()),
    );
    let owned = |path: &Path, found: &fs::Metadata| {
        format!(
            "{user}; {} belongs to uid {} gid {}, mode {:04o}",
            path.display(),
            found.uid(),
            found.gid(),
            found.mode() & 0o7777
        )
    };
    path.ancestors()
        .find_map(|step| fs::metadata(step).ok().map(|found| owned(step, &found)))
        .unwrap_or(user)
}

fn nearest(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().skip(1).find(|step| step.is_dir());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn bad_pem(path: &Path, flag: &str, error: PemError) -> Fault {
    let shown = path.display();
    let what = Explained::new(Code::Other, format!("cannot use {shown}: {error}"));
    let hint = match &error {
        PemError::Encrypted => format!(
            "give the passphrase in a file with --key-passphrase-file FILE, or remove it: openssl pkey -in {shown} -out {shown}.plain"
        ),
        PemError::LegacyEncrypted => format!(
            "convert it, keeping the passphrase for --key-passphrase-file: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {shown} -out {shown}.p8; \
             or remove the passphrase: openssl pkey -in {shown} -out {shown}.plain"
        ),
        PemError::WrongPassphrase => format!(
            "put the right passphrase in the first line of the file of --key-passphrase-file; openssl pkey -in {shown} -noout asks for it and says whether it is right"
        ),
        PemError::UnsupportedEncryption => format!(
            "encrypt it again in a current way: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {shown} -out {shown}.p8"
        ),
        PemError::Der if flag == "--key" => {
            format!("openssl pkey -inform DER -in {shown} -out {shown}.pem")
        }
        PemError::Der => format!("openssl x509 -inform DER -in {shown} -out {shown}.pem"),
        PemError::Utf16 => format!("iconv -f UTF-16 -t ASCII {shown} > {shown}.pem"),
        PemError::NoKey(_) => format!("{flag} names the file with the private key"),
        PemError::SeveralKeys(_) => "leave only the key of the certificate in the file".to_owned(),
        _ => format!(
            "{flag} names a PEM file; openssl storeutl -noout -text {shown} lists what it holds"
        ),
    };
    Fault {
        explained: what.hint(hint),
        may_settle: error.may_be_half_written(),
    }
}

fn bad_pair(config: &FilesConfig, error: ArrangeError) -> Fault {
    let (cert, key) = (config.cert.display(), config.key.display());
    match error {
        ArrangeError::NoLeaf {
            subject,
            certificate_key,
            private_key,
        } => Fault::passing(
            Explained::new(Code::KeyMismatch, "private key does not match certificate")
                .cause(format!(
                    "certificate {cert} ({subject}) has the public key SHA-256 {certificate_key}"
                ))
                .cause(format!(
                    "private key {key} has the public key SHA-256 {private_key}"
                ))
                .hint(format!(
                    "make or copy both together; these two must print the same: \
                     openssl x509 -in {cert} -noout -pubkey | openssl pkey -pubin -outform DER | openssl sha256 ; \
                     openssl pkey -in {key} -pubout -outform DER | openssl sha256"
                )),
        ),
        ArrangeError::Key(error) => Fault::passing(
            Explained::new(
                Code::Other,
                format!("cannot use certificate {cert} with private key {key}: {error}"),
            )
            .hint(format!(
                "openssl x509 -in {cert} -noout -text and openssl pkey -in {key} -noout -text show the kinds of key"
            )),
        ),
    }
}
