//! Upstream authority `ejbca`: a CA of EJBCA, over `pkcs10enroll` of its REST interface.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_identity_provider::pem;
use ah_spire_wire::bundle::pem_block;
use ah_spire_wire::http_client::{HttpClient, Roots};
use ah_spire_wire::model::JwtKey;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError, alternative_names};
use crate::ca::name::Subject;

/// Where EJBCA is, who we are to it, and what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjbcaSettings {
    /// Host, and port if it is not 443.
    pub host: String,
    /// Who vouches for EJBCA, in PEM; the machine's roots without it.
    pub ca: Option<PathBuf>,
    /// The client certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// `ca_name`
    pub ca_name: String,
    /// `end_entity_profile_name`
    pub end_entity_profile: String,
    /// `certificate_profile_name`
    pub certificate_profile: String,
    /// What the end entity is called.
    pub end_entity: EndEntity,
    /// `account_binding_id`
    pub account_binding: Option<String>,
}

/// What an end entity is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndEntity {
    /// The first of these that the request has.
    From(Vec<NamePart>),
    /// This.
    Named(String),
}

/// What a request has that an end entity can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamePart {
    /// The common name.
    CommonName,
    /// The first DNS name.
    Dns,
    /// The first URI.
    Uri,
    /// The first IP address.
    Ip,
}

/// Signs with a CA of EJBCA.
pub struct EjbcaAuthority(EjbcaSettings);

#[derive(Serialize)]
struct Enroll<'a> {
    certificate_request: &'a str,
    certificate_profile_name: &'a str,
    end_entity_profile_name: &'a str,
    certificate_authority_name: &'a str,
    username: &'a str,
    password: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_binding_id: Option<&'a str>,
    include_chain: bool,
}

#[derive(Deserialize)]
struct Enrolled {
    certificate: String,
    #[serde(default)]
    response_format: String,
    /// From the issuer to the root.
    #[serde(default)]
    certificate_chain: Vec<String>,
}

#[derive(Deserialize)]
struct Refused {
    error_message: String,
}

impl EjbcaAuthority {
    /// Reads the files once, so that what is wrong with them is found at the start; for each CA they are read again.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn open(settings: EjbcaSettings) -> Result<Self, UpstreamError> {
        client(&settings)?;
        Ok(Self(settings))
    }

    async fn mint(&self, csr: &[u8]) -> Result<MintedCa, UpstreamError> {
        let of = &self.0;
        let settings = of.clone();
        let client = tokio::task::spawn_blocking(move || client(&settings)).await;
        let client = client.map_err(|error| UpstreamError(error.to_string()))??;
        let username = end_entity(&of.end_entity, csr)?;
        // Nobody logs in with it: EJBCA wants one for each end entity.
        let mut random = Zeroizing::new([0; 18]);
        aws_lc_rs::rand::fill(random.as_mut_slice())
            .map_err(|_| UpstreamError("no random numbers".into()))?;
        let password = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
        let request = serde_json::to_vec(&Enroll {
            certificate_request: &pem_block("CERTIFICATE REQUEST", csr),
            certificate_profile_name: &of.certificate_profile,
            end_entity_profile_name: &of.end_entity_profile,
            certificate_authority_name: &of.ca_name,
            username: &username,
            password: &password,
            account_binding_id: of.account_binding.as_deref(),
            include_chain: true,
        });
        let failed = |why: String| UpstreamError(format!("failed to enroll CSR: {why}"));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let uri = format!(
            "https://{}/ejbca/ejbca-rest-api/v1/certificate/pkcs10enroll",
            of.host
        );
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Bytes::from(request));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let answer = client.send(request).await.map_err(failed)?;
        if !answer.status().is_success() {
            let told = serde_json::from_slice::<Refused>(answer.body());
            let told = told.map_or_else(|_| String::new(), |it| format!(": {}", it.error_message));
            let hint = match answer.status() {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                    " (the client certificate's role needs the CA, both profiles and RA functionality)"
                }
                StatusCode::NOT_FOUND => {
                    " (is REST Certificate Management enabled in the protocol configuration?)"
                }
                _ => "",
            };
            return Err(failed(format!(
                "EJBCA answered {}{told}{hint}",
                answer.status()
            )));
        }
        let enrolled = serde_json::from_slice::<Enrolled>(answer.body())
            .map_err(|error| failed(format!("EJBCA's answer cannot be read: {error}")))?;
        minted(&enrolled)
    }
}

impl UpstreamAuthority for EjbcaAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], _ttl: Duration) -> Answer<'a, MintedCa> {
        // How long it lasts is said by the certificate profile.
        Box::pin(self.mint(csr))
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

fn client(settings: &EjbcaSettings) -> Result<HttpClient, UpstreamError> {
    let read = |key: &str, path: &Path| {
        fs::read(path).map_err(|error| UpstreamError(format!("{key} {}: {error}", path.display())))
    };
    let certificates = |key: &str, path: &Path| {
        pem::certificates(&read(key, path)?)
            .map_err(|error| UpstreamError(format!("{key} {}: {error}", path.display())))
    };
    let roots = match &settings.ca {
        Some(path) => Roots::Only(certificates("ca_cert_path", path)?),
        None => Roots::Machine,
    };
    let chain = certificates("client_cert_path", &settings.certificate)?;
    let path = &settings.key;
    let key = Zeroizing::new(read("client_cert_key_path", path)?);
    let key = pem::private_key(&key, None).map_err(|error| {
        UpstreamError(format!("client_cert_key_path {}: {error}", path.display()))
    })?;
    let client = HttpClient::new(roots, Some((chain, key.der().clone_key())));
    client.map_err(|error| UpstreamError(format!("client_cert_path: {error}")))
}

/// What the end entity of this request is called.
fn end_entity(wanted: &EndEntity, csr: &[u8]) -> Result<String, UpstreamError> {
    let parts = match wanted {
        EndEntity::Named(name) => return Ok(name.clone()),
        EndEntity::From(parts) => parts,
    };
    let (_, request) = X509CertificationRequest::from_der(csr)
        .map_err(|error| UpstreamError(format!("unable to parse CSR: {error}")))?;
    let subject = Subject::read(&request.certification_request_info.subject);
    let names: Vec<_> = alternative_names(&request).collect();
    let found = parts.iter().find_map(|part| match part {
        NamePart::CommonName => Some(subject.common_name.clone()).filter(|name| !name.is_empty()),
        NamePart::Dns => names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }),
        NamePart::Uri => names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        }),
        NamePart::Ip => names.iter().find_map(|name| match name {
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        }),
    });
    found.ok_or_else(|| {
        UpstreamError(
            "no valid end entity name could be determined from the CertificateRequest: set end_entity_name to uri, or to a name"
                .into(),
        )
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

/// The last of the chain is the root.
fn minted(enrolled: &Enrolled) -> Result<MintedCa, UpstreamError> {
    let der = |what: &str, text: &str| -> Result<Vec<u8>, UpstreamError> {
        let failed = |why: &dyn std::fmt::Display| {
            UpstreamError(format!("failed to parse {what} of EJBCA: {why}"))
        };
        let der = match enrolled.response_format.as_str() {
            "PEM" => {
                let found = pem::certificates(text.as_bytes()).map_err(|error| failed(&error))?;
                found.first().map(|der: &CertificateDer<'_>| der.to_vec())
            }
            "DER" => Some(STANDARD.decode(text).map_err(|error| failed(&error))?),
            other => {
                return Err(UpstreamError(format!(
                    "ejbca returned unsupported certificate format: \"{other}\""
                )));
            }
        };
        der.ok_or_else(|| failed(&"it is empty"))
    };
    let mut chain = vec![der("certificate", &enrolled.certificate)?];
    let above = enrolled.certificate_chain.iter();
    let above = above.map(|text| der("CA certificate", text));
    let mut above = above.collect::<Result<Vec<_>, _>>()?;
    let root = above
        .pop()
        .ok_or_else(|| UpstreamError("EJBCA did not return a CA chain".into()))?;
    chain.extend(above);
    Ok(MintedCa {
        chain,
        roots: vec![root],
    })
}
