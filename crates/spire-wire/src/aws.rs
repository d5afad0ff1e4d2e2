//! Calls to AWS: where its services are, who calls, and what they answer.
//!
//! Variables, files and the order of sources are those of AWS's SDKs, so that a machine that is set up for one of them is
//! set up for this.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Uri};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::http_client::{HttpClient, Roots};
use crate::sigv4::{Credentials, Scope, sign};

mod credentials;
mod imds;
mod profile;

pub use imds::Imds;

use credentials::Held;
use profile::Profile;

/// How long before its end a key is replaced.
const RENEW_BEFORE: Duration = Duration::from_mins(2);

/// The environment as far as AWS goes: variables that begin with `AWS_`, and `HOME`.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, Zeroizing<String>>);

impl Environment {
    /// This process's. Variables that are not UTF-8 count as not set.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of `name`; an empty one counts as none.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?.as_str();
        (!value.is_empty()).then_some(value)
    }

    fn is_true(&self, name: &str) -> bool {
        self.variable(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Trusts the certificates of `AWS_CA_BUNDLE` alone where it is set, as AWS's SDKs do.
    fn client(&self) -> Result<HttpClient, String> {
        let Some(file) = self.variable("AWS_CA_BUNDLE") else {
            return HttpClient::new(Roots::Machine, None);
        };
        let told = |why: String| format!("AWS_CA_BUNDLE: {file}: {why}");
        let roots = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| told(error.to_string()))?;
        if roots.is_empty() {
            return Err(told("it has no certificates in PEM".into()));
        }
        HttpClient::new(Roots::Only(roots), None).map_err(told)
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let known = |name: &str| name == "HOME" || name.starts_with("AWS_");
        let variables = variables.into_iter().filter(|(name, _)| known(name));
        Self(
            variables
                .map(|(name, value)| (name, Zeroizing::new(value)))
                .collect(),
        )
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A service of AWS.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name in `AWS_ENDPOINT_URL_<id>`.
    pub id: &'static str,
    /// The first part of its host, and the name it is signed for.
    pub name: &'static str,
    /// Whether a partition has it once.
    pub global: bool,
}

impl Service {
    /// Security Token Service
    pub const STS: Self = Self::regional("STS", "sts");

    /// A service that each region has.
    pub const fn regional(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            global: false,
        }
    }

    /// A service that a partition has once, for all its regions.
    pub const fn global(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            global: true,
        }
    }

    /// The service's URL without a path, and the region that it is signed for.
    ///
    /// # Errors
    /// `region` is no name of a region, or the environment asks for endpoints that are not served.
    pub fn endpoint(
        &self,
        environment: &Environment,
        region: &str,
    ) -> Result<(String, String), String> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if region.is_empty() || !region.bytes().all(fits) {
            return Err(format!("{region:?} is no region of AWS"));
        }
        for name in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
            if environment.is_true(name) {
                return Err(format!(
                    "{name} is set, which is not served; name the endpoint in AWS_ENDPOINT_URL_{}",
                    self.id
                ));
            }
        }
        let (suffix, home) = if region.starts_with("cn-") {
            ("amazonaws.com.cn", "cn-north-1")
        } else if region.starts_with("us-gov-") {
            ("amazonaws.com", "us-gov-west-1")
        } else if region.starts_with("eusc-") {
            ("amazonaws.eu", "eusc-de-east-1")
        } else {
            ("amazonaws.com", "us-east-1")
        };
        // Organizations is in China's other region.
        let home = match (self.name, home) {
            ("organizations", "cn-north-1") => "cn-northwest-1",
            _ => home,
        };
        let signed_for = if self.global { home } else { region };
        let configured = if environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
            None
        } else {
            let own = environment.variable(&format!("AWS_ENDPOINT_URL_{}", self.id));
            own.or_else(|| environment.variable("AWS_ENDPOINT_URL"))
        };
        let url = match (configured, self.name, home) {
            (Some(url), _, _) => url.trim_end_matches('/').to_owned(),
            (None, "iam", "us-east-1") => format!("https://iam.{suffix}"),
            (None, "iam", "us-gov-west-1") => format!("https://iam.us-gov.{suffix}"),
            (None, name, _) => format!("https://{name}.{signed_for}.{suffix}"),
        };
        Ok((url, signed_for.to_owned()))
    }
}

/// Somebody who calls AWS, in one region.
#[derive(Debug)]
pub struct Caller {
    environment: Environment,
    region: String,
    keys: Option<Credentials>,
    role: Option<String>,
    held: Mutex<Option<Held>>,
}

impl Caller {
    /// With `keys`, or else with what AWS's SDKs would find: the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
    /// `AWS_SESSION_TOKEN`; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`); a profile of the shared files;
    /// the container's role; the instance's role.
    pub fn new(environment: Environment, region: &str, keys: Option<Credentials>) -> Self {
        Self {
            environment,
            region: region.to_owned(),
            keys,
            role: None,
            held: Mutex::new(None),
        }
    }

    /// The same, who takes on the role `arn` first.
    #[must_use]
    pub fn assuming(mut self, arn: String) -> Self {
        self.role = Some(arn);
        self
    }

    /// What `service` answers to `request`, whose URI has path and query alone, if it is a success.
    ///
    /// # Errors
    /// There are no credentials, the service cannot be reached, or it says no: with its own code and message.
    pub async fn call(
        &self,
        service: Service,
        request: Request<Bytes>,
        now: SystemTime,
    ) -> Result<Bytes, String> {
        let credentials = self.credentials(now).await;
        let credentials =
            credentials.map_err(|error| format!("no credentials for AWS: {error}"))?;
        let at = (&self.environment, self.region.as_str());
        send(at, service, request, Some(&credentials), now).await
    }

    async fn credentials(&self, now: SystemTime) -> Result<Credentials, String> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.lasts(now)) {
            return Ok(held.credentials.clone());
        }
        let profile = Profile::read(&self.environment).await?;
        profile.check()?;
        let own = match &self.keys {
            Some(keys) => Held::without_end(keys.clone()),
            None => {
                let (environment, region) = (&self.environment, &self.region);
                Box::pin(credentials::found(environment, region, &profile, now)).await?
            }
        };
        let new = match &self.role {
            None => own,
            Some(arn) => {
                let at = (&self.environment, self.region.as_str());
                credentials::assumed(at, &own.credentials, arn, now).await?
            }
        };
        let credentials = new.credentials.clone();
        *held = Some(new);
        Ok(credentials)
    }
}

/// Sends `request` to `service` as the region of `at` has it, signed with `credentials`.
async fn send(
    at: (&Environment, &str),
    service: Service,
    mut request: Request<Bytes>,
    credentials: Option<&Credentials>,
    now: SystemTime,
) -> Result<Bytes, String> {
    let (environment, region) = at;
    let (url, region) = service.endpoint(environment, region)?;
    let uri: Uri = format!("{url}{}", request.uri())
        .parse()
        .map_err(|error| format!("{url}: {error}"))?;
    *request.uri_mut() = uri;
    if let Some(credentials) = credentials {
        let scope = Scope {
            region: &region,
            service: service.name,
        };
        sign(&mut request, credentials, scope, now)?;
    }
    let answer = environment.client()?.send(request).await?;
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    Err(format!(
        "{url}: {}{}",
        answer.status(),
        why(answer.body()).unwrap_or_default()
    ))
}

/// The code and the message of an answer that says no.
fn why(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "__type", alias = "code", default)]
        code: String,
        #[serde(alias = "Message", default)]
        message: String,
    }
    let text = std::str::from_utf8(body).ok()?;
    let (code, message) = match serde_json::from_str::<Said>(text) {
        Ok(said) => (said.code, said.message),
        Err(_) => {
            let document = roxmltree::Document::parse(text).ok()?;
            let of = |name| {
                let found = document
                    .descendants()
                    .find(|node| node.tag_name().name() == name);
                found.and_then(|node| node.text()).unwrap_or_default()
            };
            (of("Code").to_owned(), of("Message").to_owned())
        }
    };
    // `com.amazonaws.service#Exception` in some services.
    let code = code.rsplit('#').next().unwrap_or_default();
    (!code.is_empty() || !message.is_empty()).then(|| format!(": {code}: {message}"))
}

#[cfg(test)]
mod tests;
