//! What outlives a process: `account.json`, and for each name a file of its key and its certificates, as upstream's
//! discovery provider keeps them.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{CertificateFacts, pem};
use instant_acme::AccountCredentials;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

const ACCOUNT: &str = "account.json";

/// A certificate, and what is kept of it.
pub(super) struct Kept {
    text: Zeroizing<String>,
    pub(super) certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Kept {
    /// Reads key and certificates of `domain` in PEM.
    pub(super) fn read(domain: &str, text: &str) -> Result<Self, String> {
        let chain = pem::certificates(text.as_bytes()).map_err(|error| error.to_string())?;
        let key = pem::private_key(text.as_bytes(), None).map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("there is no certificate")?;
        let facts = CertificateFacts::from_der(leaf).map_err(|error| error.to_string())?;
        if !facts
            .dns
            .iter()
            .any(|name| name.eq_ignore_ascii_case(domain))
        {
            return Err(format!("the certificate is not for {domain}"));
        }
        let provider = aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, key.der().clone_key(), &provider);
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
            certified: Arc::new(certified.map_err(|error| error.to_string())?),
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }

    /// When it is replaced: `before` says of its life how long before its end.
    pub(super) fn before_end(&self, before: fn(Duration) -> Duration) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before);
        let before = before(life.unwrap_or_default());
        self.not_after.checked_sub(before).unwrap_or(self.not_after)
    }
}

/// The folder, if there is one.
pub(super) struct Cache(Option<PathBuf>);

impl Cache {
    /// Makes the folder where it is missing.
    pub(super) fn open(folder: Option<PathBuf>) -> Result<Self, String> {
        if let Some(folder) = &folder {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(folder);
            made.map_err(|error| {
                format!(
                    "the folder {} for ACME cannot be made: {error}",
                    folder.display()
                )
            })?;
        }
        Ok(Self(folder))
    }

    pub(super) fn certificate(&self, domain: &str) -> Result<Option<Kept>, String> {
        let Some(path) = self.path(domain) else {
            return Ok(None);
        };
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let kept = Kept::read(domain, &text);
        kept.map(Some)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(super) fn put_certificate(&self, domain: &str, kept: &Kept) -> Result<(), String> {
        self.put(domain, kept.text.as_bytes())
    }

    /// The account, if it is one of this directory.
    pub(super) fn account(&self, directory: &str) -> Option<AccountCredentials> {
        let text = read(&self.path(ACCOUNT)?).ok()??;
        let of: Value = serde_json::from_str(&text).ok()?;
        (of.get("directory")?.as_str()? == directory)
            .then(|| serde_json::from_str(&text).ok())
            .flatten()
    }

    pub(super) fn put_account(&self, account: &AccountCredentials) -> Result<(), String> {
        let text = serde_json::to_string(account).map(Zeroizing::new);
        self.put(ACCOUNT, text.map_err(|error| error.to_string())?.as_bytes())
    }

    /// The ACME server does not know it any more.
    pub(super) fn forget_account(&self) {
        if let Some(path) = self.path(ACCOUNT)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "The old ACME account cannot be removed");
        }
    }

    /// Written whole, for nobody else to read, and on the disk before the old one goes.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let Some(folder) = &self.0 else {
            return Ok(());
        };
        let path = folder.join(name);
        let put = || {
            let mut file = NamedTempFile::new_in(folder)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        put().map_err(|error: io::Error| format!("{}: {error}", path.display()))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|folder| folder.join(name))
    }
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
