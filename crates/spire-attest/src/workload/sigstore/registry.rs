//! What a registry has (OCI Distribution Specification 1.1).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ah_spire_wire::http_client::{HttpClient, Roots};
use ah_spire_wire::sigv4::percent_encoded;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Credential;
use super::image::{Image, is_sha256, registry};
use super::key::sha256;
use crate::credentials::authorization;

/// The largest manifest or blob, in bytes: lists of what an image is made of can be some megabytes.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// How often an answer may lead elsewhere.
const REDIRECTS: usize = 5;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// The way to registries.
pub(super) struct Registries {
    client: HttpClient,
    credentials: BTreeMap<String, Credential>,
}

/// The manifest of what is said of an image: each layer is one statement.
#[derive(Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) layers: Vec<Layer>,
}

#[derive(Deserialize)]
pub(super) struct Layer {
    digest: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Registries {
    pub(super) fn new(credentials: &BTreeMap<String, Credential>) -> Result<Self, String> {
        let named =
            |(name, credential): (&String, &Credential)| (registry(name), credential.clone());
        Ok(Self {
            client: HttpClient::new(Roots::Machine, None)?.reading(MAX_BYTES),
            credentials: credentials.iter().map(named).collect(),
        })
    }

    /// The repository of `image`.
    pub(super) fn repository<'a>(&'a self, image: &'a Image) -> Repository<'a> {
        Repository {
            client: &self.client,
            credential: self.credentials.get(&image.registry),
            image,
            plain: false,
            authorization: None,
        }
    }
}

/// One repository, for a few questions.
pub(super) struct Repository<'a> {
    client: &'a HttpClient,
    credential: Option<&'a Credential>,
    image: &'a Image,
    /// Without TLS: at the loopback, where it has been seen to have none.
    plain: bool,
    /// What it wants to be shown.
    authorization: Option<HeaderValue>,
}

impl Repository<'_> {
    /// `None` where there is none.
    pub(super) async fn manifest(&mut self, tag: &str) -> Result<Option<Manifest>, String> {
        let answer = self.get(&format!("manifests/{tag}"), MANIFEST).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(answer.body())
                .map(Some)
                .map_err(|error| format!("the manifest {tag}: {error}")),
            status => Err(format!("the manifest {tag}: the answer is {status}")),
        }
    }

    /// The content of `layer`, which is what its digest says.
    pub(super) async fn blob(&mut self, layer: &Layer) -> Result<Bytes, String> {
        let digest = &layer.digest;
        let hex = digest.strip_prefix("sha256:").filter(|hex| is_sha256(hex));
        let hex = hex.ok_or_else(|| format!("the layer {digest:?} has no SHA-256 for a digest"))?;
        let answer = self.get(&format!("blobs/{digest}"), "*/*").await?;
        if answer.status() != StatusCode::OK {
            return Err(format!(
                "the layer {digest}: the answer is {}",
                answer.status()
            ));
        }
        let content = answer.into_body();
        if ah_identity_provider::hex(&sha256(&content)) != hex {
            return Err(format!(
                "the layer {digest} has another content than its digest says"
            ));
        }
        Ok(content)
    }

    async fn get(&mut self, path: &str, accept: &str) -> Result<Response<Bytes>, String> {
        let mut answer = self.ask(path, accept).await;
        if answer.is_err() && !self.plain && is_loopback(&self.image.registry) {
            self.plain = true;
            answer = self.ask(path, accept).await;
        }
        let answer = answer?;
        if answer.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return self.followed(answer, accept).await;
        }
        self.authorization = Some(self.authorize(&answer).await?);
        let answer = self.ask(path, accept).await?;
        self.followed(answer, accept).await
    }

    async fn ask(&self, path: &str, accept: &str) -> Result<Response<Bytes>, String> {
        let url = self.absolute(&format!("/v2/{}/{path}", self.image.repository));
        self.send(&url, accept, self.authorization.as_ref()).await
    }

    /// `place` itself, unless it is a path here.
    fn absolute(&self, place: &str) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        match place.starts_with('/') {
            true => format!("{scheme}://{}{place}", self.image.registry),
            false => place.to_owned(),
        }
    }

    /// Whether nobody else can listen or answer at `url`.
    fn is_safe(&self, url: &str) -> bool {
        url.parse().is_ok_and(|uri: Uri| {
            let here = self.plain && uri.host().is_some_and(is_loopback);
            uri.scheme_str() == Some("https") || here
        })
    }

    /// Registries keep contents elsewhere, where what they are shown has no place.
    async fn followed(
        &self,
        mut answer: Response<Bytes>,
        accept: &str,
    ) -> Result<Response<Bytes>, String> {
        for _ in 0..REDIRECTS {
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let place = answer.headers().get(header::LOCATION);
            let place = place.and_then(|place| place.to_str().ok()).unwrap_or("");
            let place = &self.absolute(place);
            if !self.is_safe(place) {
                return Err(format!("a redirect to {place:?}, which is not https"));
            }
            answer = self.send(place, accept, None).await?;
        }
        Err("too many redirects".into())
    }

    async fn send(
        &self,
        url: &str,
        accept: &str,
        shown: Option<&HeaderValue>,
    ) -> Result<Response<Bytes>, String> {
        let mut request = Request::get(url)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, "spire-agent");
        if let Some(value) = shown {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Bytes::new());
        let request = request.map_err(|error| format!("{url}: {error}"))?;
        self.client.send(request).await
    }

    /// What to show to a registry that asks as in `answer` (RFC 6750 §3, and the token of the distribution's own
    /// specification).
    async fn authorize(&self, answer: &Response<Bytes>) -> Result<HeaderValue, String> {
        #[derive(Deserialize)]
        struct Told {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }

        let registry = &self.image.registry;
        let basic = self.credential.map(|Credential { username, password }| {
            let both = Zeroizing::new(format!("{username}:{}", **password));
            authorization("Basic", &Zeroizing::new(STANDARD.encode(both.as_bytes())))
        });
        let basic = basic.transpose()?;
        let asked = answer.headers().get(header::WWW_AUTHENTICATE);
        let asked = asked.and_then(|asked| asked.to_str().ok()).unwrap_or("");
        let (scheme, parameters) = asked.split_once(' ').unwrap_or((asked, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let none = || format!("{registry} wants a user name: set registry_credentials");
            return basic.ok_or_else(none);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(format!(
                "{registry} wants {asked:?} to be shown, which is not known here"
            ));
        }
        let realm = parameter(parameters, "realm")
            .ok_or_else(|| format!("{registry} does not say where its tokens are"))?;
        if !self.is_safe(realm) {
            return Err(format!("tokens at {realm:?}, which is not https"));
        }
        let scope = format!("repository:{}:pull", self.image.repository);
        let mut url = format!(
            "{realm}{}scope={}",
            if realm.contains('?') { '&' } else { '?' },
            percent_encoded(&scope)
        );
        if let Some(service) = parameter(parameters, "service") {
            url = format!("{url}&service={}", percent_encoded(service));
        }
        let answer = self.send(&url, "application/json", basic.as_ref()).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!(
                "no token for {registry}: the answer of {realm} is {}",
                answer.status()
            ));
        }
        let told: Told = serde_json::from_slice(answer.body())
            .map_err(|_| format!("no token for {registry}: {realm} answers something else"))?;
        let token = told.token.or(told.access_token);
        let token =
            token.ok_or_else(|| format!("no token for {registry} in the answer of {realm}"))?;
        authorization("Bearer", &token)
    }
}

/// The value of `name="…"`.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = parameters;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
}

/// Whether nobody else is at `authority`.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_any_order() {
        let asked =
            r#"realm="https://auth.example/token",service="a, b",scope="repository:x:pull""#;
        assert_eq!(
            parameter(asked, "realm"),
            Some("https://auth.example/token")
        );
        assert_eq!(parameter(asked, "Service"), Some("a, b"));
        assert_eq!(parameter(asked, "error"), None);
        assert_eq!(parameter("realm=\"", "realm"), None);
        for (authority, expected) in [
            ("127.0.0.1:5000", true),
            ("localhost", true),
            ("[::1]:80", true),
            ("127.0.0.1.example:5000", false),
            ("registry.example", false),
        ] {
            assert_eq!(is_loopback(authority), expected, "{authority}");
        }
    }
}
