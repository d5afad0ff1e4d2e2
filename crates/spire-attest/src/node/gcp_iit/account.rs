//! Access tokens of Google's service accounts.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ah_identity_provider::pem;
use ah_spire_wire::http_client::HttpClient;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use rustls_pki_types::PrivateKeyDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use crate::node::Secret;

/// A service account, as which Google's APIs are called.
#[derive(Clone, Debug)]
pub struct Account {
    file: Option<PathBuf>,
    metadata: String,
}

/// What a service account shows to Google's APIs.
pub struct AccessToken {
    secret: Secret,
    /// For how long, from when it was asked for.
    pub lasts: Duration,
}

impl Account {
    /// The one of the key `file`; or else of the file that `GOOGLE_APPLICATION_CREDENTIALS` names; or else of the machine
    /// that this process runs on, whose metadata server is at `metadata` (without `/computeMetadata/v1/…`).
    pub fn new(file: Option<PathBuf>, metadata: impl Into<String>) -> Self {
        Self {
            file,
            metadata: metadata.into(),
        }
    }

    /// The answer to `request`, which is sent with an access token for `scope`. The token is asked for each time.
    ///
    /// # Errors
    /// There is no token, or no answer.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        scope: &str,
        now: SystemTime,
    ) -> Result<Response<Bytes>, String> {
        self.access_token(scope, now).await?.send(request).await
    }

    /// A token for `scope`.
    ///
    /// # Errors
    /// There is none.
    pub async fn access_token(&self, scope: &str, now: SystemTime) -> Result<AccessToken, String> {
        let token = self.token(scope, now).await;
        token.map_err(|error| format!("no access token: {error}"))
    }

    /// Who it is: the address that IAM policies name.
    ///
    /// # Errors
    /// The key file cannot be read, or the machine has no account.
    pub async fn email(&self) -> Result<String, String> {
        if let Some(path) = self.key_file() {
            return Ok(KeyFile::read(&path).await?.client_email);
        }
        let path = "/computeMetadata/v1/instance/service-accounts/default/email";
        let url = format!("{}{path}", self.metadata);
        let request = Request::get(&url).header("Metadata-Flavor", "Google");
        let request = request.body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = HttpClient::web()?.send(request).await?;
        if !answer.status().is_success() {
            return Err(format!("{url}: the answer is {}", answer.status()));
        }
        let email = String::from_utf8_lossy(answer.body());
        Ok(email.trim().to_owned())
    }

    fn key_file(&self) -> Option<PathBuf> {
        let from_environment = || std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS");
        let file = self.file.clone();
        file.or_else(|| from_environment().map(PathBuf::from))
    }

    async fn token(&self, scope: &str, now: SystemTime) -> Result<AccessToken, String> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: Secret,
            /// Seconds.
            #[serde(default)]
            expires_in: u64,
        }

        let request = match self.key_file() {
            Some(path) => KeyFile::read(&path).await?.request(scope, now)?,
            None => {
                let url = format!(
                    "{}/computeMetadata/v1/instance/service-accounts/default/token?scopes={scope}",
                    self.metadata
                );
                let request = Request::get(url).header("Metadata-Flavor", "Google");
                request
                    .body(Bytes::new())
                    .map_err(|error| error.to_string())?
            }
        };
        let uri = request.uri().clone();
        let answer = HttpClient::web()?.send(request).await?;
        let answer: Answer = read(&uri.to_string(), &answer)?;
        Ok(AccessToken {
            secret: answer.access_token,
            lasts: Duration::from_secs(answer.expires_in),
        })
    }
}

impl AccessToken {
    /// The answer to `request`, which is sent with the token.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let bearer = Zeroizing::new(format!("Bearer {}", *self.secret.0));
        let mut bearer = HeaderValue::from_str(&bearer)
            .map_err(|_| "the access token has characters that no token has".to_owned())?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        HttpClient::web()?.send(request).await
    }
}

/// Why `answer` is no success, in Google's words where it has some.
pub fn refusal(answer: &Response<Bytes>) -> String {
    let told: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let message = told.pointer("/error/message");
    match message.and_then(serde_json::Value::as_str) {
        Some(message) => format!("{}: {message}", answer.status()),
        None => format!("the answer is {}", answer.status()),
    }
}

/// What `answer` of `url` says, if it is a success.
pub(super) fn read<T: DeserializeOwned>(url: &str, answer: &Response<Bytes>) -> Result<T, String> {
    if !answer.status().is_success() {
        return Err(format!("{url}: the answer is {}", answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|error| {
        format!(
            "{url}: the answer is not what was asked for (line {}, column {})",
            error.line(),
            error.column()
        )
    })
}

/// The key file of a service account.
#[derive(Deserialize)]
struct KeyFile {
    client_email: String,
    private_key: Secret,
    #[serde(default)]
    private_key_id: String,
    token_uri: String,
}

impl KeyFile {
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
    fn request(&self, scope: &str, now: SystemTime) -> Result<Request<Bytes>, String> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = since.unwrap_or(Duration::ZERO).as_secs();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.private_key_id});
        let claims = json!({
            "iss": self.client_email,
            "scope": scope,
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
