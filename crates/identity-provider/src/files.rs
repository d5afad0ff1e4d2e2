//! The `files` provider: PEM files that somebody else renews (FI-1 to FI-4).
//!
//! Three things are kept apart: `watch` knows when files look different, `load` makes an identity of what
//! they hold, and the provider here decides when to look. A change is read the moment it is seen, so that a
//! new identity is in use within milliseconds; what cannot be used yet, such as a new certificate beside the
//! old key (FI-3), is given a moment to become whole before it is reported.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, sleep_until};

use crate::{Code, Explained, Identity, Provider, ProviderError, ProviderKind};

use load::{Loaded, Loader};
use watch::{Fingerprint, Watch};

mod load;
mod watch;

/// How often the files are looked at where notification does not work. FI-2 promises two seconds.
const POLL: Duration = Duration::from_secs(1);

/// The least time between two reads, so that a storm of writes does not keep the process busy.
const READ_GAP: Duration = Duration::from_millis(20);

/// How long a pair may be incomplete before that is a fault (FI-3): tools write certificate and key one
/// after the other.
const SETTLE: Duration = Duration::from_secs(1);

/// Where the PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// Certificate chain (`--cert`).
    pub cert: PathBuf,
    /// Private key (`--key`).
    pub key: PathBuf,
    /// Roots to trust (`--ca`). At least one.
    pub ca: Vec<PathBuf>,
    /// File whose first line decrypts the key (`--key-passphrase-file`).
    pub key_passphrase_file: Option<PathBuf>,
    /// Refuse a key that group or others may read, instead of warning (`--strict-key-permissions`, FI-4).
    pub strict_key_permissions: bool,
}

impl FilesConfig {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key]
            .into_iter()
            .chain(&self.ca)
            .chain(&self.key_passphrase_file)
    }
}

/// Identities from PEM files.
pub struct FilesProvider {
    config: FilesConfig,
    loader: Loader,
    watch: Watch,
    /// What the files looked like just before they were last read.
    seen: Option<Fingerprint>,
    /// Whether to read at the next call whatever the files look like: at first, after an error, after a refresh.
    due: bool,
    /// When the files were last read.
    read_at: Option<Instant>,
    /// When the files are to be looked at again though nothing was notified.
    poll_at: Instant,
    /// An incomplete pair and when it was first met, until it is whole or [`SETTLE`] has passed.
    unsettled: Option<(Instant, ProviderError)>,
    /// Whether an identity was given before: the first read reports its faults at once.
    started: bool,
}

impl FilesProvider {
    /// A provider of the identity in these files. Reads nothing yet.
    pub fn new(config: FilesConfig) -> Self {
        Self {
            loader: Loader::new(config.clone()),
            watch: Watch::new(config.paths().cloned().collect()),
            config,
            seen: None,
            due: true,
            read_at: None,
            poll_at: Instant::now(),
            unsettled: None,
            started: false,
        }
    }

    /// A provider that relies on looking at the files alone, as on file systems that notify of nothing.
    pub fn without_notification(config: FilesConfig) -> Self {
        let mut provider = Self::new(config);
        provider.watch.disable();
        provider
    }

    /// Returns once the files look different from when they were last read. State that must outlive a dropped
    /// future is in `self`.
    async fn look_different(&mut self) {
        loop {
            let now = self.watch.look().await;
            self.poll_at = Instant::now() + POLL;
            if self.seen.as_ref() != Some(&now) {
                return;
            }
            tokio::select! {
                () = self.watch.notified() => {}
                () = sleep_until(self.poll_at) => {}
            }
        }
    }

    async fn read(&mut self) -> Result<Identity, ProviderError> {
        if let Some(read_at) = self.read_at {
            sleep_until(read_at + READ_GAP).await;
        }
        // Looked at before it is read: what is written meanwhile looks different afterwards.
        let looks = self.watch.look().await;
        let outcome = self.loader.load().await;
        self.read_at = Some(Instant::now());
        self.seen = Some(looks);
        self.due = false;
        match outcome {
            Ok(Loaded { identity, notes }) => {
                for note in notes {
                    tracing::warn!(
                        cert = %self.config.cert.display(),
                        key = %self.config.key.display(),
                        "{note}"
                    );
                }
                Ok(identity)
            }
            Err(fault) if fault.may_settle => Err(ProviderError::Retry(fault.explained)),
            Err(fault) => Err(ProviderError::Operator(fault.explained)),
        }
    }
}

impl Provider for FilesProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Files
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        loop {
            if let Some((since, fault)) = &self.unsettled {
                let (until, fault) = (*since + SETTLE, fault.clone());
                tokio::select! {
                    biased;
                    () = sleep_until(until) => {
                        self.unsettled = None;
                        self.due = true;
                        return Err(fault);
                    }
                    () = self.look_different() => {}
                }
            } else if !self.due {
                self.look_different().await;
            }
            match self.read().await {
                Ok(identity) => {
                    self.unsettled = None;
                    self.started = true;
                    return Ok(identity);
                }
                Err(ProviderError::Retry(explained)) if self.started => {
                    let since = match &self.unsettled {
                        Some((since, _)) => *since,
                        None => Instant::now(),
                    };
                    self.unsettled = Some((since, ProviderError::Operator(explained)));
                }
                Err(error) => {
                    self.unsettled = None;
                    self.due = true;
                    return Err(operator(error));
                }
            }
        }
    }

    fn refresh(&mut self) {
        self.due = true;
        self.read_at = None;
        self.unsettled = None;
        self.loader.forget();
    }

    async fn changed(&mut self) {
        self.look_different().await;
    }
}

/// What is wrong with who may read the private key `path`, if anything (FI-4). Nothing of it is read.
pub fn key_permissions(path: &Path) -> Result<Option<String>, Explained> {
    load::open_to_others(path)
}

/// The certificates of the PEM file `path`, which `--ca` named.
pub(crate) fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProviderError> {
    load::roots(path, "--ca").map_err(ProviderError::Operator)
}

/// Every fault of a file waits for whoever owns the file.
fn operator(error: ProviderError) -> ProviderError {
    match error {
        ProviderError::Retry(explained) => ProviderError::Operator(explained),
        other => other,
    }
}

/// A blocking piece of work on the files that ended without an answer: it panicked or the runtime is ending.
fn interrupted(what: &str) -> Explained {
    Explained::new(Code::Other, format!("{what} was interrupted"))
}
