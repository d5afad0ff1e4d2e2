//! The development authority on disk: made once, under a lock, whole or not at all (DV-1).
//!
//! `ca-key.pem` is put in place before `ca.pem`, and an authority that nears its end gets a new certificate for
//! the same key. So a process killed between any two steps leaves either a usable authority or a key without
//! a certificate, which the next process completes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{BACKDATE, TRUST_DOMAIN, random_serial};
use crate::pem::{self, MAX_PEM_BYTES};
use crate::put::put;
use crate::{CertificateFacts, Code, Explained, PrivateKey, keys_match};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Ten years, less a little.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The authority is made anew when less than this is left of it, or than twice a certificate's life.
const CA_MARGIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// An authority ready to issue.
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_after: SystemTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// What was done to have it, when it was not simply read.
    pub(super) made: Option<Made>,
}

/// Why a new CA certificate was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// There was none.
    First,
    /// The one there was had this much life left, too little, or was not valid yet.
    Anew(Duration),
}

impl Made {
    pub(super) fn log(self, path: &Path) {
        match self {
            Self::First => tracing::info!(path = %path.display(), "development CA made"),
            Self::Anew(left) => tracing::warn!(
                path = %path.display(),
                days_left = left.as_secs() / DAY.as_secs(),
                "development CA certificate expired, about to expire or not yet valid: made anew for the same key"
            ),
        }
    }
}

/// Where the authority is kept.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
    margin: Duration,
}

impl Store {
    pub(super) fn new(state_dir: &Path, cert_lifetime: Duration) -> Self {
        Self {
            directory: state_dir.join("dev"),
            margin: CA_MARGIN.max(cert_lifetime.saturating_mul(2)),
        }
    }

    /// Reads the authority, or makes it. Blocks while another process does either.
    pub(super) fn authority(&self, now: SystemTime) -> Result<Authority, Explained> {
        let _lock = self.lock()?;
        let key = match self.read("ca-key.pem")? {
            Some(bytes) => Some(self.parse_key(&bytes)?),
            None => None,
        };
        let Some(pem) = self.read("ca.pem")? else {
            let key = match key {
                Some((_, pair)) => pair,
                None => self.make_key()?,
            };
            return self.make_certificate(key, now, Made::First);
        };
        let certificate = self.parse_certificate(&pem)?;
        let Some((key, pair)) = key else {
            return Err(self.corrupt("ca-key.pem", "it is gone, but ca.pem is there"));
        };
        match keys_match(&key, &certificate) {
            Ok(true) => {}
            Ok(false) => return Err(self.corrupt("ca-key.pem", "it is not the key of ca.pem")),
            Err(error) => return Err(self.corrupt("ca-key.pem", &error.to_string())),
        }
        let facts = CertificateFacts::from_der(&certificate)
            .map_err(|error| self.corrupt("ca.pem", &error.to_string()))?;
        if !facts.is_ca {
            return Err(self.corrupt("ca.pem", "it is not a CA certificate"));
        }
        let left = facts.not_after.duration_since(now).unwrap_or_default();
        if left < self.margin || facts.not_before > now {
            return self.make_certificate(pair, now, Made::Anew(left));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)
            .map_err(|error| self.corrupt("ca.pem", &error.to_string()))?;
        Ok(Authority {
            certificate,
            not_after: facts.not_after,
            issuer,
            made: None,
        })
    }

    /// The lock of all who read or make this authority, held until it is dropped.
    fn lock(&self) -> Result<File, Explained> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| self.failed("create", &self.directory, &error))?;
        let path = self.path("lock");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.failed("open", &path, &error))?;
        file.lock()
            .map_err(|error| self.failed("lock", &path, &error))?;
        Ok(file)
    }

    fn make_key(&self) -> Result<KeyPair, Explained> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unexpected)?;
        let pem = Zeroizing::new(pair.serialize_pem());
        self.write("ca-key.pem", pem.as_bytes(), 0o600)?;
        Ok(pair)
    }

    /// Obeys SV-24, SV-27, SV-29 and SV-30.
    fn make_certificate(
        &self,
        key: KeyPair,
        now: SystemTime,
        made_as: Made,
    ) -> Result<Authority, Explained> {
        let not_after = now.checked_add(CA_LIFETIME).unwrap_or(now);
        let mut params = CertificateParams::default();
        params.not_before = now.checked_sub(BACKDATE.max(DAY)).unwrap_or(now).into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let id = format!("spiffe://{TRUST_DOMAIN}");
        params.subject_alt_names = vec![SanType::URI(id.try_into().map_err(unexpected)?)];
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "ah development CA");
        let made = params.self_signed(&key).map_err(unexpected)?;
        self.write("ca.pem", made.pem().as_bytes(), 0o644)?;
        let certificate = made.der().clone();
        let facts = CertificateFacts::from_der(&certificate).map_err(unexpected)?;
        Ok(Authority {
            issuer: Issuer::from_ca_cert_der(&certificate, key).map_err(unexpected)?,
            certificate,
            not_after: facts.not_after,
            made: Some(made_as),
        })
    }

    fn parse_key(&self, bytes: &[u8]) -> Result<(PrivateKey, KeyPair), Explained> {
        let key = pem::private_key(bytes, None)
            .map_err(|error| self.corrupt("ca-key.pem", &error.to_string()))?;
        let pair = KeyPair::try_from(&key.der())
            .map_err(|error| self.corrupt("ca-key.pem", &error.to_string()))?;
        Ok((key, pair))
    }

    fn parse_certificate(&self, bytes: &[u8]) -> Result<CertificateDer<'static>, Explained> {
        let mut found = pem::certificates(bytes)
            .map_err(|error| self.corrupt("ca.pem", &error.to_string()))?
            .into_iter();
        match (found.next(), found.next()) {
            (Some(certificate), None) => Ok(certificate),
            _ => Err(self.corrupt("ca.pem", "it holds more than one certificate")),
        }
    }

    /// The file's bytes, or `None` where there is no such file.
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Explained> {
        let path = self.path(name);
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        let limit = u64::try_from(MAX_PEM_BYTES).unwrap_or(u64::MAX);
        match File::open(&path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", &path, &error)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), Explained> {
        let path = self.path(name);
        put(&path, bytes, mode).map_err(|error| self.failed("write", &path, &error))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn failed(&self, what: &str, path: &Path, error: &io::Error) -> Explained {
        let shown = path.display();
        let hint = "the development CA lives in <state>/dev: set STATE_DIRECTORY or XDG_STATE_HOME to a directory \
                    that this user may write, or mend the permissions";
        if error.kind() == io::ErrorKind::PermissionDenied && what == "read" {
            let text = format!("permission denied reading {shown}");
            return Explained::new(Code::PermissionDenied, text).hint(hint);
        }
        Explained::new(
            Code::Other,
            format!("cannot {what} {shown} for the development CA: {error}"),
        )
        .hint(hint)
    }

    fn corrupt(&self, name: &str, why: &str) -> Explained {
        let directory = self.directory.display();
        Explained::new(
            Code::Other,
            format!("the development CA cannot be used: {}", self.path(name).display()),
        )
        .cause(why)
        .hint(format!(
            "remove it, and every dev process makes and trusts a new one at its next start: rm -r {directory}"
        ))
    }
}

fn unexpected(error: impl std::fmt::Display) -> Explained {
    Explained::new(
        Code::Other,
        format!("cannot make the development CA: {error}"),
    )
}
