use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::node::http_challenge::{AttestationData, Nonce, path};
use crate::node::{AgentHalf, Conversation, Payload};
use crate::{AttestError, Builtin};

/// How long whoever asks for the nonce may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many may ask at a time; the server asks once.
const CONNECTIONS: usize = 16;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpChallengeAgentConfig {
    /// The host's name, as the server reaches it; the machine's own if empty.
    pub hostname: String,
    /// The agent's name in the path of the nonce; `default` if empty.
    pub agentname: String,
    /// The port that is listened on; a free one if zero.
    pub port: i64,
    /// The port that the server is told, where something stands between; the one listened on if zero.
    pub advertised_port: i64,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct HttpChallengeAgent {
    hostname: String,
    agentname: String,
    port: u16,
    advertised_port: u16,
}

impl HttpChallengeAgent {
    /// The half that listens during each attestation.
    pub fn configure(config: HttpChallengeAgentConfig) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| {
            AttestError::invalid(text, hint).of_builtin(Builtin::HttpChallenge)
        };
        let port = |key: &str, value: i64| {
            u16::try_from(value).map_err(|_| {
                wrong(
                    format!("{key} is {value}"),
                    "ports are from 1 to 65535; leave it out for a free one",
                )
            })
        };
        let hostname = match config.hostname.as_str() {
            "" => gethostname::gethostname()
                .into_string()
                .map_err(|_| wrong("unable to fetch hostname".into(), "set `hostname`"))?,
            name => name.to_owned(),
        };
        let agentname = match config.agentname.as_str() {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        Ok(Self {
            hostname,
            agentname,
            port: port("port", config.port)?,
            advertised_port: port("advertised_port", config.advertised_port)?,
        })
    }

    async fn listen(&self) -> std::io::Result<(TcpListener, u16)> {
        let mut tries = 0;
        let listener = loop {
            // IPv4 comes with it, where the machine has both.
            let bound = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).await {
                Ok(listener) => Ok(listener),
                Err(_) => TcpListener::bind(("0.0.0.0", self.port)).await,
            };
            match bound {
                Ok(listener) => break listener,
                // The socket of an attestation that was just over may not be closed yet.
                Err(error) if error.kind() == ErrorKind::AddrInUse && tries < 10 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        };
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    }
}

impl AgentHalf for HttpChallengeAgent {
    type Conversation = HttpChallengeConversation;

    fn name(&self) -> &str {
        Builtin::HttpChallenge.name()
    }

    async fn begin(&self) -> Result<(Payload, HttpChallengeConversation), AttestError> {
        let broken = |text: String| {
            AttestError::internal(text, "free the port, or let `port` name another one")
                .of_builtin(Builtin::HttpChallenge)
        };
        let (listener, port) = self
            .listen()
            .await
            .map_err(|error| broken(format!("could not listen on port {}: {error}", self.port)))?;
        let port = match self.advertised_port {
            0 => port,
            advertised => advertised,
        };
        let data = AttestationData {
            hostname: self.hostname.clone(),
            agentname: self.agentname.clone(),
            port: port.into(),
        };
        let payload = serde_json::to_vec(&data).map_err(|error| broken(error.to_string()))?;
        let conversation = HttpChallengeConversation {
            path: path(&self.agentname),
            listener: Some(listener),
            serving: JoinSet::new(),
        };
        Ok((Payload::new(payload), conversation))
    }
}

/// Serves the nonce from the challenge on until it is dropped.
#[derive(Debug)]
pub struct HttpChallengeConversation {
    path: String,
    listener: Option<TcpListener>,
    serving: JoinSet<()>,
}

impl Conversation for HttpChallengeConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let fault = |text: &str| {
            let hint = "check that the address is that of a SPIRE server which has the http_challenge attestor";
            AttestError::internal(text, hint).of_builtin(Builtin::HttpChallenge)
        };
        let nonce: Nonce = serde_json::from_slice(challenge)
            .map_err(|_| fault("unable to unmarshal challenge"))?;
        if nonce.nonce.is_empty() {
            return Err(fault("unable to unmarshal challenge: it has no nonce"));
        }
        let listener = self.listener.take();
        let listener = listener.ok_or_else(|| fault("server sent a second challenge"))?;
        let body = Bytes::from(format!("{}\n", nonce.nonce));
        let path = Arc::from(self.path.as_str());
        self.serving.spawn(serve(listener, path, body));
        // Upstream's servers wait for an answer, and do not look at it.
        Ok(b"\n".to_vec())
    }
}

async fn serve(listener: TcpListener, path: Arc<str>, nonce: Bytes) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (path, nonce) = (Arc::clone(&path), nonce.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let found = request.uri().path() == &*path;
                let (status, body) = if found {
                    (StatusCode::OK, nonce.clone())
                } else {
                    (StatusCode::NOT_FOUND, Bytes::new())
                };
                let mut response = Response::new(Full::new(body));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(TIMEOUT);
            let served = server.serve_connection(TokioIo::new(stream), service);
            // One that takes longer, or ends badly, is none of ours.
            drop(tokio::time::timeout(TIMEOUT, served).await);
        });
    }
}
