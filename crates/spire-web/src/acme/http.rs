//! Requests to the ACME server.

use std::future::Future;
use std::pin::Pin;

use ah_spire_wire::http_client::{HttpClient, Roots};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error};

/// This project's client under the library's requests.
#[derive(Clone)]
pub(super) struct Web(HttpClient);

impl Web {
    pub(super) fn new(roots: Roots) -> Result<Self, String> {
        HttpClient::new(roots, None).map(Self)
    }
}

impl instant_acme::HttpClient for Web {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            let body = body.unwrap_or_else(|never| match never {});
            let answer = client.send(Request::from_parts(parts, body)).await;
            let answer = answer.map_err(|why| Error::Other(why.into()))?;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}
