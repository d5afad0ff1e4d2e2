//! Calls of the Kubernetes API.

use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde::Deserialize;

use super::kubeconfig::Access;

/// The API of one cluster.
#[derive(Clone, Debug)]
pub struct KubeApi {
    kubeconfig: PathBuf,
    /// `User-Agent`
    program: &'static str,
}

/// Why a call of the Kubernetes API brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubeError {
    /// Somebody else changed the object meanwhile: it has to be read again.
    #[error("{0}")]
    Conflict(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// Anything else, in the API's own words where it has some.
    #[error("{0}")]
    Other(String),
}

impl KubeApi {
    /// The API that the file `kubeconfig` leads to, or the one of this process's own pod where it is empty,
    /// for `program`.
    pub fn new(kubeconfig: PathBuf, program: &'static str) -> Self {
        Self {
            kubeconfig,
            program,
        }
    }

    /// The body of the answer. `path` begins with a slash, and `body` comes with its type. The kubeconfig is read for
    /// each call, so that a renewed token or CA is taken.
    ///
    /// # Errors
    /// The kubeconfig cannot be used, the API does not answer within 30 s, or it says no.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, KubeError> {
        self.ask(method, path, "application/json", body).await
    }

    /// As [`Self::send`], of what is there at `path`, in one of the forms that `accept` names.
    #[cfg(target_os = "linux")]
    pub(crate) async fn read(&self, path: &str, accept: &str) -> Result<Bytes, KubeError> {
        self.ask(Method::GET, path, accept, None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, KubeError> {
        let access = Access::load(&self.kubeconfig).await;
        let access = access.map_err(|error| {
            KubeError::Other(format!("unable to create client config: {error}"))
        })?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", access.server))
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, self.program);
        if let Some((kind, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *kind);
        }
        if let Some(value) = access.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(body.map(|(_, body)| body).unwrap_or_default());
        let request =
            request.map_err(|error| KubeError::Other(format!("{}: {error}", access.server)))?;
        let answer = access
            .client
            .send(request)
            .await
            .map_err(KubeError::Other)?;
        match answer.status() {
            status if status.is_success() => Ok(answer.into_body()),
            StatusCode::NOT_FOUND => Err(KubeError::NotFound(refusal(&answer))),
            StatusCode::CONFLICT => Err(KubeError::Conflict(refusal(&answer))),
            _ => Err(KubeError::Other(refusal(&answer))),
        }
    }
}

/// What the API says is wrong, in its words where it has some (`Status` of `meta/v1`).
fn refusal(answer: &Response<Bytes>) -> String {
    #[derive(Deserialize)]
    struct Told {
        message: String,
    }

    let told = serde_json::from_slice::<Told>(answer.body()).map(|told| told.message);
    let told = told.ok().filter(|message| !message.is_empty());
    match (answer.status(), told) {
        (_, Some(message)) => message,
        (StatusCode::UNAUTHORIZED, None) => {
            "the server has asked for the client to provide credentials".into()
        }
        (status, None) => format!("the answer is {status}"),
    }
}

/// A name of Kubernetes, which goes into a path as it is.
///
/// # Errors
/// It is none.
pub fn object_name(name: &str) -> Result<&str, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits);
    is_name
        .then_some(name)
        .ok_or_else(|| format!("{name:?} is no name of Kubernetes"))
}
