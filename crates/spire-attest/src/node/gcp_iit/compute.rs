//! What the Compute Engine API knows of an instance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ah_identity_provider::pem;
use ah_spire_wire::http_client::{HttpClient, Roots};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use rustls_pki_types::PrivateKeyDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use crate::node::Secret;
use crate::node::gcp_iit::Google;

const SCOPE: &str = "https://www.googleapis.com/auth/compute.readonly";

/// An instance, with what is used of it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    tags: Items<String>,
    pub(super) labels: BTreeMap<String, String>,
    metadata: Items<Member>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Items<T> {
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) value: String,
}

impl Instance {
    pub(super) fn tags(&self) -> &[String] {
        &self.tags.items
    }

    pub(super) fn metadata(&self) -> &[Member] {
        &self.metadata.items
    }
}

/// The API, for a service account.
pub(super) struct Compute {
    google: Google,
    /// The key file of the account; the one of the machine that the server runs on where there is none.
    account: Option<PathBuf>,
}

impl Compute {
    pub(super) fn new(google: Google, account: Option<PathBuf>) -> Self {
        Self { google, account }
    }

    pub(super) async fn instance(
        &self,
        project: &str,
        zone: &str,
        name: &str,
        now: SystemTime,
    ) -> Result<Instance, String> {
        for part in [project, zone, name] {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
            if part.is_empty() || part.starts_with('.') || !part.bytes().all(fits) {
                return Err(format!("{part:?} is no name of Google Cloud"));
            }
        }
        let token = self.access_token(now).await;
        let token = token.map_err(|error| format!("no access token: {error}"))?;
        let url = format!(
            "{}/compute/v1/projects/{project}/zones/{zone}/instances/{name}",
            self.google.compute
        );
        let mut bearer = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", *token.0)))
            .map_err(|_| "the access token has characters that no token has".to_owned())?;
        bearer.set_sensitive(true);
        let request = Request::get(url).header(header::AUTHORIZATION, bearer);
        send(request.body(Bytes::new())).await
    }

    async fn access_token(&self, now: SystemTime) -> Result<Secret, String> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: Secret,
        }

        let from_environment = || std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS");
        let file = self.account.clone();
        let request = match file.or_else(|| from_environment().map(PathBuf::from)) {
            Some(path) => Account::read(&path).await?.request(now)?,
            None => {
                let url = format!(
                    "{}/computeMetadata/v1/instance/service-accounts/default/token?scopes={SCOPE}",
                    self.google.metadata
                );
                let request = Request::get(url).header("Metadata-Flavor", "Google");
                request
                    .body(Bytes::new())
                    .map_err(|error| error.to_string())?
            }
        };
        let answer: Answer = send(Ok(request)).await?;
        Ok(answer.access_token)
    }
}

/// The key file of a service account.
#[derive(Deserialize)]
struct Account {
    client_email: String,
    private_key: Secret,
    #[serde(default)]
    private_key_id: String,
    token_uri: String,
}

impl Account {
    async fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let bytes = tokio::fs::read(path).await;
        let bytes = Zeroizing::new(bytes.map_err(|error| format!("{shown}: {error}"))?);
        serde_json::from_slice(&bytes).map_err(|error| {
            format!(
                "{shown}: not the key of a service account (line {}, column {})",
                error.line(),
                error.column()
            )
        })
    }

    /// Asks for an access token with a signed assertion (RFC 7523 §2.1).
    fn request(&self, now: SystemTime) -> Result<Request<Bytes>, String> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = since.unwrap_or(Duration::ZERO).as_secs();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.private_key_id});
        let claims = json!({
            "iss": self.client_email,
            "scope": SCOPE,
            "aud": self.token_uri,
            "iat": now,
            "exp": now.saturating_add(3600),
        });
        let encode = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(signed.as_bytes())?;
        let body = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={signed}.{}",
            URL_SAFE_NO_PAD.encode(signature)
        );
        Request::post(&self.token_uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.into())
            .map_err(|error| format!("token_uri {:?}: {error}", self.token_uri))
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, String> {
        let unusable = || "private_key is no RSA key in PEM".to_owned();
        let key = pem::private_key(self.private_key.0.as_bytes(), None).map_err(|_| unusable())?;
        let key = match key.der() {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(unusable()),
        };
        let key = key.map_err(|_| unusable())?;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            text,
            &mut signature,
        )
        .map_err(|_| unusable())?;
        Ok(signature)
    }
}

async fn send<T: DeserializeOwned>(
    request: Result<Request<Bytes>, http::Error>,
) -> Result<T, String> {
    let request = request.map_err(|error| error.to_string())?;
    let uri = request.uri().clone();
    let answer = HttpClient::new(Roots::Machine, None)?.send(request).await?;
    if !answer.status().is_success() {
        return Err(format!("{uri}: the answer is {}", answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|error| {
        format!(
            "{uri}: the answer is not what was asked for (line {}, column {})",
            error.line(),
            error.column()
        )
    })
}
