//! Upstream authority `gcp_cas`: a CA of Google's Certificate Authority Service, over its REST interface.

use std::collections::BTreeSet;
use std::time::Duration;

use ah_identity_provider::pem;
use ah_spire_attest::node::gcp_iit::Account;
use ah_spire_wire::bundle::pem_block;
use ah_spire_wire::model::JwtKey;
use ah_spire_wire::sigv4::percent_encoded;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError, alternative_names};
use crate::ca::name::Subject;
use crate::google::GoogleApi;

/// Which CAs sign, and as whom they are asked.
#[derive(Clone, Debug)]
pub struct GcpCasSettings {
    /// Before `/v1/…`: `https://privateca.googleapis.com`, but in tests.
    pub api: String,
    /// As whom.
    pub account: Account,
    /// `project_name`
    pub project: String,
    /// `region_name`
    pub region: String,
    /// `ca_pool`; without it, whichever pool of the region has such CAs.
    pub pool: Option<String>,
    /// `label_key` and `label_value`
    pub label: (String, String),
}

/// Signs with the CA that ends first of those with a label. Nothing is asked of Google before it is used.
pub struct GcpCasAuthority {
    settings: GcpCasSettings,
    api: GoogleApi,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Page {
    ca_pools: Vec<Pool>,
    certificate_authorities: Vec<Ca>,
}

#[derive(Deserialize)]
struct Pool {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ca {
    /// `projects/…/locations/…/caPools/…/certificateAuthorities/…`
    name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    create_time: String,
    /// Seconds, with an `s`.
    #[serde(default)]
    lifetime: String,
    /// From itself up to the root.
    #[serde(default)]
    pem_ca_certificates: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    pem_certificate: String,
    /// From the issuer up to the root.
    #[serde(default)]
    pem_certificate_chain: Vec<String>,
}

impl Ca {
    fn ends(&self) -> Result<OffsetDateTime, UpstreamError> {
        let strange = || {
            let (made, lifetime) = (&self.create_time, &self.lifetime);
            UpstreamError(format!(
                "{}: made \"{made}\" for \"{lifetime}\" is no time",
                self.name
            ))
        };
        let made = OffsetDateTime::parse(&self.create_time, &Rfc3339).map_err(|_| strange())?;
        let seconds = self.lifetime.trim_end_matches('s');
        let seconds = seconds.split('.').next().unwrap_or_default();
        let seconds = seconds.parse().map_err(|_| strange())?;
        made.checked_add(time::Duration::seconds(seconds))
            .ok_or_else(strange)
    }
}

impl GcpCasAuthority {
    /// With the CAs of `settings`.
    pub fn new(settings: GcpCasSettings) -> Self {
        let api = GoogleApi::new(settings.api.clone(), settings.account.clone());
        Self { settings, api }
    }

    /// All pages of a list.
    async fn list(&self, path: &str, filter: &str) -> Result<Vec<Page>, UpstreamError> {
        let pages = self.api.pages(path, filter).await;
        pages.map_err(|why| UpstreamError(format!("failed to load root CAs: {path}: {why}")))
    }

    /// The CAs that may sign, the one that ends first before the others.
    async fn authorities(&self) -> Result<Vec<Ca>, UpstreamError> {
        let of = &self.settings;
        let region = format!(
            "projects/{}/locations/{}",
            percent_encoded(&of.project),
            percent_encoded(&of.region)
        );
        let pools = match &of.pool {
            Some(pool) => vec![format!("{region}/caPools/{}", percent_encoded(pool))],
            None => {
                let pages = self.list(&format!("{region}/caPools"), "").await?;
                let pools = pages.into_iter().flat_map(|page| page.ca_pools);
                pools.map(|pool| pool.name).collect()
            }
        };
        let (key, value) = &of.label;
        let filter = format!("labels.{key}:{value}");
        let mut found: Vec<Ca> = Vec::new();
        for pool in pools {
            let path = format!("{pool}/certificateAuthorities");
            let here = self.list(&path, &filter).await?.into_iter();
            let here: Vec<_> = here.flat_map(|page| page.certificate_authorities).collect();
            if !found.is_empty() && !here.is_empty() {
                return Err(UpstreamError("failed to load root CAs: found authorities with matching labels across multiple pools: name one in ca_pool".into()));
            }
            found.extend(here);
        }
        let label = format!("label pair \"{key}\":\"{value}\"");
        if found.is_empty() {
            return Err(UpstreamError(format!(
                "no certificate authorities found with {label}"
            )));
        }
        found.retain(|ca| ca.state == "ENABLED");
        if found.is_empty() {
            return Err(UpstreamError(format!(
                "no certificate authorities found in ENABLED state with {label}"
            )));
        }
        let ends = found.iter().map(Ca::ends).collect::<Result<Vec<_>, _>>()?;
        let mut dated: Vec<_> = ends.into_iter().zip(found).collect();
        dated.sort_by_key(|(end, _)| *end);
        Ok(dated.into_iter().map(|(_, ca)| ca).collect())
    }

    async fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, UpstreamError> {
        let (_, request) = X509CertificationRequest::from_der(csr)
            .map_err(|error| UpstreamError(format!("unable to parse CSR: {error}")))?;
        let mut authorities = self.authorities().await?.into_iter();
        let chosen = authorities.next();
        let names = chosen
            .as_ref()
            .and_then(|ca| ca.name.split_once("/certificateAuthorities/"));
        let (pool, issuer) = names.ok_or_else(|| {
            let name = chosen.as_ref().map(|ca| &ca.name);
            UpstreamError(format!("{name:?} is no name of a CA"))
        })?;
        let key = request.certification_request_info.subject_pki.raw;
        tracing::info!(ca = pool, issuer, ttl = ?ttl, "Minting X509 intermediate CA");
        let path = format!(
            "{pool}/certificates?certificateId={}&issuingCertificateAuthorityId={}",
            URL_SAFE_NO_PAD.encode(Sha256::digest(key)),
            percent_encoded(issuer)
        );
        let wanted = certificate(&request, ttl);
        let signed = self.api.call::<Signed>(Method::POST, &path, Some(&wanted));
        let signed = signed
            .await
            .map_err(|why| UpstreamError(format!("failed to create certificate: {why}")))?;
        let mut chain = vec![der("certificate", &signed.pem_certificate)?];
        for text in &signed.pem_certificate_chain {
            chain.push(der("certificate chain", text)?);
        }
        // The last one is the root.
        let root = chain.pop().filter(|_| !chain.is_empty());
        let root = root.ok_or_else(|| UpstreamError("got no certificates in the chain".into()))?;
        let mut roots = vec![root];
        let mut seen = BTreeSet::from_iter(roots.clone());
        for ca in authorities {
            let last = ca.pem_ca_certificates.last();
            let last = last.ok_or_else(|| UpstreamError(format!("{} has no root", ca.name)))?;
            let root = der("root CA", last)?;
            if seen.insert(root.clone()) {
                roots.push(root);
            }
        }
        Ok(MintedCa { chain, roots })
    }
}

/// What is asked for (`Certificate` of the service), with as much of the CSR as upstream takes over.
fn certificate(request: &X509CertificationRequest<'_>, ttl: Duration) -> Value {
    let info = &request.certification_request_info;
    let wanted = Subject::read(&info.subject);
    let mut subject = serde_json::Map::new();
    for (key, value) in [
        ("commonName", Some(&wanted.common_name)),
        ("organization", wanted.organization.first()),
        ("organizationalUnit", wanted.organizational_unit.first()),
        ("locality", wanted.locality.first()),
        ("province", wanted.province.first()),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            subject.insert(key.into(), value.as_str().into());
        }
    }
    let uris = alternative_names(request).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Value::from(*uri)),
        _ => None,
    });
    let key = pem_block("PUBLIC KEY", info.subject_pki.raw);
    json!({
        "lifetime": format!("{}s", ttl.as_secs()),
        "config": {
            "publicKey": { "format": "PEM", "key": STANDARD.encode(key) },
            "subjectConfig": {
                "subject": subject,
                "subjectAltName": { "uris": uris.collect::<Vec<_>>() },
            },
            "x509Config": {
                "caOptions": { "isCa": true, "maxIssuerPathLength": 0 },
                "keyUsage": { "baseKeyUsage": { "certSign": true, "crlSign": true } },
            },
        },
    })
}

fn der(what: &str, text: &str) -> Result<Vec<u8>, UpstreamError> {
    let failed = |why: &dyn std::fmt::Display| {
        UpstreamError(format!("failed to parse {what} of Google: {why}"))
    };
    let found = pem::certificates(text.as_bytes()).map_err(|error| failed(&error))?;
    let first = found.first().map(|der| der.to_vec());
    first.ok_or_else(|| failed(&"it is empty"))
}

impl UpstreamAuthority for GcpCasAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(self.mint(csr, ttl))
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}
