//! Google Cloud Storage: BundlePublisher `gcp_cloudstorage` and Notifier `gcs_bundle`.

use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_attest::node::gcp_iit::{Account, refusal};
use ah_spire_wire::model::Bundle;
use ah_spire_wire::sigv4::percent_encoded;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use serde::Deserialize;

use super::{Formatted, Newest, Notifier, Publisher, certificates};

/// What may be done to objects.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

/// An object of another generation than the one that was read.
const ATTEMPTS: usize = 5;

/// An object of a bucket.
#[derive(Clone, Debug)]
pub struct GcsObject {
    /// Before `/storage/v1/…`: `https://storage.googleapis.com`, but in tests.
    pub api: String,
    /// As whom.
    pub account: Account,
    /// The bucket's name.
    pub bucket: String,
    /// The object's name.
    pub object: String,
}

impl GcsObject {
    /// Puts `data` in place of what is there; with a `generation` only if it is that one (0: none).
    async fn put(
        &self,
        data: String,
        media_type: &str,
        generation: Option<&str>,
    ) -> Result<Response<Bytes>, String> {
        let condition = generation.map(|it| format!("&ifGenerationMatch={it}"));
        let url = format!(
            "{}/upload/storage/v1/b/{}/o?uploadType=media&name={}{}",
            self.api,
            percent_encoded(&self.bucket),
            percent_encoded(&self.object),
            condition.unwrap_or_default()
        );
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, media_type)
            .body(data.into())
            .map_err(|error| error.to_string())?;
        self.account.send(request, SCOPE, SystemTime::now()).await
    }

    /// The object's generation; `0` where there is none.
    async fn generation(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Found {
            generation: String,
        }

        let url = format!(
            "{}/storage/v1/b/{}/o/{}?fields=generation",
            self.api,
            percent_encoded(&self.bucket),
            percent_encoded(&self.object)
        );
        let request = Request::get(url).body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.account.send(request, SCOPE, SystemTime::now()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok("0".to_owned());
        }
        if !answer.status().is_success() {
            return Err(refusal(&answer));
        }
        let found: Found = serde_json::from_slice(answer.body())
            .map_err(|error| format!("the answer is not what was asked for: {error}"))?;
        Ok(found.generation)
    }

    fn named(&self) -> String {
        format!("{}/{}", self.bucket, self.object)
    }
}

/// `gcp_cloudstorage`
pub struct GcsPublisher {
    object: GcsObject,
    formatted: Formatted,
}

impl GcsPublisher {
    /// Publishes to `object`.
    pub fn new(object: GcsObject, formatted: Formatted) -> Self {
        Self { object, formatted }
    }
}

#[tonic::async_trait]
impl Publisher for GcsPublisher {
    fn name(&self) -> &str {
        "gcp_cloudstorage"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let data = self.formatted.of(bundle)?;
        let media_type = self.formatted.format().media_type();
        let answer = self.object.put(data, media_type, None).await;
        let told = |why: String| format!("failed to write bundle: {}: {why}", self.object.named());
        let answer = answer.map_err(told)?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(told(refusal(&answer)))
    }
}

/// `gcs_bundle`
pub struct GcsBundle {
    object: GcsObject,
    newest: Arc<dyn Newest>,
}

impl GcsBundle {
    /// `newest` is asked after the object's generation is known: of two servers that write at a time, the second one has
    /// what the first one did not know.
    pub fn new(object: GcsObject, newest: Arc<dyn Newest>) -> Self {
        Self { object, newest }
    }

    async fn update(&self) -> Result<(), String> {
        let named = self.object.named();
        let told = |why: String| format!("unable to update bundle object {named}: {why}");
        for _ in 0..ATTEMPTS {
            let generation = self.object.generation().await;
            let generation = generation
                .map_err(|error| format!("unable to get bundle object {named}: {error}"))?;
            let bundle = self.newest.bundle().await?;
            let data = certificates(&bundle);
            let put = self
                .object
                .put(data, "application/x-pem-file", Some(&generation));
            let answer = put.await.map_err(told)?;
            match answer.status() {
                status if status.is_success() => return Ok(()),
                StatusCode::PRECONDITION_FAILED => {
                    tracing::debug!(generation, "Conflict detected setting bundle object");
                }
                _ => return Err(told(refusal(&answer))),
            }
        }
        Err(told("somebody else changes it all the time".to_owned()))
    }
}

#[tonic::async_trait]
impl Notifier for GcsBundle {
    fn name(&self) -> &str {
        "gcs_bundle"
    }

    async fn loaded(&self, _: &Bundle) -> Result<(), String> {
        self.update().await
    }

    async fn updated(&self, _: &Bundle) -> Result<(), String> {
        self.update().await
    }
}
