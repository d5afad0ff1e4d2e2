//! Upstream authority `vault`: a CA in the PKI engine of HashiCorp Vault or OpenBao, over `sign-intermediate`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ah_identity_provider::vault::{VaultAccess, VaultConfig};
use ah_identity_provider::{Clock, pem};
use ah_spire_wire::bundle::pem_block;
use ah_spire_wire::model::JwtKey;
use serde::Deserialize;
use spiffe::TrustDomain;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError};
use crate::ca::name::Subject;

/// Where the PKI engine is, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSettings {
    /// Addresses, TLS and login.
    pub access: VaultConfig,
    /// `pki_mount_point`
    pub pki_mount: String,
    /// In the CA's URI SAN.
    pub trust_domain: TrustDomain,
}

/// Signs with a CA of Vault. Nothing is asked of it before it is used.
pub struct VaultAuthority {
    settings: VaultSettings,
    clock: Arc<dyn Clock>,
    access: OnceLock<VaultAccess>,
}

#[derive(Deserialize)]
struct Signed {
    data: SignedData,
}

/// What Vault answers, in PEM.
#[derive(Deserialize)]
struct SignedData {
    certificate: String,
    issuing_ca: String,
    /// From the issuer up; since Vault 1.11 with the certificate itself before it. Absent where the CA is a root.
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
}

impl VaultAuthority {
    /// With the CA of `settings`.
    pub fn new(settings: VaultSettings, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            clock,
            access: OnceLock::new(),
        }
    }

    fn access(&self) -> Result<&VaultAccess, UpstreamError> {
        if self.access.get().is_none() {
            let made = VaultAccess::new(self.settings.access.clone(), self.clock.clone());
            let made = made.map_err(|error| UpstreamError(error.explained().one_line()))?;
            // Two that come at a time make one each, and the first stays.
            let _ = self.access.set(made);
        }
        let gone = || UpstreamError("the client of Vault cannot be made".into());
        self.access.get().ok_or_else(gone)
    }
}

impl UpstreamAuthority for VaultAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(async move {
            let subject = X509CertificationRequest::from_der(csr)
                .map(|(_, request)| Subject::read(&request.certification_request_info.subject))
                .map_err(|error| UpstreamError(format!("failed to parse CSR data: {error}")))?;
            let request = pem_block("CERTIFICATE REQUEST", csr);
            let uri = self.settings.trust_domain.id_string();
            let (organization, country) =
                (subject.organization.join(","), subject.country.join(","));
            let ttl = ttl.as_secs().to_string();
            let fields = BTreeMap::from([
                ("common_name", subject.common_name.as_str()),
                ("organization", organization.as_str()),
                ("country", country.as_str()),
                ("uri_sans", uri.as_str()),
                ("csr", request.as_str()),
                ("ttl", ttl.as_str()),
            ]);
            let path = format!("{}/root/sign-intermediate", self.settings.pki_mount);
            let signed = self.access()?.post::<Signed>(&path, &fields).await;
            let signed = signed.map_err(|error| {
                UpstreamError(format!("failed to sign intermediate: {}", error.one_line()))
            })?;
            minted(&signed.data)
        })
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

/// The last of the chain is the root, as with upstream's plugin; the issuer is, where there is no chain.
fn minted(signed: &SignedData) -> Result<MintedCa, UpstreamError> {
    let parse = |what: &str, text: &str| {
        let found = pem::certificates(text.as_bytes());
        let found =
            found.map_err(|error| UpstreamError(format!("failed to parse {what}: {error}")))?;
        let first = found.first().map(|der| der.to_vec());
        first.ok_or_else(|| UpstreamError(format!("failed to parse {what}: it is empty")))
    };
    let certificate = parse("certificate", &signed.certificate)?;
    let above = signed.ca_chain.iter().flatten();
    let above = above.map(|text| parse("upstream bundle certificates", text));
    let mut above = above.collect::<Result<Vec<_>, _>>()?;
    let root = match above.pop() {
        Some(root) => root,
        None => parse("Root CA certificate", &signed.issuing_ca)?,
    };
    above.retain(|der| *der != certificate && *der != root);
    let mut chain = vec![certificate];
    chain.extend(above);
    Ok(MintedCa {
        chain,
        roots: vec![root],
    })
}
