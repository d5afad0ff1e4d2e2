//! Whom a machine calls AWS as.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::aws::profile::Profile;
use crate::aws::{Environment, Imds, RENEW_BEFORE, Service, send};
use crate::sigv4::{Credentials, Scope, percent_encoded};

/// The name of this program's sessions, which AWS's log of calls shows.
const SESSION: &str = "spire";

/// Where containers of ECS and EKS find their credentials.
const CONTAINERS: &str = "http://169.254.170.2";

/// Credentials, and when they end.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) credentials: Credentials,
    until: Option<SystemTime>,
}

impl Held {
    pub(super) fn without_end(credentials: Credentials) -> Self {
        Self {
            credentials,
            until: None,
        }
    }

    pub(super) fn lasts(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| {
            now.checked_add(RENEW_BEFORE)
                .is_some_and(|soon| soon < until)
        })
    }

    fn until(credentials: Credentials, until: &str) -> Result<Self, String> {
        let until = OffsetDateTime::parse(until, &Rfc3339);
        let until = until.map_err(|error| format!("Expiration {error}"))?;
        Ok(Self {
            credentials,
            until: Some(until.into()),
        })
    }
}

/// The first of the sources that has any.
pub(super) async fn found(
    environment: &Environment,
    region: &str,
    profile: &Profile,
    now: SystemTime,
) -> Result<Held, String> {
    let variable = |name| environment.variable(name);
    if let (Some(id), Some(secret)) = (
        variable("AWS_ACCESS_KEY_ID"),
        variable("AWS_SECRET_ACCESS_KEY"),
    ) {
        let token = variable("AWS_SESSION_TOKEN");
        return Ok(Held::without_end(credentials(id, secret, token)));
    }
    if let (Some(file), Some(arn)) = (
        variable("AWS_WEB_IDENTITY_TOKEN_FILE"),
        variable("AWS_ROLE_ARN"),
    ) {
        return web_identity((environment, region), file, arn, now).await;
    }
    if let Some(found) = profile.credentials()? {
        return Ok(Held::without_end(found));
    }
    if let Some(found) = container(environment).await? {
        return Ok(found);
    }
    if environment.is_true("AWS_EC2_METADATA_DISABLED") {
        return Err("there are none in the environment, in files or of a container".into());
    }
    instance(environment).await
}

pub(super) fn credentials(id: &str, secret: &str, token: Option<&str>) -> Credentials {
    Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: Zeroizing::new(secret.to_owned()),
        session_token: token.map(|token| Zeroizing::new(token.to_owned())),
    }
}

/// The role `arn`, taken on by the holder of `own`.
pub(super) async fn assumed(
    at: (&Environment, &str),
    own: &Credentials,
    arn: &str,
    now: SystemTime,
) -> Result<Held, String> {
    let form = [
        ("Action", "AssumeRole"),
        ("RoleArn", arn),
        ("DurationSeconds", "900"),
    ];
    ask_sts(at, &form, Some(own), now)
        .await
        .map_err(|error| format!("the role {arn} is not assumed: {error}"))
}

async fn web_identity(
    at: (&Environment, &str),
    file: &str,
    arn: &str,
    now: SystemTime,
) -> Result<Held, String> {
    let token = tokio::fs::read_to_string(file).await;
    let token = Zeroizing::new(token.map_err(|error| format!("{file}: {error}"))?);
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("RoleArn", arn),
        ("WebIdentityToken", token.trim()),
    ];
    ask_sts(at, &form, None, now)
        .await
        .map_err(|error| format!("the role {arn} is not assumed with {file}: {error}"))
}

async fn ask_sts(
    (environment, region): (&Environment, &str),
    form: &[(&str, &str)],
    own: Option<&Credentials>,
    now: SystemTime,
) -> Result<Held, String> {
    let name = environment.variable("AWS_ROLE_SESSION_NAME");
    let name = name.unwrap_or(SESSION);
    let mut body = format!(
        "Version=2011-06-15&RoleSessionName={}",
        percent_encoded(name)
    );
    for (name, value) in form {
        body.push_str(&format!("&{name}={}", percent_encoded(value)));
    }
    let request = Request::post("/")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body.into())
        .map_err(|error| error.to_string())?;
    let (url, region) = Service::STS.endpoint(environment, region)?;
    let scope = Scope {
        region: &region,
        service: Service::STS.name,
    };
    let own = own.map(|own| (own, scope));
    let answer = send(&environment.client()?, &url, request, own, now).await?;
    let answer = Zeroizing::new(answer.to_vec());
    let unreadable = || "the answer of STS has no credentials".to_owned();
    let text = std::str::from_utf8(&answer).map_err(|_| unreadable())?;
    let document = roxmltree::Document::parse(text).map_err(|_| unreadable())?;
    let of = |name| {
        let mut nodes = document.descendants();
        let found = nodes.find(|node| node.tag_name().name() == name);
        found.and_then(|node| node.text()).ok_or_else(unreadable)
    };
    let id = of("AccessKeyId")?;
    let credentials = credentials(id, of("SecretAccessKey")?, Some(of("SessionToken")?));
    Held::until(credentials, of("Expiration")?)
}

/// As the services of containers and instances give them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

impl Given {
    fn read(body: &[u8], from: &str) -> Result<Held, String> {
        let given: Self = serde_json::from_slice(body)
            .map_err(|_| format!("{from}: the answer has no credentials"))?;
        let Self {
            access_key_id,
            secret_access_key,
            token,
            expiration,
        } = given;
        let credentials = Credentials {
            access_key_id,
            secret_access_key: Zeroizing::new(secret_access_key),
            session_token: Some(Zeroizing::new(token)),
        };
        Held::until(credentials, &expiration)
    }
}

async fn container(environment: &Environment) -> Result<Option<Held>, String> {
    let variable = |name| environment.variable(name);
    let url = match (
        variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ) {
        (Some(path), _) => format!("{CONTAINERS}{path}"),
        (None, Some(url)) => url.to_owned(),
        (None, None) => return Ok(None),
    };
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    // The token that is sent along is for this machine's own services.
    let own = |host: &str| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost"
            || ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"].contains(&host)
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    };
    if uri.scheme_str() != Some("https") && !uri.host().is_some_and(own) {
        return Err(format!(
            "{url}: credentials of a container are asked for by https, or on this machine"
        ));
    }
    let mut request = Request::get(uri);
    let token = match variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => {
            let token = tokio::fs::read_to_string(file).await;
            Some(Zeroizing::new(
                token.map_err(|error| format!("{file}: {error}"))?,
            ))
        }
        None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(|token| Zeroizing::new(token.to_owned())),
    };
    if let Some(token) = token {
        let token = HeaderValue::from_str(token.trim());
        let mut token = token.map_err(|_| "the container's token is no text".to_owned())?;
        token.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, token);
    }
    let request = request
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = environment.client()?.send(request).await?;
    if !answer.status().is_success() {
        return Err(format!("{url}: {}", answer.status()));
    }
    Given::read(answer.body(), &url).map(Some)
}

async fn instance(environment: &Environment) -> Result<Held, String> {
    const ROLES: &str = "meta-data/iam/security-credentials/";
    let imds = Imds::new(environment, None)?;
    let none = |error: String| {
        format!(
            "there are none in the environment, in files, or of a container; of the instance: {error}"
        )
    };
    let [roles] = imds.read([ROLES]).await.map_err(none)?;
    let roles = String::from_utf8_lossy(&roles).into_owned();
    let role = roles.lines().next().unwrap_or_default().trim();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    if role.is_empty() || !role.bytes().all(fits) {
        return Err(none("it has no role".into()));
    }
    let path = format!("{ROLES}{role}");
    let [given] = imds.read([path.as_str()]).await.map_err(none)?;
    Given::read(&given, &path)
}
