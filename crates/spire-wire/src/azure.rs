//! Calls to Azure: where its services are, who calls, and what they answer.
//!
//! Variables, files and the order of sources are those of Azure's SDKs (`DefaultAzureCredential`), so that a machine that is
//! set up for one of them is set up for this.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::http_client::HttpClient;
use crate::sigv4::percent_encoded;

/// How long before its end a token is replaced.
const RENEW_BEFORE: Duration = Duration::from_mins(5);

/// The largest part of a refusal that is told, in characters.
const MAX_TOLD: usize = 300;

/// Where Azure is, and what the environment says of who calls. Without a `/` at their ends.
#[derive(Clone)]
pub struct Azure {
    /// Where tokens are given: `https://login.microsoftonline.com`, or `AZURE_AUTHORITY_HOST`.
    pub authority: String,
    /// Azure Resource Manager: `https://management.azure.com`.
    pub manager: String,
    /// The metadata service of a virtual machine: `http://169.254.169.254`.
    pub metadata: String,
    /// Where the certificates of intermediate CAs are: `http://www.microsoft.com`.
    pub issuers: String,
    /// `AZURE_CLIENT_ID`
    pub client_id: Option<String>,
    /// `AZURE_TENANT_ID`
    pub tenant_id: Option<String>,
    /// `AZURE_CLIENT_SECRET`
    pub client_secret: Option<Zeroizing<String>>,
    /// `AZURE_FEDERATED_TOKEN_FILE`
    pub federated_token_file: Option<PathBuf>,
    /// A variable that asks for something which is not served.
    pub unserved: Option<&'static str>,
}

impl Azure {
    /// Azure, as this process's environment has it.
    pub fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let unserved = [
            "AZURE_CLIENT_CERTIFICATE_PATH",
            "AZURE_USERNAME",
            "IDENTITY_ENDPOINT",
            "MSI_ENDPOINT",
        ];
        // `prod` is what is served; other values choose one source, or those of developers.
        const CHOICE: &str = "AZURE_TOKEN_CREDENTIALS";
        let chosen = variable(CHOICE);
        let authority = variable("AZURE_AUTHORITY_HOST");
        let authority = authority
            .as_deref()
            .unwrap_or("https://login.microsoftonline.com");
        Self {
            authority: authority.trim_end_matches('/').to_owned(),
            manager: "https://management.azure.com".into(),
            metadata: "http://169.254.169.254".into(),
            issuers: "http://www.microsoft.com".into(),
            client_id: variable("AZURE_CLIENT_ID"),
            tenant_id: variable("AZURE_TENANT_ID"),
            client_secret: variable("AZURE_CLIENT_SECRET").map(Zeroizing::new),
            federated_token_file: variable("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from),
            unserved: unserved
                .into_iter()
                .find(|name| variable(name).is_some())
                .or_else(|| chosen.filter(|value| value != "prod").map(|_| CHOICE)),
        }
    }
}

impl std::fmt::Debug for Azure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Azure")
            .field("authority", &self.authority)
            .field("manager", &self.manager)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// How a caller shows who it is.
#[derive(Clone)]
pub enum Proof {
    /// An application's secret.
    Secret {
        /// The application.
        app_id: String,
        /// Its secret.
        secret: Zeroizing<String>,
    },
    /// A token of another issuer that the application trusts, read anew each time.
    Token {
        /// The application.
        app_id: String,
        /// The file with the token.
        path: PathBuf,
    },
    /// The environment's secret, its workload identity, or the managed identity of this virtual machine.
    Default,
}

/// Somebody who calls one of Azure's services, in one tenant.
pub struct Caller {
    azure: Azure,
    /// Where the service is, without a `/` at its end.
    service: String,
    /// What tokens for it are for.
    resource: String,
    tenant: String,
    proof: Proof,
    held: Mutex<Option<(Zeroizing<String>, SystemTime)>>,
}

#[derive(Deserialize)]
struct Given {
    access_token: String,
    /// Seconds; the metadata service writes a text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// What the service answered; `None` where it did not, or where its answer is another one.
    pub status: Option<StatusCode>,
    text: String,
}

impl From<String> for CallError {
    fn from(text: String) -> Self {
        Self { status: None, text }
    }
}

impl From<CallError> for String {
    fn from(error: CallError) -> Self {
        error.text
    }
}

impl Caller {
    /// Calls Azure Resource Manager, with `proof` in the tenant `tenant`, which is an id.
    pub fn new(azure: Azure, tenant: &str, proof: Proof) -> Self {
        let service = azure.manager.clone();
        Self::of(
            azure,
            service,
            "https://management.azure.com",
            tenant,
            proof,
        )
    }

    /// Calls the service at `service`, tokens for which are for `resource`. Neither has a `/` at its end.
    pub fn of(azure: Azure, service: String, resource: &str, tenant: &str, proof: Proof) -> Self {
        Self {
            azure,
            service,
            resource: resource.to_owned(),
            tenant: tenant.to_owned(),
            proof,
            held: Mutex::new(None),
        }
    }

    /// What Azure Resource Manager answers at `path`, which has its query; `body` is posted where there is one.
    ///
    /// # Errors
    /// There is no token, the service cannot be reached, or it says no: with the beginning of its answer.
    pub async fn manager<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
        now: SystemTime,
    ) -> Result<T, String> {
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        Ok(self.call(method, path, body, now).await?)
    }

    /// What the service answers at `path`, which has its query, to `body` where there is one.
    ///
    /// # Errors
    /// As [`Caller::manager`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        now: SystemTime,
    ) -> Result<T, CallError> {
        let url = format!("{}{path}", self.service);
        self.at(method, &url, body, now).await
    }

    /// The page after the one that gave `link`.
    ///
    /// # Errors
    /// As [`Caller::manager`]; and `link` leads somewhere else.
    pub async fn next<T: DeserializeOwned>(
        &self,
        link: &str,
        now: SystemTime,
    ) -> Result<T, String> {
        // The token is for this service alone.
        match link.strip_prefix(&self.service) {
            Some(rest) if rest.starts_with('/') => {
                Ok(self.at(Method::GET, link, None, now).await?)
            }
            _ => Err(format!("{link:?} leads away from {}", self.service)),
        }
    }

    async fn at<T: DeserializeOwned>(
        &self,
        method: Method,
        url: &str,
        body: Option<&serde_json::Value>,
        now: SystemTime,
    ) -> Result<T, CallError> {
        let token = Box::pin(self.token(now)).await;
        let token = token.map_err(|error| format!("no access token: {error}"))?;
        let bearer = Zeroizing::new(format!("Bearer {}", *token));
        let bearer = HeaderValue::from_str(&bearer);
        let mut bearer = bearer.map_err(|_| "the access token is no text".to_owned())?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::AUTHORIZATION, bearer)
            .header(header::CONTENT_TYPE, "application/json");
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        send(request.body(body)).await
    }

    async fn token(&self, now: SystemTime) -> Result<Zeroizing<String>, String> {
        let mut held = self.held.lock().await;
        if let Some((token, until)) = held.as_ref()
            && now
                .checked_add(RENEW_BEFORE)
                .is_some_and(|soon| soon < *until)
        {
            return Ok(token.clone());
        }
        let given: Given = send(self.request().await?).await?;
        let token = Zeroizing::new(given.access_token);
        let seconds = match &given.expires_in {
            serde_json::Value::Number(number) => number.as_u64(),
            serde_json::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let until = now.checked_add(Duration::from_secs(seconds.unwrap_or(0).min(1 << 20)));
        *held = until.map(|until| (token.clone(), until));
        Ok(token)
    }

    async fn request(&self) -> Result<Result<Request<Bytes>, http::Error>, String> {
        let azure = &self.azure;
        match &self.proof {
            Proof::Secret { app_id, secret } => {
                return Ok(self.ask(&self.tenant, app_id, &[("client_secret", secret)]));
            }
            Proof::Token { app_id, path } => return self.with_file(app_id, path).await,
            Proof::Default => {}
        }
        let id = azure.client_id.as_deref();
        if let (Some(id), Some(secret), Some(tenant)) = (id, &azure.client_secret, &azure.tenant_id)
        {
            return Ok(self.ask(tenant, id, &[("client_secret", secret)]));
        }
        if let Some(name) = azure.unserved {
            return Err(format!(
                "{name} is set, which is not served; set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or \
                 name an application in the configuration"
            ));
        }
        if let (Some(id), Some(file)) = (id, &azure.federated_token_file) {
            return self.with_file(id, file).await;
        }
        let resource = percent_encoded(&self.resource);
        let mut query = format!("api-version=2018-02-01&resource={resource}");
        if let Some(id) = id {
            query.push_str(&format!("&client_id={}", percent_encoded(id)));
        }
        let url = format!("{}/metadata/identity/oauth2/token?{query}", azure.metadata);
        let request = Request::get(url).header("Metadata", "true");
        Ok(request.body(Bytes::new()))
    }

    async fn with_file(
        &self,
        app_id: &str,
        path: &Path,
    ) -> Result<Result<Request<Bytes>, http::Error>, String> {
        let shown = path.display();
        let token = tokio::fs::read_to_string(path).await;
        let token = token.map_err(|error| format!("unable to read token file {shown}: {error}"))?;
        let token = Zeroizing::new(token);
        let token = token.trim();
        if crate::jwt::UnverifiedJwt::parse(token).is_err() {
            return Err(format!(
                "unable to parse token file {shown}: it is no JWT in compact form"
            ));
        }
        let proof = [
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", token),
        ];
        Ok(self.ask(&self.tenant, app_id, &proof))
    }

    /// Asks for a token of the application (RFC 6749 §4.4, RFC 7523 §2.2).
    fn ask(
        &self,
        tenant: &str,
        app_id: &str,
        proof: &[(&str, &str)],
    ) -> Result<Request<Bytes>, http::Error> {
        let mut form = format!(
            "grant_type=client_credentials&client_id={}&scope={}",
            percent_encoded(app_id),
            percent_encoded(&format!("{}/.default", self.resource))
        );
        for (name, value) in proof {
            form.push_str(&format!("&{name}={}", percent_encoded(value)));
        }
        let (authority, tenant) = (&self.azure.authority, percent_encoded(tenant));
        Request::post(format!("{authority}/{tenant}/oauth2/v2.0/token"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.into())
    }
}

/// The answer to `request` in JSON.
async fn send<T: DeserializeOwned>(
    request: Result<Request<Bytes>, http::Error>,
) -> Result<T, CallError> {
    let request = request.map_err(|error| error.to_string())?;
    let uri = request.uri().clone();
    let shown = format!(
        "{}{}",
        uri.authority().map_or("", |it| it.as_str()),
        uri.path()
    );
    let answer = HttpClient::web()?.send(request).await?;
    if !answer.status().is_success() {
        let said = String::from_utf8_lossy(answer.body());
        let said: String = said.chars().take(MAX_TOLD).collect();
        return Err(CallError {
            status: Some(answer.status()),
            text: format!("{shown}: {}: {said}", answer.status()),
        });
    }
    serde_json::from_slice(answer.body()).map_err(|error| {
        format!(
            "{shown}: the answer is not what was asked for (line {}, column {})",
            error.line(),
            error.column()
        )
        .into()
    })
}

/// A document in JSON that is there for everybody.
///
/// # Errors
/// It is not to be had, or is not what was expected.
pub async fn public<T: DeserializeOwned>(url: &str) -> Result<T, String> {
    Ok(send(Request::get(url).body(Bytes::new())).await?)
}

/// What the metadata service of this virtual machine answers at `path`, which has its query.
///
/// # Errors
/// There is no answer, or another one: with its status and beginning.
pub async fn metadata<T: DeserializeOwned>(azure: &Azure, path: &str) -> Result<T, String> {
    let url = format!("{}{path}", azure.metadata);
    let request = Request::get(url)
        .header("Metadata", "true")
        .body(Bytes::new());
    Ok(send(request).await?)
}
