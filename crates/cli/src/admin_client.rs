//! A client of an access point's admin socket, which speaks the REST interface.

use std::io;
use std::path::{Path, PathBuf};

use ah_fleet::access_point::{
    AccessPointView, EventFilter, ExecutorView, ListFilter, Listing, Why, path_segment,
};
use ah_fleet::store::RevocationTarget;
use ah_identity_provider::{Code, Explained};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Asks the access point behind one admin socket. Each question is a connection of its own.
#[derive(Clone, Debug)]
pub struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// A client of `socket`. Connects with the first question.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The access point itself.
    pub async fn access_point(&self) -> Result<AccessPointView, Explained> {
        self.ask(Method::GET, "/api/v1/access-point", None).await
    }

    /// What keeps it from being ready; empty when it is.
    pub async fn not_ready(&self) -> Result<Vec<String>, Explained> {
        let response = self.request(Method::GET, "/readyz", None).await?;
        let body = response.into_body().collect().await;
        let body = body
            .map_err(|error| self.garbled(&error.to_string()))?
            .to_bytes();
        let readiness: Readiness =
            serde_json::from_slice(&body).map_err(|error| self.garbled(&error.to_string()))?;
        Ok(readiness.reasons)
    }

    /// The executors that `filter` admits.
    pub async fn list(&self, filter: &ListFilter) -> Result<Listing, Explained> {
        self.ask(Method::GET, &listing_path(filter), None).await
    }

    /// The one executor that `who` names: by id, name, serial number or SHA-256.
    pub async fn show(&self, who: &str) -> Result<ExecutorView, Explained> {
        self.ask(Method::GET, &executor_path(who, ""), None).await
    }

    /// The last `limit` attempts of `who`, who may also be an address.
    pub async fn why(&self, who: &str, limit: usize) -> Result<Why, Explained> {
        let path = format!("/api/v1/attempts/{}?limit={limit}", path_segment(who));
        self.ask(Method::GET, &path, None).await
    }

    /// Bars `who`, for `reason` in the operator's words.
    pub async fn revoke(&self, who: &str, reason: &str) -> Result<RevocationTarget, Explained> {
        let body = serde_json::json!({ "reason": reason }).to_string();
        let path = executor_path(who, "/revoke");
        self.ask(Method::POST, &path, Some(body)).await
    }

    /// Lifts the bar on `who`.
    pub async fn reinstate(&self, who: &str) -> Result<RevocationTarget, Explained> {
        let path = executor_path(who, "/reinstate");
        self.ask(Method::POST, &path, None).await
    }

    /// Ends the live session of `who`, and returns its executor id.
    pub async fn disconnect(&self, who: &str) -> Result<String, Explained> {
        let path = executor_path(who, "/disconnect");
        let gone: Gone = self.ask(Method::POST, &path, None).await?;
        Ok(gone.id)
    }

    /// What happens from now on to those whom `filter` admits.
    pub async fn events(&self, filter: &EventFilter) -> Result<Events, Explained> {
        let path = match &filter.labels {
            Some(labels) => format!("/api/v1/events?labels={}", path_segment(labels)),
            None => "/api/v1/events".to_owned(),
        };
        let response = self.request(Method::GET, &path, None).await?;
        let status = response.status();
        if status != StatusCode::OK {
            // Not events: printed as such, an error page would pass for one.
            let body = response.into_body().collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(refusal(status, &body));
        }
        Ok(Events {
            client: self.clone(),
            body: response.into_body(),
            partial: Vec::new(),
        })
    }

    /// One request and its whole answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, Explained> {
        let response = self.request(method, path, body).await?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| self.garbled(&error.to_string()))?
            .to_bytes();
        if status != StatusCode::OK {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.garbled(&error.to_string()))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<http::Response<Incoming>, Explained> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (mut requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.garbled(&error.to_string()))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "access-point");
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.garbled(&error.to_string()))?;
        requests
            .send_request(request)
            .await
            .map_err(|error| self.garbled(&error.to_string()))
    }

    fn garbled(&self, why: &str) -> Explained {
        Explained::new(
            Code::Other,
            format!(
                "cannot understand the answer from {}",
                self.socket.display()
            ),
        )
        .cause(why)
        .hint("check that the socket is an access point's, of this version")
    }
}

#[derive(serde::Deserialize)]
struct Readiness {
    reasons: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Gone {
    id: String,
}

/// Events of an access point as they come.
#[derive(Debug)]
pub struct Events {
    client: AdminClient,
    body: Incoming,
    partial: Vec<u8>,
}

impl Events {
    /// The next event as a line of JSON; `None` when the access point has closed. Cancel safe.
    pub async fn next_line(&mut self) -> Result<Option<String>, Explained> {
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line = self.partial.drain(..=end).collect::<Vec<_>>();
                let line = String::from_utf8_lossy(&line);
                return Ok(Some(line.trim_end().to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.data_ref().map_or(&[][..], |data| data);
                    self.partial.extend_from_slice(data);
                }
                Some(Err(error)) => return Err(self.client.garbled(&error.to_string())),
                None => return Ok(None),
            }
        }
    }
}

fn listing_path(filter: &ListFilter) -> String {
    let mut query = Vec::new();
    if let Some(labels) = &filter.labels {
        query.push(format!("labels={}", path_segment(labels)));
    }
    if let Some(live) = filter.live {
        query.push(format!("live={live}"));
    }
    if let Some(revoked) = filter.revoked {
        query.push(format!("revoked={revoked}"));
    }
    format!("/api/v1/executors?{}", query.join("&"))
}

fn executor_path(who: &str, action: &str) -> String {
    format!("/api/v1/executors/{}{action}", path_segment(who))
}

fn unreachable(socket: &Path, error: &io::Error) -> Explained {
    let shown = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => Explained::new(
            Code::NoSuchFile,
            format!("no such file: {shown}"),
        )
        .cause("an access point makes this socket when it starts")
        .hint("check that one runs (systemctl status ah-access-point), or give its --admin-socket"),
        io::ErrorKind::PermissionDenied => Explained::new(
            Code::PermissionDenied,
            format!("permission denied reading {shown}"),
        )
        .hint("ask as the access point's user or as root"),
        _ => Explained::new(Code::Other, format!("no access point answers on {shown}"))
            .cause(error)
            .hint("check that it runs: systemctl status ah-access-point"),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Explained {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        Explained::new(Code::Other, format!("the access point answered {status}"))
            .cause(String::from_utf8_lossy(body).trim())
            .hint("check that the socket is an access point's, of this version")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        assert_eq!(
            executor_path("spiffe://example.org/a b", "/revoke"),
            "/api/v1/executors/spiffe%3A%2F%2Fexample.org%2Fa%20b/revoke"
        );
    }
}
