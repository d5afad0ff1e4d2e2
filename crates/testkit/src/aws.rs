//! AWS for tests: its services on a [`Web`], each below a path of its own, with signatures that are verified.

pub mod kms;
pub mod pca;
pub mod secrets;

use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_wire::sigv4::{Credentials, Scope, percent_encoded, sign};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::web::{Asked, Web};

/// The region that calls have to be signed for.
pub const REGION: &str = "eu-central-1";

/// An access key that counts.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub id: &'static str,
    /// Its secret.
    pub secret: &'static str,
    /// What has to be sent along.
    pub token: Option<&'static str>,
}

/// That of [`variables`].
pub const OWN: Key = Key {
    id: "AKIDEXAMPLE",
    secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    token: None,
};

/// That of a role, which [`assumes`] gives.
pub const ROLE: Key = Key {
    id: "ASIAROLE",
    secret: "secret-of-the-role",
    token: Some("token-of-the-role"),
};

/// The environment in which AWS's services are on `web`: the service that calls itself `ACM PCA` below `/acm_pca`, and so
/// on. There are no other credentials than [`OWN`].
pub fn variables(web: &Web) -> Vec<(String, String)> {
    let services = [
        "ACM_PCA",
        "KMS",
        "RESOURCE_GROUPS_TAGGING_API",
        "ROLESANYWHERE",
        "S3",
        "SECRETS_MANAGER",
        "STS",
    ];
    let places = services.iter().map(|service| {
        let url = web.url(&format!("/{}", service.to_lowercase()));
        (format!("AWS_ENDPOINT_URL_{service}"), url)
    });
    let keys = [
        ("AWS_ACCESS_KEY_ID", OWN.id),
        ("AWS_SECRET_ACCESS_KEY", OWN.secret),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ];
    let keys = keys.map(|(name, value)| (name.to_owned(), value.to_owned()));
    places.chain(keys).collect()
}

/// `answer`, to calls that `key` has signed for `service`; a refusal in AWS's words to all others.
pub fn signed(
    key: Key,
    service: &'static str,
    answer: impl Fn(&Asked) -> Response<Bytes> + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Response<Bytes> + Send + Sync + 'static {
    move |asked| match verify(asked, key, service) {
        Ok(()) => answer(asked),
        Err(why) => refusal(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", &why),
    }
}

/// Has `answer` given below `place`, with a slash at its end or, as AWS's SDKs ask, without.
fn serve(
    web: &Web,
    place: &str,
    answer: impl Fn(&Asked) -> Response<Bytes> + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    for place in [place.to_owned(), format!("{place}/")] {
        let answer = answer.clone();
        web.answers_by(&place, move |asked| answer(asked));
    }
}

/// As the services answer whose requests are JSON.
pub fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    let body = json!({"__type": code, "message": message}).to_string();
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

/// The operation of AWS's JSON protocol 1.1 that is asked of the API `prefix`, and its fields.
fn operation(asked: &Asked, prefix: &str) -> (String, Value) {
    assert_eq!(asked.header("content-type"), "application/x-amz-json-1.1");
    let target = asked.header("x-amz-target");
    let operation = target.strip_prefix(prefix);
    let operation = operation.and_then(|rest| rest.strip_prefix('.')).unwrap();
    (
        operation.to_owned(),
        serde_json::from_str(&asked.body).unwrap(),
    )
}

/// Has STS on `web` give [`ROLE`] to whoever asks for `role` with [`OWN`].
pub fn assumes(web: &Web, role: &'static str) {
    let form = format!("RoleArn={}", percent_encoded(role));
    let answer = move |asked: &Asked| {
        if !asked.body.contains("Action=AssumeRole&") || !asked.body.contains(&form) {
            return refusal(StatusCode::FORBIDDEN, "AccessDenied", "another role");
        }
        let Key { id, secret, token } = ROLE;
        let token = token.unwrap_or_default();
        let body = format!(
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>2065-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        );
        Response::new(body.into())
    };
    serve(web, "/sts", signed(OWN, "sts", answer));
}

/// Whether the request, as it came, is one that `key` signed: the signature is made anew from the headers that it is said
/// to be over, and all that is AWS's own has to be among them.
fn verify(asked: &Asked, key: Key, service: &str) -> Result<(), String> {
    let authorization = asked.header("authorization");
    let of = |name: &str| {
        let parts = authorization.split([' ', ',']);
        let mut values = parts.filter_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        values.next().ok_or(format!("no {name}"))
    };
    let over: Vec<&str> = of("SignedHeaders")?.split(';').collect();
    let own = asked.headers.keys().map(http::HeaderName::as_str);
    for name in own.filter(|name| name.starts_with("x-amz-") || *name == "host") {
        if !over.contains(&name) {
            return Err(format!("{name} is not signed"));
        }
    }
    let token = asked.header("x-amz-security-token");
    if token != key.token.unwrap_or_default() {
        return Err(format!("the token is {token:?}"));
    }
    let at = asked.header("x-amz-date");
    let at = PrimitiveDateTime::parse(
        at,
        format_description!("[year][month][day]T[hour][minute][second]Z"),
    );
    let at: SystemTime = at.map_err(|error| error.to_string())?.assume_utc().into();
    let uri = format!("http://{}{}", asked.header("host"), asked.target);
    let mut request = Request::builder().method(asked.method.clone()).uri(uri);
    for name in over.iter().filter(|name| **name != "host") {
        for value in asked.headers.get_all(*name) {
            request = request.header(*name, value);
        }
    }
    let request = request.body(Bytes::from(asked.body.clone()));
    let mut request = request.map_err(|error| error.to_string())?;
    let credentials = Credentials {
        access_key_id: key.id.to_owned(),
        secret_access_key: key.secret.to_owned().into(),
        session_token: key.token.map(|token| token.to_owned().into()),
    };
    let scope = Scope {
        region: REGION,
        service,
    };
    sign(&mut request, &credentials, scope, at)?;
    let expected = request.headers()["authorization"].to_str().unwrap();
    let spaced = |text: &str| text.replace(", ", ",");
    if spaced(expected) != spaced(authorization) {
        return Err(format!("{authorization:?} should be {expected:?}"));
    }
    let content = asked.header("x-amz-content-sha256");
    let digest = request.headers().get("x-amz-content-sha256");
    if digest.is_some_and(|digest| digest != content) {
        return Err("x-amz-content-sha256 is not that of the body".to_owned());
    }
    Ok(())
}
