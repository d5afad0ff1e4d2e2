//! A CA whose key is in this process: what `disk` and `awssecret` sign with.

use std::time::{Duration, SystemTime};

use ah_identity_provider::pem;
use spiffe::TrustDomain;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{MintedCa, UpstreamError, alternative_names, check_chain};
use crate::ca::X509Attributes;
use crate::ca::authority::Certificate;
use crate::ca::certificate::{Issuer, Template};
use crate::ca::name::Subject;
use crate::ca::sign::{backdated, new_serial};
use crate::keys::{LocalKey, SigningKey};

/// A part of a CA, and where it was found.
pub(super) struct Part<'a> {
    pub(super) place: &'a str,
    pub(super) pem: &'a [u8],
}

/// A CA with its key and what leads to its roots.
pub(super) struct LocalCa {
    key: LocalKey,
    certificate: Certificate,
    /// What stands between the CA below and the roots.
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

impl LocalCa {
    /// `certificate` is the CA, then its issuers; `bundle` the roots, without which the CA has to have signed itself, and
    /// `bundle_key` is how the configuration calls that.
    pub(super) fn read(
        key: &Part<'_>,
        certificate: &Part<'_>,
        bundle: Option<&Part<'_>>,
        bundle_key: &str,
        of: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, UpstreamError> {
        let place = key.place;
        let key = pem::private_key(key.pem, None)
            .map_err(|error| error.to_string())
            .and_then(|key| {
                LocalKey::from_private_key("upstream CA", &key.der())
                    .map_err(|error| error.to_string())
            })
            .map_err(|why| unable("key", place, &why))?;
        let mut chain = certificates(certificate, "cert")?;
        let roots = match bundle {
            Some(bundle) => certificates(bundle, "bundle")?,
            None if chain.len() == 1 => std::mem::take(&mut chain),
            None => {
                return Err(UpstreamError(format!(
                    "with no {bundle_key} configured only self-signed CAs are supported"
                )));
            }
        };
        let first = chain.first().or(roots.first()).cloned().unwrap_or_default();
        let place = certificate.place;
        let certificate = Certificate::read(first).map_err(|why| unable("cert", place, &why))?;
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
        Ok(Self {
            key,
            certificate,
            chain,
            roots,
        })
    }

    /// As [`super::UpstreamAuthority::mint_x509_ca`], for servers of the trust domain `of`.
    pub(super) fn mint(
        &self,
        csr: &[u8],
        ttl: Duration,
        of: &TrustDomain,
        now: SystemTime,
    ) -> Result<MintedCa, UpstreamError> {
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
        let id = of.id_string();
        if uris(&request) != [id.as_str()] {
            return Err(UpstreamError(format!(
                "unable to sign CSR: the CSR must have the URI SAN {id} alone"
            )));
        }
        let info = &request.certification_request_info;
        let end = now.checked_add(ttl).unwrap_or(self.certificate.not_after);
        let key_id = &self.certificate.key_id;
        let certificate = Template {
            serial: new_serial().map_err(failed)?,
            not_before: backdated(now),
            not_after: end.min(self.certificate.not_after),
            spki: info.subject_pki.raw,
            uri: &id,
            attributes: &X509Attributes::of(Subject::read(&info.subject)),
            is_ca: true,
        }
        .sign(&Issuer {
            name: Some(&self.certificate.name),
            key_id: (!key_id.is_empty()).then_some(key_id),
            key: &self.key,
        })
        .map_err(failed)?;
        let mut chain = vec![certificate];
        chain.extend(self.chain.iter().cloned());
        Ok(MintedCa {
            chain,
            roots: self.roots.clone(),
        })
    }
}

/// A part that cannot be used, or had.
pub(super) fn unable(what: &str, place: &str, why: &str) -> UpstreamError {
    UpstreamError(format!("unable to load upstream CA {what}: {place}: {why}"))
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

fn certificates(part: &Part<'_>, what: &str) -> Result<Vec<Vec<u8>>, UpstreamError> {
    let found = pem::certificates(part.pem)
        .map_err(|error| unable(what, part.place, &error.to_string()))?;
    Ok(found.iter().map(|der| der.to_vec()).collect())
}
