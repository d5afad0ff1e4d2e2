//! Upstream authority `disk`: a CA whose certificate and key are in files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, pem};
use ah_spire_wire::model::JwtKey;
use spiffe::TrustDomain;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError, alternative_names, check_chain};
use crate::ca::X509Attributes;
use crate::ca::authority::Certificate;
use crate::ca::certificate::{Issuer, Template};
use crate::ca::name::Subject;
use crate::ca::sign::{backdated, new_serial};
use crate::keys::{LocalKey, SigningKey};

/// Signs with a CA from files, which are read anew for each CA. When they cannot be read, what was read last serves.
pub struct DiskAuthority(Arc<Inner>);

struct Inner {
    files: Files,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    last: Mutex<Arc<Loaded>>,
}

/// Where the CA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `cert_file_path`: the CA, then its issuers.
    pub certificate: PathBuf,
    /// `key_file_path`
    pub key: PathBuf,
    /// `bundle_file_path`: the roots; `None` for a CA that signed itself.
    pub bundle: Option<PathBuf>,
}

struct Loaded {
    key: LocalKey,
    certificate: Certificate,
    /// What stands between the CA below and the roots.
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

impl DiskAuthority {
    /// Reads the files once, so that a fault is found at the start.
    pub fn open(
        files: Files,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, UpstreamError> {
        let loaded = load(&files, &trust_domain, clock.now())?;
        Ok(Self(Arc::new(Inner {
            files,
            trust_domain,
            clock,
            last: Mutex::new(Arc::new(loaded)),
        })))
    }
}

impl UpstreamAuthority for DiskAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        let inner = self.0.clone();
        let csr = csr.to_vec();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || inner.mint(&csr, ttl))
                .await
                .map_err(|error| UpstreamError(error.to_string()))?
        })
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

impl Inner {
    fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, UpstreamError> {
        let now = self.clock.now();
        let ca = self.read(now);
        let malformed =
            |why: &str| UpstreamError(format!("unable to sign CSR: unable to parse CSR: {why}"));
        let (rest, request) = X509CertificationRequest::from_der(csr)
            .map_err(|error| malformed(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("trailing data"));
        }
        request
            .verify_signature()
            .map_err(|_| malformed("its signature is not valid"))?;
        let id = self.trust_domain.id_string();
        if uris(&request) != [id.as_str()] {
            return Err(UpstreamError(format!(
                "unable to sign CSR: the CSR must have the URI SAN {id} alone"
            )));
        }
        let info = &request.certification_request_info;
        let end = now.checked_add(ttl).unwrap_or(ca.certificate.not_after);
        let key_id = &ca.certificate.key_id;
        let certificate = Template {
            serial: new_serial().map_err(failed)?,
            not_before: backdated(now),
            not_after: end.min(ca.certificate.not_after),
            spki: info.subject_pki.raw,
            uri: &id,
            attributes: &X509Attributes::of(Subject::read(&info.subject)),
            is_ca: true,
        }
        .sign(&Issuer {
            name: Some(&ca.certificate.name),
            key_id: (!key_id.is_empty()).then_some(key_id),
            key: &ca.key,
        })
        .map_err(failed)?;
        let mut chain = vec![certificate];
        chain.extend(ca.chain.iter().cloned());
        Ok(MintedCa {
            chain,
            roots: ca.roots.clone(),
        })
    }

    fn read(&self, now: SystemTime) -> Arc<Loaded> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match load(&self.files, &self.trust_domain, now) {
            Ok(loaded) => *last = Arc::new(loaded),
            Err(error) => tracing::warn!(%error, "the upstream CA read last is used on"),
        }
        last.clone()
    }
}

fn failed(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError(error.to_string())
}

fn uris<'a>(request: &'a X509CertificationRequest<'_>) -> Vec<&'a str> {
    let uris = alternative_names(request).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    uris.collect()
}

fn load(files: &Files, of: &TrustDomain, now: SystemTime) -> Result<Loaded, UpstreamError> {
    let key = read(&files.key, "key")?;
    let key = pem::private_key(&key, None)
        .map_err(|error| error.to_string())
        .and_then(|key| {
            LocalKey::from_private_key("upstream CA", &key.der()).map_err(|error| error.to_string())
        })
        .map_err(|why| unable("key", &files.key, &why))?;
    let mut chain = certificates(&files.certificate, "cert")?;
    let roots = match &files.bundle {
        Some(bundle) => certificates(bundle, "bundle")?,
        None if chain.len() == 1 => std::mem::take(&mut chain),
        None => {
            return Err(UpstreamError(
                "with no bundle_file_path configured only self-signed CAs are supported".into(),
            ));
        }
    };
    let first = chain.first().or(roots.first()).cloned().unwrap_or_default();
    let certificate =
        Certificate::read(first).map_err(|why| unable("cert", &files.certificate, &why))?;
    if certificate.spki != key.spki() {
        return Err(UpstreamError(
            "unable to load upstream CA: certificate and private key do not match".into(),
        ));
    }
    check_chain(&certificate, &key, &chain, &roots, &of.id_string(), now).map_err(|why| {
        UpstreamError(format!(
            "unable to load upstream CA: certificate cannot be validated with the provided bundle or is not self-signed: {why}"
        ))
    })?;
    Ok(Loaded {
        key,
        certificate,
        chain,
        roots,
    })
}

fn certificates(path: &Path, what: &str) -> Result<Vec<Vec<u8>>, UpstreamError> {
    let bytes = read(path, what)?;
    let found =
        pem::certificates(&bytes).map_err(|error| unable(what, path, &error.to_string()))?;
    Ok(found.iter().map(|der| der.to_vec()).collect())
}

fn read(path: &Path, what: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, UpstreamError> {
    std::fs::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| unable(what, path, &error.to_string()))
}

fn unable(what: &str, path: &Path, why: &str) -> UpstreamError {
    UpstreamError(format!(
        "unable to load upstream CA {what}: {}: {why}",
        path.display()
    ))
}
