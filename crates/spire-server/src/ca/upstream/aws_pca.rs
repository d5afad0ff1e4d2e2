//! Upstream authority `aws_pca`: a CA of AWS Private CA.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, pem};
use ah_spire_wire::aws::{Caller, Fault, Service};
use ah_spire_wire::bundle::pem_block;
use ah_spire_wire::model::JwtKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError};

/// For a CA that signs end entities alone.
const TEMPLATE: &str = "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1";

/// How long the certificate is waited for, and the first and the longest time between looks at it.
const ISSUED_WITHIN: Duration = Duration::from_mins(3);
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Which CA signs, and how.
#[derive(Clone)]
pub struct PcaSettings {
    /// Who asks for certificates.
    pub caller: Arc<Caller>,
    /// `certificate_authority_arn`
    pub ca: String,
    /// `signing_algorithm`; `None` is the CA's own.
    pub algorithm: Option<String>,
    /// `ca_signing_template_arn`; `None` is a CA without CAs below it.
    pub template: Option<String>,
    /// DER: what `supplemental_bundle_path` adds to the roots.
    pub supplement: Vec<Vec<u8>>,
}

impl fmt::Debug for PcaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcaSettings")
            .field("ca", &self.ca)
            .field("algorithm", &self.algorithm)
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

/// Signs with a CA of AWS Private CA. Nothing is asked of it before it is used.
pub struct PcaAuthority {
    settings: PcaSettings,
    clock: Arc<dyn Clock>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    certificate_authority: Ca,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ca {
    #[serde(default)]
    status: String,
    certificate_authority_configuration: CaConfiguration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CaConfiguration {
    signing_algorithm: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Submitted {
    certificate_arn: String,
}

/// In PEM.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    certificate: String,
    /// From the issuer to the root.
    #[serde(default)]
    certificate_chain: String,
}

impl PcaAuthority {
    /// AWS Private CA
    pub const SERVICE: Service = Service::regional("ACM_PCA", "acm-pca");

    /// With the CA of `settings`.
    pub fn new(settings: PcaSettings, clock: Arc<dyn Clock>) -> Self {
        Self { settings, clock }
    }

    async fn ask<T: DeserializeOwned>(&self, operation: &str, fields: &Value) -> Result<T, Fault> {
        let operation = format!("ACMPrivateCA.{operation}");
        let now = self.clock.now();
        let caller = &self.settings.caller;
        caller.ask(Self::SERVICE, &operation, fields, now).await
    }

    async fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, UpstreamError> {
        let ca = &self.settings.ca;
        let failed = |what: &str, fault: &Fault| UpstreamError(format!("{what}: {fault}"));
        let fields = json!({"CertificateAuthorityArn": ca});
        let described = self.ask::<Described>("DescribeCertificateAuthority", &fields);
        let described = described
            .await
            .map_err(|fault| failed("failed to describe CertificateAuthority", &fault))?;
        let described = described.certificate_authority;
        if described.status != "ACTIVE" {
            tracing::warn!(
                certificate_authority_arn = ca,
                status = described.status,
                "Certificate authority is in an invalid state for issuance"
            );
        }
        let own = described.certificate_authority_configuration;
        let algorithm = self.settings.algorithm.as_ref();
        let end = self.clock.now().checked_add(ttl);
        let end = end.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        let end = end.ok_or_else(|| UpstreamError("the CA would end at no time".into()))?;
        let fields = json!({
            "CertificateAuthorityArn": ca,
            "Csr": STANDARD.encode(pem_block("CERTIFICATE REQUEST", csr).as_bytes()),
            "SigningAlgorithm": algorithm.unwrap_or(&own.signing_algorithm),
            "TemplateArn": self.settings.template.as_deref().unwrap_or(TEMPLATE),
            "Validity": {"Type": "ABSOLUTE", "Value": end.as_secs()},
            // A call that is made again issues nothing anew.
            "IdempotencyToken": Uuid::new_v4().simple().to_string(),
        });
        let submitted = self.ask::<Submitted>("IssueCertificate", &fields).await;
        let arn = submitted
            .map_err(|fault| failed("failed submitting CSR", &fault))?
            .certificate_arn;
        tracing::info!(
            certificate_arn = arn,
            "Waiting for issuance by AWS Private CA"
        );
        let issued = self.issued(&arn).await?;
        self.minted(&issued)
    }

    async fn issued(&self, arn: &str) -> Result<Issued, UpstreamError> {
        let fields = json!({
            "CertificateAuthorityArn": self.settings.ca,
            "CertificateArn": arn,
        });
        let until = Instant::now() + ISSUED_WITHIN;
        let (mut wait, longest) = LOOK_AGAIN;
        loop {
            let fault = match self.ask("GetCertificate", &fields).await {
                Ok(issued) => return Ok(issued),
                Err(fault) => fault,
            };
            let told = |why: &str| UpstreamError(format!("failed waiting for issuance: {why}"));
            if !fault.is("RequestInProgressException") {
                return Err(told(&fault.to_string()));
            }
            if Instant::now() + wait > until {
                return Err(told(&format!(
                    "{arn} is not issued after {ISSUED_WITHIN:?}: {fault}"
                )));
            }
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(longest);
        }
    }

    /// The last of the chain is the root.
    fn minted(&self, issued: &Issued) -> Result<MintedCa, UpstreamError> {
        let parse = |what: &str, text: &str| {
            let found = pem::certificates(text.as_bytes());
            let found = found.map_err(|error| {
                UpstreamError(format!("failed to parse {what} from response: {error}"))
            })?;
            Ok::<_, UpstreamError>(found.iter().map(|der| der.to_vec()).collect::<Vec<_>>())
        };
        let mut chain = parse("certificate", &issued.certificate)?;
        chain.truncate(1);
        let mut above = parse("certificate chain", &issued.certificate_chain)?;
        let mut roots = Vec::from_iter(above.pop());
        for extra in &self.settings.supplement {
            if !roots.contains(extra) {
                roots.push(extra.clone());
            }
        }
        chain.extend(above);
        Ok(MintedCa { chain, roots })
    }
}

impl UpstreamAuthority for PcaAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(self.mint(csr, ttl))
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}
