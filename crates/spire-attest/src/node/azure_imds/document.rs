//! The attested document, and why it is believed.

use std::time::SystemTime;

use ah_identity_provider::pem;
use ah_spire_wire::azure::Azure;
use ah_spire_wire::http_client::HttpClient;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::node::cms::Signed;
use crate::node::x509pop::chain::{Root, signers};

/// Who publishes the certificates between the roots and the metadata service's.
const ISSUER_HOST: &str = "www.microsoft.com";

/// `id-ad-caIssuers` (RFC 5280 §4.2.2.1)
const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";

/// How many certificates of a document are looked at.
const MAX_CERTIFICATES: usize = 8;

/// The roots that Azure's chains end in.
pub(super) const ROOTS: &str = include_str!("roots.pem");

/// What of a document counts here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) subscription_id: String,
    pub(super) vm_id: String,
    pub(super) nonce: String,
}

impl Document {
    /// What `signature` (base64) holds, if the metadata service of one of `domains` signed it.
    pub(super) async fn believed(
        signature: &str,
        domains: &[String],
        roots: &[Root],
        azure: &Azure,
        now: SystemTime,
    ) -> Result<Self, String> {
        if signature.is_empty() {
            return Err("missing signature in attested document".into());
        }
        let bytes = STANDARD
            .decode(signature)
            .map_err(|error| format!("failed to decode signature: {error}"))?;
        let signed = Signed::parse(&bytes)
            .map_err(|error| format!("failed to parse PKCS7 signature: {error}"))?;
        if signed.certificates.is_empty() {
            return Err("no certificates found in PKCS7 signature".into());
        }
        if signed.certificates.len() > MAX_CERTIFICATES {
            return Err("the document has more certificates than Azure's have".into());
        }
        let mut named = signed.certificates.iter();
        let signer = named.find(|certificate| signed.names(certificate));
        let signer = signer.ok_or("expected exactly one signer certificate in PKCS7 signature")?;
        let content = signed
            .verified(signer)
            .map_err(|error| format!("signature verification failed: {error}"))?;
        let url = check(signer, domains)?;
        let mut chain = vec![CertificateDer::from(signer.as_slice())];
        chain.push(intermediate(&url, azure).await?);
        let others = signed.certificates.iter().filter(|other| *other != signer);
        chain.extend(others.map(|other| CertificateDer::from(other.as_slice())));
        signers(&chain, roots, now)
            .map_err(|error| format!("certificate chain validation failed: {}", error.why))?;
        serde_json::from_slice(content)
            .map_err(|error| format!("failed to unmarshal attested document payload: {error}"))
    }
}

/// Where the issuer's certificate is, of a certificate that is of one of `domains` or below.
fn check(certificate: &[u8], domains: &[String]) -> Result<Uri, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("the signing certificate: {error}");
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|error| unreadable(&error))?;
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let names: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    let fits = |name: &str| {
        domains.iter().any(|domain| {
            name.strip_suffix(domain.as_str())
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    };
    if !names.iter().any(|name| fits(name)) {
        return Err(format!(
            "signing certificate validation failed: certificate does not have any valid domain in SAN (found SANs={names:?}, allowed domains={domains:?})"
        ));
    }
    let access = certificate.extensions().iter();
    let access = access.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => Some(access),
        _ => None,
    });
    let mut issuers = access
        .flat_map(|access| &access.accessdescs)
        .filter(|access| access.access_method.to_id_string() == CA_ISSUERS);
    let url = issuers.find_map(|issuer| match &issuer.access_location {
        GeneralName::URI(url) => Some(*url),
        _ => None,
    });
    let url = url.ok_or("no CA Issuers URL found in certificate")?;
    let uri: Uri = url
        .parse()
        .map_err(|error| format!("failed to parse CA Issuers URL: {error}"))?;
    match uri.host() {
        Some(ISSUER_HOST) => Ok(uri),
        other => Err(format!(
            "CA Issuers URL host {:?} does not match expected value {ISSUER_HOST:?}",
            other.unwrap_or_default()
        )),
    }
}

async fn intermediate(uri: &Uri, azure: &Azure) -> Result<CertificateDer<'static>, String> {
    let told = |error: String| format!("failed to fetch intermediate certificate: {error}");
    // A certificate is believed for its signature, however it came.
    let url = format!("{}{}", azure.issuers, uri.path());
    let request = Request::get(url).body(Bytes::new());
    let request = request.map_err(|error| told(error.to_string()))?;
    let answer = HttpClient::plain().map_err(told)?.send(request).await;
    let answer = answer.map_err(told)?;
    if answer.status() != StatusCode::OK {
        return Err(told(format!("status: {}", answer.status().as_u16())));
    }
    let body = answer.into_body();
    if X509Certificate::from_der(&body).is_ok() {
        return Ok(CertificateDer::from(body.to_vec()));
    }
    let mut read = pem::certificates(&body).map_err(|error| told(error.to_string()))?;
    read.pop()
        .map(CertificateDer::into_owned)
        .ok_or_else(|| told("there is none".into()))
}
