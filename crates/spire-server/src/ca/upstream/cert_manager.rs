//! Upstream authority `cert-manager`: an issuer of cert-manager, by a `CertificateRequest` in Kubernetes.

use std::time::{Duration, SystemTime};

use ah_identity_provider::pem;
use ah_spire_attest::node::k8s::{KubeApi, object_name};
use ah_spire_wire::bundle::pem_block;
use ah_spire_wire::model::JwtKey;
use ah_spire_wire::sigv4::percent_encoded;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use spiffe::TrustDomain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError};

/// Upstream's, which marks the requests of a trust domain.
const LABEL: &str = "cert-manager.spiffe.io/trust-domain";

/// How long a request is waited for, as with upstream.
const PATIENCE: Duration = Duration::from_secs(75);

/// Between two looks at a request.
const LOOKS: Duration = Duration::from_millis(250);

/// What is over for this long, nobody waits for any more: another server of the trust domain may have asked, too.
const OLD: Duration = Duration::from_secs(600);

/// Who signs, and where it is asked.
#[derive(Clone, Debug)]
pub struct CertManagerSettings {
    /// `kube_config_file`
    pub api: KubeApi,
    /// `namespace`
    pub namespace: String,
    /// `issuer_name`
    pub issuer_name: String,
    /// `issuer_kind`
    pub issuer_kind: String,
    /// `issuer_group`
    pub issuer_group: String,
    /// Whose requests they are.
    pub trust_domain: TrustDomain,
}

/// Signs with an issuer of cert-manager. Nothing is asked of it before it is used.
pub struct CertManagerAuthority(CertManagerSettings);

/// A `CertificateRequest`, with what is used of it.
#[derive(Deserialize)]
struct Request {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    creation_timestamp: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    /// PEM in base64.
    certificate: Option<String>,
    /// PEM in base64.
    ca: Option<String>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// What has become of a request.
enum End<'a> {
    Denied(&'a Condition),
    Failed(&'a Condition),
    Ready,
}

impl Status {
    fn end(&self) -> Option<End<'_>> {
        let ends = self.conditions.iter().filter_map(|it| {
            Some(match (it.kind.as_str(), it.status.as_str()) {
                ("Denied", "True") => End::Denied(it),
                ("Ready", "False") if it.reason == "Failed" => End::Failed(it),
                ("Ready", "True") => End::Ready,
                _ => return None,
            })
        });
        // A request that is denied fails, too.
        ends.min_by_key(|end| match end {
            End::Denied(_) => 0,
            End::Failed(_) => 1,
            End::Ready => 2,
        })
    }
}

impl CertManagerAuthority {
    /// With the issuer of `settings`.
    pub fn new(settings: CertManagerSettings) -> Self {
        Self(settings)
    }

    fn collection(&self) -> String {
        let namespace = &self.0.namespace;
        format!("/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests")
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, String> {
        let body = body.map(|body| ("application/json", body.to_string().into()));
        let answer = self.0.api.send(method, path, body).await;
        let answer = answer.map_err(|error| error.to_string())?;
        serde_json::from_slice(&answer)
            .map_err(|error| format!("the answer is not what was asked for: {error}"))
    }

    async fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, UpstreamError> {
        let of = &self.0;
        let mut spec = json!({
            "issuerRef": {
                "name": of.issuer_name,
                "kind": of.issuer_kind,
                "group": of.issuer_group,
            },
            "request": STANDARD.encode(pem_block("CERTIFICATE REQUEST", csr)),
            "isCA": true,
            "usages": ["cert sign", "crl sign"],
        });
        if let (false, Some(spec)) = (ttl.is_zero(), spec.as_object_mut()) {
            spec.insert("duration".into(), format!("{}s", ttl.as_secs()).into());
        }
        let request = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {
                "generateName": "spiffe-ca-",
                "namespace": of.namespace,
                "labels": { LABEL: of.trust_domain.as_str() },
            },
            "spec": spec,
        });
        let collection = self.collection();
        let made = self.call::<Request>(Method::POST, &collection, Some(&request));
        let failed = |why: String| UpstreamError(format!("failed to create object: {why}"));
        let made = made.await.map_err(failed)?;
        let name = object_name(&made.metadata.name).map_err(failed)?;
        tracing::info!(
            namespace = of.namespace,
            name,
            "Waiting for certificaterequest to be signed"
        );
        let signed = self.signed(name).await;
        // Nobody needs it any more, however it ended.
        let path = format!("{collection}/{name}");
        if let Err(error) = of.api.send(Method::DELETE, &path, None).await {
            tracing::warn!(%error, name, "CertificateRequest not deleted, which is tried again with the next one");
        }
        signed
    }

    /// Waits until the request called `name` is signed.
    async fn signed(&self, name: &str) -> Result<MintedCa, UpstreamError> {
        let path = format!("{}/{name}", self.collection());
        let until = Instant::now() + PATIENCE;
        loop {
            sleep(LOOKS).await;
            let found = self.call::<Request>(Method::GET, &path, None).await;
            let found = found.map_err(|error| {
                UpstreamError(format!(
                    "kubernetes cluster client failed to get object: {error}"
                ))
            })?;
            let told = |what: &str, told: &Condition| {
                let why = format!("{} {}", told.reason, told.message);
                UpstreamError(format!("request has {what}: {}", why.trim()))
            };
            match found.status.end() {
                Some(End::Denied(condition)) => return Err(told("been denied", condition)),
                Some(End::Failed(condition)) => return Err(told("failed", condition)),
                Some(End::Ready) | None => {}
            }
            if let Some(certificate) = found.status.certificate.filter(|it| !it.is_empty()) {
                return minted(&certificate, found.status.ca.as_deref().unwrap_or_default());
            }
            if Instant::now() >= until {
                return Err(UpstreamError(format!(
                    "request did not become ready in time: look at {} \"{}\", and at who approves CertificateRequests",
                    self.0.issuer_kind, self.0.issuer_name
                )));
            }
        }
    }

    /// Deletes the requests of the trust domain that are over, as servers leave them that were killed.
    async fn clean_up(&self) -> Result<(), String> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Request>,
        }

        let label = percent_encoded(&format!("{LABEL}={}", self.0.trust_domain.as_str()));
        let path = format!("{}?labelSelector={label}", self.collection());
        let list = self.call::<List>(Method::GET, &path, None).await?;
        for request in list.items {
            let made = OffsetDateTime::parse(&request.metadata.creation_timestamp, &Rfc3339);
            let since = made.map(|made| SystemTime::now().duration_since(made.into()));
            let is_old = since.is_ok_and(|since| since.is_ok_and(|since| since > OLD));
            if is_old && request.status.end().is_some() {
                let name = object_name(&request.metadata.name)?;
                tracing::debug!(name, "Deleting stale CertificateRequest");
                let path = format!("{}/{name}", self.collection());
                let deleted = self.0.api.send(Method::DELETE, &path, None).await;
                deleted.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

impl UpstreamAuthority for CertManagerAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(async move {
            let minted = self.mint(csr, ttl).await;
            if let Err(error) = self.clean_up().await {
                tracing::warn!(error, "Failed to clean up stale CertificateRequests");
            }
            minted
        })
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

/// The certificate may come with its issuers.
fn minted(certificate: &str, ca: &str) -> Result<MintedCa, UpstreamError> {
    if ca.is_empty() {
        return Err(UpstreamError(
            "no upstream CA root returned from request: the issuer has to tell its CA (status.ca)"
                .into(),
        ));
    }
    let parse = |what: &str, text: &str| {
        let failed = |why: String| UpstreamError(format!("failed to parse {what}: {why}"));
        let text = STANDARD.decode(text);
        let text = text.map_err(|error| failed(error.to_string()))?;
        let found = pem::certificates(&text).map_err(|error| failed(error.to_string()))?;
        Ok::<_, UpstreamError>(found.iter().map(|der| der.to_vec()).collect::<Vec<_>>())
    };
    let roots = parse("CA certificate", ca)?;
    let mut chain = parse("certificate", certificate)?;
    chain.retain(|der| !roots.contains(der));
    Ok(MintedCa { chain, roots })
}
