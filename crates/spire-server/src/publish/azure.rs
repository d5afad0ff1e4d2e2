//! BundlePublisher `azure_blob`: a blob in a container of Azure Blob Storage.

use std::path::PathBuf;
use std::time::SystemTime;

use ah_spire_wire::http_client::HttpClient;
use ah_spire_wire::model::Bundle;
use ah_spire_wire::sigv4::percent_encoded;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use serde::Deserialize;
use time::format_description::well_known::Rfc2822;
use time::{OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

use super::{Formatted, Publisher};

/// Of the service's REST API.
const VERSION: &str = "2021-12-02";

/// What tokens are for.
const RESOURCE: &str = "https://storage.azure.com/";

/// Where Azure's services are. They are others in tests alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    /// Where tokens come from, before the tenant.
    pub login: String,
    /// The metadata service of machines.
    pub metadata: String,
}

impl Default for Azure {
    fn default() -> Self {
        Self {
            login: "https://login.microsoftonline.com".into(),
            metadata: "http://169.254.169.254".into(),
        }
    }
}

/// Who may write the blob.
#[derive(Clone)]
pub enum AzureIdentity {
    /// The key of the storage account, decoded.
    SharedKey(Zeroizing<Vec<u8>>),
    /// An application with a secret.
    Secret {
        /// `tenant_id`
        tenant: String,
        /// `app_id`
        app: String,
        /// `app_secret`
        secret: Zeroizing<String>,
    },
    /// An application, for whom a file has a token of another platform (workload identity).
    Federated {
        /// `AZURE_TENANT_ID`
        tenant: String,
        /// `AZURE_CLIENT_ID`
        app: String,
        /// `AZURE_FEDERATED_TOKEN_FILE`
        token: PathBuf,
    },
    /// The machine's own, or that one of its identities.
    Managed(Option<String>),
}

impl AzureIdentity {
    /// What is found where nothing is configured: the variables of an application with a secret or with a token of its
    /// platform, or else the machine's identity.
    pub fn found(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let (tenant, app) = (set("AZURE_TENANT_ID"), set("AZURE_CLIENT_ID"));
        if let (Some(tenant), Some(app)) = (tenant, app.clone()) {
            if let Some(secret) = set("AZURE_CLIENT_SECRET") {
                let secret = Zeroizing::new(secret);
                return Self::Secret {
                    tenant,
                    app,
                    secret,
                };
            }
            if let Some(token) = set("AZURE_FEDERATED_TOKEN_FILE") {
                let token = token.into();
                return Self::Federated { tenant, app, token };
            }
        }
        Self::Managed(app)
    }
}

/// Publishes to a blob.
pub struct AzureBlob {
    azure: Azure,
    /// Without a slash at its end.
    url: String,
    account: String,
    container: String,
    blob: String,
    identity: AzureIdentity,
    formatted: Formatted,
}

impl AzureBlob {
    /// `url` is that of the storage `account`, such as `https://account.blob.core.windows.net`.
    pub fn new(
        azure: Azure,
        (url, account): (String, String),
        (container, blob): (String, String),
        identity: AzureIdentity,
        formatted: Formatted,
    ) -> Self {
        Self {
            azure,
            url,
            account,
            container,
            blob,
            identity,
            formatted,
        }
    }

    async fn put(&self, data: String, now: SystemTime) -> Result<(), String> {
        // A blob's name may have folders.
        let blob: Vec<String> = self.blob.split('/').map(percent_encoded).collect();
        let path = format!("/{}/{}", percent_encoded(&self.container), blob.join("/"));
        let date = OffsetDateTime::from(now).to_offset(UtcOffset::UTC);
        let date = date.format(&Rfc2822).map_err(|error| error.to_string())?;
        let date = date.replace("+0000", "GMT");
        let media_type = self.formatted.format().media_type();
        let authorization = match &self.identity {
            AzureIdentity::SharedKey(key) => {
                let resource = format!("/{}{path}", self.account);
                let text = to_be_signed(data.len(), media_type, &date, &resource);
                let key = hmac::Key::new(hmac::HMAC_SHA256, key);
                let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
                Zeroizing::new(format!("SharedKey {}:{signature}", self.account))
            }
            other => {
                let token = self.token(other).await;
                let token = token.map_err(|error| format!("no access token: {error}"))?;
                Zeroizing::new(format!("Bearer {}", *token))
            }
        };
        let mut authorization = HeaderValue::from_str(&authorization)
            .map_err(|_| "the access token has characters that no token has".to_owned())?;
        authorization.set_sensitive(true);
        let request = Request::put(format!("{}{path}", self.url))
            .header(header::CONTENT_TYPE, media_type)
            .header(header::AUTHORIZATION, authorization)
            .header("x-ms-blob-type", "BlockBlob")
            .header("x-ms-date", date)
            .header("x-ms-version", VERSION)
            .body(Bytes::from(data))
            .map_err(|error| error.to_string())?;
        let answer = HttpClient::web()?.send(request).await?;
        if answer.status().is_success() {
            return Ok(());
        }
        let code = answer.headers().get("x-ms-error-code");
        let code = code.and_then(|code| code.to_str().ok()).unwrap_or_default();
        Err(format!("the answer is {} {code}", answer.status())
            .trim_end()
            .to_owned())
    }

    async fn token(&self, identity: &AzureIdentity) -> Result<Zeroizing<String>, String> {
        let client = HttpClient::web()?;
        let request = match identity {
            AzureIdentity::Secret {
                tenant,
                app,
                secret,
            } => self.login(tenant, app, &[("client_secret", secret)]),
            AzureIdentity::Federated { tenant, app, token } => {
                let read = tokio::fs::read_to_string(token).await;
                let read = read.map_err(|error| format!("{}: {error}", token.display()))?;
                let assertion = Zeroizing::new(read.trim().to_owned());
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                let proof = [
                    ("client_assertion_type", kind),
                    ("client_assertion", assertion.as_str()),
                ];
                self.login(tenant, app, &proof)
            }
            AzureIdentity::Managed(app) => {
                let app = app.as_deref().map(percent_encoded);
                let app = app.map(|app| format!("&client_id={app}"));
                let url = format!(
                    "{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}{}",
                    self.azure.metadata,
                    percent_encoded(RESOURCE),
                    app.unwrap_or_default()
                );
                let request = Request::get(url).header("Metadata", "true");
                request.body(Bytes::new())
            }
            AzureIdentity::SharedKey(_) => return Err("a key needs none".into()),
        };
        let answer = client
            .send(request.map_err(|error| error.to_string())?)
            .await?;
        token_of(&answer)
    }

    /// RFC 6749 §4.4, with a proof of the application.
    fn login(
        &self,
        tenant: &str,
        app: &str,
        proof: &[(&str, &str)],
    ) -> Result<Request<Bytes>, http::Error> {
        let mut form = Zeroizing::new(format!(
            "grant_type=client_credentials&client_id={}&scope={}",
            percent_encoded(app),
            percent_encoded("https://storage.azure.com/.default")
        ));
        for (name, value) in proof {
            form.push_str(&format!("&{name}={}", percent_encoded(value)));
        }
        let url = format!(
            "{}/{}/oauth2/v2.0/token",
            self.azure.login,
            percent_encoded(tenant)
        );
        Request::post(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::copy_from_slice(form.as_bytes()))
    }
}

fn token_of(answer: &Response<Bytes>) -> Result<Zeroizing<String>, String> {
    #[derive(Deserialize)]
    struct Given {
        access_token: Zeroizing<String>,
    }

    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }

    if answer.status().is_success() {
        let given = serde_json::from_slice::<Given>(answer.body());
        let given = given.map_err(|_| "the answer has no access_token".to_owned())?;
        return Ok(given.access_token);
    }
    let refused = serde_json::from_slice::<Refused>(answer.body());
    let why = refused.map(|refused| refused.error).unwrap_or_default();
    Err(format!("the answer is {} {why}", answer.status())
        .trim_end()
        .to_owned())
}

/// What the account's key signs (Azure Storage, "Authorize with Shared Key"). Lines that are empty stand for headers that
/// are not sent.
fn to_be_signed(length: usize, media_type: &str, date: &str, resource: &str) -> String {
    let length = if length == 0 {
        String::new()
    } else {
        length.to_string()
    };
    format!(
        "PUT\n\n\n{length}\n\n{media_type}\n\n\n\n\n\n\nx-ms-blob-type:BlockBlob\nx-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}"
    )
}

#[tonic::async_trait]
impl Publisher for AzureBlob {
    fn name(&self) -> &str {
        "azure_blob"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let data = self.formatted.of(bundle)?;
        let put = self.put(data, SystemTime::now()).await;
        put.map_err(|error| {
            let Self {
                container, blob, ..
            } = self;
            format!("failed to upload blob: {container}/{blob}: {error}")
        })
    }
}
