//! The keys that Google signs identity tokens with.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ah_identity_provider::pem;
use ah_spire_wire::http_client::HttpClient;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::sync::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

/// SubjectPublicKeyInfo by `kid`.
type Keys = BTreeMap<String, Vec<u8>>;

/// Google's keys, as long as it said that they are current.
pub(super) struct GoogleKeys {
    url: String,
    current: Mutex<Option<(SystemTime, Keys)>>,
}

impl GoogleKeys {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            current: Mutex::new(None),
        }
    }

    /// The key `id`, fetched again when the ones at hand have ended.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        now: SystemTime,
    ) -> Result<Option<Vec<u8>>, String> {
        let mut current = self.current.lock().await;
        if current.as_ref().is_none_or(|(until, _)| now >= *until) {
            *current = Some(fetch(&self.url).await?);
        }
        let keys = current.as_ref().map(|(_, keys)| keys);
        Ok(keys.zip(id).and_then(|(keys, id)| keys.get(id)).cloned())
    }
}

async fn fetch(url: &str) -> Result<(SystemTime, Keys), String> {
    let request = Request::get(url).body(Bytes::new());
    let request = request.map_err(|error| format!("{url}: {error}"))?;
    let answer = HttpClient::web()?.send(request).await?;
    if answer.status() != StatusCode::OK {
        return Err(format!(
            "unexpected status code: {}",
            answer.status().as_u16()
        ));
    }
    // An answer that does not say how long it holds is asked for again.
    let until = answer
        .headers()
        .get(header::EXPIRES)
        .and_then(|expires| OffsetDateTime::parse(expires.to_str().ok()?, &Rfc2822).ok())
        .map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
    let wrong = |why: String| format!("unable to unmarshal certificate response: {why}");
    let certificates: BTreeMap<String, String> =
        serde_json::from_slice(answer.body()).map_err(|error| wrong(error.to_string()))?;
    let mut keys = Keys::new();
    for (id, text) in certificates {
        let read = pem::certificates(text.as_bytes());
        let read = read.map_err(|error| wrong(error.to_string()))?;
        for der in read {
            let certificate = X509Certificate::from_der(&der);
            let (_, certificate) = certificate.map_err(|error| wrong(error.to_string()))?;
            keys.insert(id.clone(), certificate.public_key().raw.to_vec());
        }
    }
    Ok((until, keys))
}
