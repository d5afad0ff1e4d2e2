//! Calls to AWS: where its services are, who calls, and what they answer.
//!
//! Variables, files and the order of sources are those of AWS's SDKs, so that a machine that is set up for one of them is
//! set up for this.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Uri, header};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OnceCell};
use zeroize::Zeroizing;

use crate::http_client::{HttpClient, Roots};
use crate::sigv4::{Credentials, Scope, percent_encoded, presigned, sign};

mod credentials;
mod fault;
mod imds;
mod profile;
mod service;

pub use fault::Fault;
pub use imds::Imds;
pub use service::Service;

use credentials::Held;
use profile::Profile;

/// How long before its end a key is replaced.
const RENEW_BEFORE: Duration = Duration::from_mins(2);

/// How often a call is tried, as by AWS's SDKs, and the longest wait before the second time; then it doubles.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);

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
            return HttpClient::web();
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

impl Environment {
    /// The access key of a configuration, if it has one; what it leaves out of the two halves is the environment's.
    ///
    /// # Errors
    /// One half is nowhere.
    pub fn keys(&self, id: &str, secret: &str) -> Result<Option<Credentials>, String> {
        let or = |given: &str, name: &str| match given {
            "" => self.variable(name).unwrap_or_default().to_owned(),
            given => given.to_owned(),
        };
        let keys = Credentials {
            access_key_id: or(id, "AWS_ACCESS_KEY_ID"),
            secret_access_key: Zeroizing::new(or(secret, "AWS_SECRET_ACCESS_KEY")),
            session_token: None,
        };
        let missing = |set: &str, missing: &str| {
            Err(format!("configuration missing {missing}, but has {set}"))
        };
        match (
            keys.access_key_id.is_empty(),
            keys.secret_access_key.is_empty(),
        ) {
            (false, true) => missing("access key id", "secret access key"),
            (true, false) => missing("secret access key", "access key id"),
            _ => Ok((!id.is_empty() || !secret.is_empty()).then_some(keys)),
        }
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

/// Somebody who calls AWS, in one region.
pub struct Caller {
    environment: Environment,
    region: String,
    keys: Option<Credentials>,
    role: Option<String>,
    endpoint: Option<String>,
    client: OnceCell<HttpClient>,
    held: Mutex<Option<Held>>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("region", &self.region)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
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
            endpoint: None,
            client: OnceCell::new(),
            held: Mutex::new(None),
        }
    }

    /// The same, who takes on the role `arn` first.
    #[must_use]
    pub fn assuming(mut self, arn: String) -> Self {
        self.role = Some(arn);
        self
    }

    /// The same, who finds every service at `url`, whatever the environment says. Credentials come from where they would
    /// without.
    #[must_use]
    pub fn at(mut self, url: &str) -> Self {
        self.endpoint = Some(url.trim_end_matches('/').to_owned());
        self
    }

    /// `service`'s URL without a path, as this caller sees it, and the region that it is signed for.
    ///
    /// # Errors
    /// As [`Service::endpoint`].
    pub fn endpoint(&self, service: Service) -> Result<(String, String), String> {
        let (found, region) = service.endpoint(&self.environment, &self.region)?;
        Ok((self.endpoint.clone().unwrap_or(found), region))
    }

    /// What `service` answers to `request`, whose URI has path and query alone, if it is a success. What may be over soon
    /// (a throttled call, a fault of AWS's, a broken connection) is tried again, three times in all.
    ///
    /// # Errors
    /// There are no credentials, the service cannot be reached, or it says no: with its own code and message.
    pub async fn call(
        &self,
        service: Service,
        request: Request<Bytes>,
        now: SystemTime,
    ) -> Result<Bytes, Fault> {
        let (url, region) = self.endpoint(service)?;
        self.call_at(&url, (service, &region), request, now).await
    }

    /// As [`Self::call`], at `url`, which is another one than the service's own, signed for that service and region.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_at(
        &self,
        url: &str,
        (service, region): (Service, &str),
        request: Request<Bytes>,
        now: SystemTime,
    ) -> Result<Bytes, Fault> {
        let client = self
            .client
            .get_or_try_init(async || self.environment.client());
        let client = client.await?;
        let credentials = self.credentials(now).await;
        let credentials =
            credentials.map_err(|error| format!("no credentials for AWS: {error}"))?;
        let scope = Scope {
            region,
            service: service.name,
        };
        let begun = Instant::now();
        let mut left = ATTEMPTS;
        let mut wait = FIRST_WAIT;
        loop {
            let now = now.checked_add(begun.elapsed()).unwrap_or(now);
            let signed = Some((&credentials, scope));
            let fault = match send(client, url, request.clone(), signed, now).await {
                Err(fault) => fault,
                told => return told,
            };
            left = left.saturating_sub(1);
            if left == 0 || !fault.may_pass() {
                return Err(fault);
            }
            tracing::debug!(service = service.name, %fault, "AWS is asked again");
            tokio::time::sleep(jittered(wait)).await;
            wait = wait.saturating_mul(2);
        }
    }

    /// What `service` answers to `operation` with these fields (AWS JSON 1.1). The operation is named with its version's
    /// prefix, as `X-Amz-Target` has it.
    ///
    /// # Errors
    /// As [`Self::call`], or the answer is another one.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        service: Service,
        operation: &str,
        fields: &impl Serialize,
        now: SystemTime,
    ) -> Result<T, Fault> {
        let told = |error: &dyn fmt::Display| Fault::from(format!("{operation}: {error}"));
        let body = serde_json::to_vec(fields).map_err(|error| told(&error))?;
        let request = Request::post("/")
            .header(header::CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("X-Amz-Target", operation)
            .body(body.into())
            .map_err(|error| told(&error))?;
        let answer = self.call(service, request, now).await?;
        // Operations that tell nothing answer nothing.
        let answer: &[u8] = if answer.is_empty() { b"{}" } else { &answer };
        serde_json::from_slice(answer).map_err(|error| {
            Fault::from(format!(
                "the answer of {} is another one: {error}",
                service.name
            ))
        })
    }

    /// What `service` answers to a form (the protocol of AWS's older services): XML.
    ///
    /// # Errors
    /// As [`Self::call`], or the answer is no text.
    pub async fn query(
        &self,
        service: Service,
        form: &[(&str, &str)],
        now: SystemTime,
    ) -> Result<String, Fault> {
        let form = form
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encoded(value)));
        let request = Request::post("/")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.collect::<Vec<_>>().join("&").into())
            .map_err(|error| error.to_string())?;
        let answer = self.call(service, request, now).await?;
        let text = String::from_utf8(answer.to_vec());
        text.map_err(|_| Fault::from("the answer is no text".to_owned()))
    }

    /// Who AWS takes this caller for: an ARN, and the account.
    ///
    /// # Errors
    /// As [`Self::call`], or the answer is another one.
    pub async fn identity(&self, now: SystemTime) -> Result<(String, String), Fault> {
        let form = [("Action", "GetCallerIdentity"), ("Version", "2011-06-15")];
        let answer = self.query(Service::STS, &form, now).await?;
        let unreadable = || Fault::from("the answer of STS has no identity".to_owned());
        let document = roxmltree::Document::parse(&answer).map_err(|_| unreadable())?;
        let of = |name| {
            let mut nodes = document.descendants();
            let found = nodes.find(|node| node.tag_name().name() == name);
            let found = found.and_then(|node| node.text());
            found.map(str::to_owned).ok_or_else(unreadable)
        };
        Ok((of("Arn")?, of("Account")?))
    }

    /// `uri` with this caller's signature for `service` in its query, which counts for `lasts`.
    ///
    /// # Errors
    /// There are no credentials, or the URI cannot be signed.
    pub async fn presigned(
        &self,
        uri: &Uri,
        service: Service,
        lasts: Duration,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, String> {
        let credentials = self.credentials(now).await;
        let credentials =
            credentials.map_err(|error| format!("no credentials for AWS: {error}"))?;
        let scope = Scope {
            region: &self.region,
            service: service.name,
        };
        presigned(uri, &credentials, scope, lasts, now)
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

/// Between half of `wait` and all of it: many that were throttled at a time do not come back at a time.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0_u8; 1];
    // Without random numbers it is half.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let [byte] = random;
    wait.mul_f64(0.5 + f64::from(byte) / 512.0)
}

/// Sends `request`, whose URI has path and query alone, to `url`, signed for `scope` if there are credentials.
async fn send(
    client: &HttpClient,
    url: &str,
    mut request: Request<Bytes>,
    signed: Option<(&Credentials, Scope<'_>)>,
    now: SystemTime,
) -> Result<Bytes, Fault> {
    let uri: Uri = format!("{url}{}", request.uri())
        .parse()
        .map_err(|error| format!("{url}: {error}"))?;
    *request.uri_mut() = uri;
    if let Some((credentials, scope)) = signed {
        sign(&mut request, credentials, scope, now)?;
    }
    let answer = client.send(request).await.map_err(Fault::unreached)?;
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    Err(Fault::told(url, &answer))
}

#[cfg(test)]
mod tests;
