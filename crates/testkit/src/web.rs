//! A web server for tests: answers by path, and what was asked.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How.
    pub method: Method,
    /// With the query.
    pub target: String,
    /// All of them.
    pub headers: HeaderMap,
    /// As text.
    pub body: String,
}

impl Asked {
    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

type Answer = Arc<dyn Fn(&Asked) -> Response<Bytes> + Send + Sync>;

#[derive(Default)]
struct State {
    answers: HashMap<String, Answer>,
    others: Option<Answer>,
    first: VecDeque<Response<Bytes>>,
    asked: Vec<Asked>,
}

/// HTTP without TLS, on a port of its own.
pub struct Web {
    /// Where it listens.
    pub address: SocketAddr,
    site: Site,
}

/// What is served, wherever.
#[derive(Clone, Default)]
pub struct Site {
    state: Arc<Mutex<State>>,
    count: watch::Sender<usize>,
}

impl Web {
    /// One that answers nothing yet: what has no answer is 404.
    pub async fn start() -> Self {
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

    /// The address of `path` here.
    pub fn url(&self, path: &str) -> String {
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
    pub fn on_socket(path: &Path) -> Self {
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
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| answer(&self, request));
        let served = hyper::server::conn::http1::Builder::new();
        drop(served.serve_connection(TokioIo::new(stream), service).await);
    }

    /// What is answered to `path`, whatever the query.
    pub fn answers(&self, path: &str, body: impl ToString) {
        self.answers_with(path, Response::new(body.to_string().into()));
    }

    /// As [`Self::answers`], with a status and headers.
    pub fn answers_with(&self, path: &str, response: Response<Bytes>) {
        self.answers_by(path, move |_| response.clone());
    }

    /// As [`Self::answers`], with what `answer` makes of the question.
    pub fn answers_by(
        &self,
        path: &str,
        answer: impl Fn(&Asked) -> Response<Bytes> + Send + Sync + 'static,
    ) {
        let mut state = self.state.lock().unwrap();
        state.answers.insert(path.to_owned(), Arc::new(answer));
    }

    /// As [`Self::answers_by`], to all paths that have no answer of their own.
    pub fn answers_others(
        &self,
        answer: impl Fn(&Asked) -> Response<Bytes> + Send + Sync + 'static,
    ) {
        self.state.lock().unwrap().others = Some(Arc::new(answer));
    }

    /// As [`Self::answers_with`], where query or body have `words`. The last of these counts first.
    pub fn answers_if(&self, path: &str, words: &str, response: Response<Bytes>) {
        let words = words.to_owned();
        let before = self.state.lock().unwrap().answers.get(path).cloned();
        self.answers_by(path, move |asked| {
            let query = asked.target.split_once('?').map_or("", |(_, query)| query);
            if query.contains(&words) || asked.body.contains(&words) {
                return response.clone();
            }
            before
                .as_ref()
                .map_or_else(not_found, |before| before(asked))
        });
    }

    /// What the next request is answered, before anything else; after those of earlier calls.
    pub fn answers_once(&self, response: Response<Bytes>) {
        self.state.lock().unwrap().first.push_back(response);
    }

    /// What was asked since this was called before.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// Waits until `count` questions were asked in all.
    pub async fn was_asked(&self, count: usize) {
        let mut counted = self.count.subscribe();
        counted.wait_for(|asked| *asked >= count).await.unwrap();
    }
}

fn not_found() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

async fn answer(
    site: &Site,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked = Asked {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let known = {
        let mut state = site.state.lock().unwrap();
        state.asked.push(asked.clone());
        match state.first.pop_front() {
            Some(first) => Some(Arc::new(move |_: &Asked| first.clone()) as Answer),
            None => {
                let known = state.answers.get(parts.uri.path());
                known.or(state.others.as_ref()).cloned()
            }
        }
    };
    let response = match known {
        Some(known) => known(&asked),
        None => not_found(),
    };
    site.count.send_modify(|count| *count += 1);
    Ok(response.map(Full::new))
}
