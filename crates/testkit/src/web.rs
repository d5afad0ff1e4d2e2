//! A web server for tests: answers by path, and what was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    /// With the query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
}

/// Makes an answer of a query.
struct Maker(Box<dyn Fn(&str) -> String + Send>);

#[derive(Default)]
struct State {
    answers: HashMap<String, Response<Bytes>>,
    /// Path, words of query or body, and what is answered if both are there.
    special: Vec<(String, String, Response<Bytes>)>,
    /// By path.
    made: HashMap<String, Maker>,
    asked: Vec<Asked>,
}

/// HTTP without TLS, on a port of its own.
pub struct Web {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Web {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(&state, request));
                    let served = hyper::server::conn::http1::Builder::new();
                    drop(served.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, state }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What is answered to `path`, whatever the query.
    pub fn answers(&self, path: &str, body: impl ToString) {
        self.answers_with(path, Response::new(body.to_string().into()));
    }

    pub fn answers_with(&self, path: &str, response: Response<Bytes>) {
        let mut state = self.state.lock().unwrap();
        state.answers.insert(path.to_owned(), response);
    }

    /// What is answered to `path` where query or body have `words`. The last of these counts first.
    pub fn answers_if(&self, path: &str, words: &str, response: Response<Bytes>) {
        let mut state = self.state.lock().unwrap();
        let special = (path.to_owned(), words.to_owned(), response);
        state.special.insert(0, special);
    }

    /// What is answered to `path` is made of the query.
    pub fn answers_by(&self, path: &str, maker: impl Fn(&str) -> String + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.made.insert(path.to_owned(), Maker(Box::new(maker)));
    }

    /// What was asked since this was called before.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

async fn answer(
    state: &Mutex<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut state = state.lock().unwrap();
    let body = String::from_utf8_lossy(&body);
    let asked = format!("{}\n{body}", parts.uri.query().unwrap_or_default());
    let special = state.special.iter();
    let special = special
        .filter(|(path, words, _)| path == parts.uri.path() && asked.contains(words.as_str()))
        .map(|(_, _, response)| response.clone());
    let made = state.made.get(parts.uri.path());
    let made = made.map(|Maker(make)| make(parts.uri.query().unwrap_or_default()));
    let made = made.map(|body| Response::new(Bytes::from(body)));
    let known = special
        .chain(made)
        .chain(state.answers.get(parts.uri.path()).cloned());
    let known = { known }.next();
    let asked = Asked {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: body.into_owned(),
    };
    state.asked.push(asked);
    Ok(match known {
        Some(response) => response.map(Full::new),
        None => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}
