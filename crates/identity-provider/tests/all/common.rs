//! What the tests of this crate share: certificates, files to put them in, a clock to hold, log lines to read.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::files::FilesConfig;
use ah_identity_provider::{Clock, Identity, PrivateKey, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::sync::Notify;
use tracing_subscriber::fmt::MakeWriter;

/// An authority that makes leaves.
pub(crate) struct Ca {
    pub(crate) certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf and its key.
pub(crate) struct Leaf {
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
    pub(crate) der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        self.leaf_until(name, SystemTime::now() + Duration::from_secs(3600))
    }

    pub(crate) fn leaf_until(&self, name: &str, not_after: SystemTime) -> Leaf {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = not_after.into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// An authority below this one, and a leaf of it.
    pub(crate) fn intermediate(&self, name: &str) -> (Self, Leaf) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "below");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let below = Self {
            certificate,
            issuer: Issuer::new(params, key),
        };
        let leaf = below.leaf(name);
        (below, leaf)
    }

    pub(crate) fn identity(&self, leaf: &Leaf) -> Identity {
        let bundles = TrustBundles {
            unscoped: vec![self.certificate.der().clone()],
            ..TrustBundles::default()
        };
        let key = PrivateKey::pkcs8(leaf.key_der.clone());
        Identity::new(vec![leaf.der.clone()], key, bundles).unwrap()
    }
}

/// A directory with `cert.pem`, `key.pem` and `ca.pem`.
pub(crate) struct Files {
    pub(crate) dir: TempDir,
    pub(crate) ca: Ca,
}

impl Files {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("files test CA");
        let files = Self { dir, ca };
        fs::write(files.path("ca.pem"), files.ca.certificate.pem()).unwrap();
        files.put(&files.ca.leaf("first.example"));
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn put(&self, leaf: &Leaf) {
        self.put_cert(leaf);
        self.put_key(leaf);
    }

    pub(crate) fn put_cert(&self, leaf: &Leaf) {
        fs::write(self.path("cert.pem"), &leaf.cert_pem).unwrap();
    }

    pub(crate) fn put_key(&self, leaf: &Leaf) {
        write_key(&self.path("key.pem"), &leaf.key_pem);
    }

    pub(crate) fn config(&self) -> FilesConfig {
        config(self.dir.path())
    }
}

pub(crate) fn config(dir: &Path) -> FilesConfig {
    FilesConfig {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ca: vec![dir.join("ca.pem")],
        key_passphrase_file: None,
        strict_key_permissions: false,
    }
}

pub(crate) fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A clock that stands where the test puts it.
#[derive(Clone)]
pub(crate) struct HeldClock(Arc<Mutex<SystemTime>>);

impl HeldClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(SystemTime::now())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    pub(crate) fn put_back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

impl fmt::Debug for HeldClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldClock")
    }
}

impl Clock for HeldClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Keeps the log lines of this thread while the guard lives.
#[derive(Clone, Default)]
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    written: Arc<Notify>,
}

impl Log {
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn lines_with(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.text.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(word));
        lines.map(str::to_owned).collect()
    }

    /// Waits until so many lines have `word`.
    pub(crate) async fn wait_for(&self, word: &str, count: usize) {
        loop {
            let written = self.written.notified();
            if self.lines_with(word).len() >= count {
                return;
            }
            written.await;
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.written.notify_waiters();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
