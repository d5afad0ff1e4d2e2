//! The metadata service of an instance of EC2.

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};

use crate::aws::Environment;
use crate::http_client::HttpClient;

const ADDRESS: &str = "http://169.254.169.254";

/// The service as one instance sees it, in its second version: what is asked carries a token of this visit.
#[derive(Clone, Debug)]
pub struct Imds {
    url: String,
    first_version: bool,
}

impl Imds {
    /// At `endpoint`, or where the environment has it (`AWS_EC2_METADATA_SERVICE_ENDPOINT`), or where AWS has it. The
    /// service's first version is asked where there is no second, unless `AWS_EC2_METADATA_V1_DISABLED` is `true`.
    ///
    /// # Errors
    /// The endpoint is no URL of HTTP.
    pub fn new(environment: &Environment, endpoint: Option<&str>) -> Result<Self, String> {
        let endpoint =
            endpoint.or_else(|| environment.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT"));
        let url = endpoint.unwrap_or(ADDRESS).trim_end_matches('/');
        // The path's first step stood in the endpoint with AWS's older SDKs.
        let url = url.strip_suffix("/latest").unwrap_or(url);
        if !url.starts_with("http://") {
            return Err(format!("{url:?} is no URL that begins with http://"));
        }
        url.parse::<http::Uri>()
            .map_err(|error| format!("{url:?}: {error}"))?;
        Ok(Self {
            url: url.to_owned(),
            first_version: !environment.is_true("AWS_EC2_METADATA_V1_DISABLED"),
        })
    }

    /// What stands at each of `paths`, which come after `/latest/`.
    ///
    /// # Errors
    /// Names the URL, and the status where there is an answer.
    pub async fn read<const N: usize>(&self, paths: [&str; N]) -> Result<[Bytes; N], String> {
        let token = self.token().await?;
        let mut read = [const { Bytes::new() }; N];
        for (path, read) in paths.into_iter().zip(&mut read) {
            *read = self.one(path, token.as_ref()).await?;
        }
        Ok(read)
    }

    async fn token(&self) -> Result<Option<HeaderValue>, String> {
        let url = format!("{}/latest/api/token", self.url);
        let request = Request::put(&url).header("X-aws-ec2-metadata-token-ttl-seconds", "300");
        let request = request.body(Bytes::new()).map_err(|e| e.to_string())?;
        let answer = HttpClient::plain()?.send(request).await?;
        match answer.status() {
            StatusCode::OK => {
                let token = HeaderValue::from_maybe_shared(answer.into_body());
                let mut token = token.map_err(|_| format!("{url}: the token is no text"))?;
                token.set_sensitive(true);
                Ok(Some(token))
            }
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
                if self.first_version =>
            {
                Ok(None)
            }
            other => Err(format!("{url}: unexpected status code: {}", other.as_u16())),
        }
    }

    async fn one(&self, path: &str, token: Option<&HeaderValue>) -> Result<Bytes, String> {
        let url = format!("{}/latest/{path}", self.url);
        let mut request = Request::get(&url);
        if let Some(token) = token {
            request = request.header("X-aws-ec2-metadata-token", token);
        }
        let request = request.body(Bytes::new()).map_err(|e| e.to_string())?;
        let answer = HttpClient::plain()?.send(request).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            other => Err(format!("{url}: unexpected status code: {}", other.as_u16())),
        }
    }
}
