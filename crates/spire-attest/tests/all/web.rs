//! A web server for tests: answers by path, and what was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Response<Bytes>>,
    first: Vec<Response<Bytes>>,
    asked: Vec<Asked>,
}

/// What is served, wherever.
#[derive(Clone, Default)]
pub(crate) struct Site(Arc<Mutex<State>>);

/// HTTP without TLS, on a port of its own.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    site: Site,
}

impl Web {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = Site::default();
        let served = site.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(served.clone().serve(stream));
            }
        });
        Self { address, site }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Deref for Web {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Site {
    /// A site on the unix socket `path`.
    pub(crate) fn on_socket(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let site = Self::default();
        let served = site.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(served.clone().serve(stream));
            }
        });
        site
    }

    /// Serves one connection.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| answer(&self.0, request));
        let served = hyper::server::conn::http1::Builder::new();
        drop(served.serve_connection(TokioIo::new(stream), service).await);
    }

    /// What is answered to `path`, whatever the query.
    pub(crate) fn answers(&self, path: &str, body: impl ToString) {
        self.answers_with(path, Response::new(body.to_string().into()));
    }

    pub(crate) fn answers_with(&self, path: &str, response: Response<Bytes>) {
        let mut state = self.0.lock().unwrap();
        state.answers.insert(path.to_owned(), response);
    }

    /// What the next request is answered, before anything else.
    pub(crate) fn answers_once(&self, response: Response<Bytes>) {
        self.0.lock().unwrap().first.push(response);
    }

    /// What was asked since this was called before.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

async fn answer(
    state: &Mutex<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut state = state.lock().unwrap();
    state.asked.push(Asked {
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    if !state.first.is_empty() {
        return Ok(state.first.remove(0).map(Full::new));
    }
    let known = state.answers.get(parts.uri.path()).cloned();
    Ok(match known {
        Some(response) => response.map(Full::new),
        None => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}
