//! The authority of a benchmark run: P-256 leaves directly under one root.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ah_testkit::workload_api::{Svid, Svids};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// SPIFFE trust domain of every certificate here.
pub(crate) const TRUST_DOMAIN: &str = "bench.test";

/// Files of an authority and the identity of a server under it.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub(crate) fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.dir.join("server.pem")
    }

    pub(crate) fn server_key(&self) -> PathBuf {
        self.dir.join("server.key")
    }
}

/// A certificate chain with its key.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Leaf {
    /// Puts the pair in place as a deployment tool does: each file written aside, then renamed, the key first.
    pub(crate) fn install(&self, files: &Files) -> io::Result<()> {
        replace(&files.server_key(), &self.key_pem)?;
        replace(&files.server(), &self.certificate_pem)
    }

    /// The pair as a Workload API serves it, under the root `authority`.
    pub(crate) fn svids(&self, authority: &Authority) -> Svids {
        let mut svids = Svids::default();
        svids.svids.push(Svid {
            spiffe_id: server_id(),
            x509_svid: self.certificate.to_vec(),
            x509_svid_key: self.key.secret_der().to_vec(),
            bundle: authority.certificate.to_vec(),
            hint: String::new(),
        });
        svids
    }

    /// Writes the pair into `dir` and returns the paths of certificate and key.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let certificate = dir.join(format!("{name}.pem"));
        let key = dir.join(format!("{name}.key"));
        replace(&key, &self.key_pem)?;
        replace(&certificate, &self.certificate_pem)?;
        Ok((certificate, key))
    }
}

/// Issues certificates for servers and simulated executors.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Makes a new root and writes it with a first server identity into `files`.
    pub(crate) fn create(files: &Files) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "benchmark root");
        params.subject_alt_names = vec![uri(&format!("spiffe://{TRUST_DOMAIN}"))?];
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        replace(&files.ca(), &certificate.pem())?;
        replace(&files.ca_key(), &key.serialize_pem())?;
        let authority = Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        };
        authority.server()?.install(files)?;
        Ok(authority)
    }

    /// Opens the authority that [`Self::create`] wrote.
    pub(crate) fn open(files: &Files) -> io::Result<Self> {
        let key =
            KeyPair::from_pem(&fs::read_to_string(files.ca_key())?).map_err(io::Error::other)?;
        let certificate = CertificateDer::from_pem_file(files.ca()).map_err(io::Error::other)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(io::Error::other)?;
        Ok(Self {
            issuer,
            certificate,
        })
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A server identity with a key of its own.
    pub(crate) fn server(&self) -> io::Result<Leaf> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let localhost = "localhost".try_into().map_err(io::Error::other)?;
        let names = vec![
            uri(&server_id())?,
            SanType::DnsName(localhost),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        ];
        self.leaf(&key, names)
    }

    /// The key that all simulated executors share: making one each would cost memory and measure nothing.
    pub(crate) fn executor_key() -> io::Result<KeyPair> {
        KeyPair::generate().map_err(io::Error::other)
    }

    /// The identity of executor `number`, as SPIFFE ID `spiffe://bench.test/ah/agent/<number>`.
    pub(crate) fn executor(&self, key: &KeyPair, number: u32) -> io::Result<Leaf> {
        self.leaf(key, vec![uri(&executor_id(number))?])
    }

    fn leaf(&self, key: &KeyPair, names: Vec<SanType>) -> io::Result<Leaf> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(io::Error::other)?;
        Ok(Leaf {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?,
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// SPIFFE ID of the server.
pub(crate) fn server_id() -> String {
    format!("spiffe://{TRUST_DOMAIN}/ah/access-point")
}

/// Prefix of every simulated executor's SPIFFE ID.
pub(crate) fn executor_prefix() -> String {
    format!("spiffe://{TRUST_DOMAIN}/ah/agent/")
}

/// SPIFFE ID of executor `number`.
pub(crate) fn executor_id(number: u32) -> String {
    format!("{}{number}", executor_prefix())
}

fn uri(text: &str) -> io::Result<SanType> {
    Ok(SanType::URI(text.try_into().map_err(io::Error::other)?))
}

/// `server.pem` and `server.key` must not share their file aside.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let aside = aside(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_authority_issues_under_the_root_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::at(dir.path());
        let created = Authority::create(&files).unwrap();
        let opened = Authority::open(&files).unwrap();
        assert_eq!(created.certificate(), opened.certificate());
        let key = Authority::executor_key().unwrap();
        let leaf = opened.executor(&key, 7).unwrap();
        crate::tls::verify_client_for_test(created.certificate(), &leaf.certificate);
    }
}
