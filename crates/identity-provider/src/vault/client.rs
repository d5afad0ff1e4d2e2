//! A small client of Vault's HTTP API: one request at a time, to the first server that answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::Secret;
use super::config::{Retry, VaultAddress};
use super::dial::{Dial, DialError};
use super::fault::{Failure, Fault, Refusal};
use super::wire::{Wiped, ahead, converse, date, leader, plain, seconds};
use crate::backoff::{Jitter, window};
use crate::{Clock, Code, Explained};

/// Until a connection with TLS is up.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// From the request's first byte to the reply's last.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The longest wait between two attempts of one request, whoever asks for it.
const MOST_WAIT: Duration = Duration::from_secs(60);

/// How many redirects are followed: a standby names its leader, and that may just have changed.
const MOST_REDIRECTS: usize = 2;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below `/v1/`.
    pub(super) path: String,
    pub(super) token: Option<Secret>,
    pub(super) body: Option<Zeroizing<Vec<u8>>>,
}

impl Ask {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            token: None,
            body: None,
        }
    }

    pub(super) fn post(path: impl Into<String>, fields: &BTreeMap<&str, &str>) -> Self {
        // Large enough for any of ours, so that no smaller copy is left behind while it grows.
        let mut body = Zeroizing::new(Vec::with_capacity(32 * 1024));
        // Texts into memory: this cannot fail.
        let _ = serde_json::to_writer(&mut *body, fields);
        Self {
            method: Method::POST,
            path: path.into(),
            token: None,
            body: Some(body),
        }
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self {
            method: Method::DELETE,
            ..Self::get(path)
        }
    }

    pub(super) fn with(mut self, token: &Secret) -> Self {
        self.token = Some(token.clone());
        self
    }
}

/// A 2xx reply.
#[derive(Debug)]
pub(super) struct Reply {
    body: Zeroizing<Vec<u8>>,
    from: VaultAddress,
    /// By how much the server's clock is ahead of ours (negative: behind), in seconds.
    pub(super) clock_ahead: Option<i64>,
}

impl Reply {
    /// ER-15, of the server that this is from.
    pub(super) fn sealed(&self) -> Explained {
        Failure::one(&self.from, Fault::Sealed).explained()
    }

    /// The reply as `T`.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // The error of serde names a place and a type, never a value of the reply.
            let place = format!("at line {} column {}", error.line(), error.column());
            let why = Explained::new(Code::Other, "vault's answer has another form than expected")
                .cause(format!("{:?} {place}, from {}", error.classify(), self.from))
                .hint("check that --vault-addr is a Vault or OpenBao server, and not a page in front of it");
            Failure::one(&self.from, Fault::Setup(why))
        })
    }
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// The servers, tried in order, beginning with the one that answered last.
#[derive(Clone, Debug)]
pub(super) struct Client {
    addresses: Vec<VaultAddress>,
    namespace: Option<HeaderValue>,
    retry: Retry,
    dial: Arc<dyn Dial>,
    clock: Arc<dyn Clock>,
    preferred: usize,
    /// The last request failed after all its attempts: until one succeeds, each is tried once, because whoever asks
    /// again waits between.
    down: bool,
}

impl Client {
    pub(super) fn new(
        addresses: Vec<VaultAddress>,
        namespace: Option<HeaderValue>,
        retry: Retry,
        dial: Arc<dyn Dial>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            addresses,
            namespace,
            retry,
            dial,
            clock,
            preferred: 0,
            down: false,
        }
    }

    /// Begins where `other` found an answer, or none, last.
    pub(super) fn learn(&mut self, other: &Self) {
        self.preferred = other.preferred;
        self.down = other.down;
    }

    /// Begins with the first address again: a new token may come from any server.
    pub(super) fn begin_at_first(&mut self) {
        self.preferred = 0;
    }

    /// Sends `ask`, again and again as VA-13 says. No wait is longer than half of what `left` says is left of what
    /// this request is to save, nor shorter than half of the first.
    pub(super) async fn send(
        &mut self,
        ask: &Ask,
        left: impl Fn() -> Option<Duration>,
    ) -> Result<Reply, Failure> {
        let mut attempt = 0;
        loop {
            let failure = match self.once(ask).await {
                Ok(reply) => {
                    self.down = false;
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            if !failure.passes() {
                self.down = false;
                return Err(failure);
            }
            if attempt >= self.retry.max || self.down {
                self.down = true;
                return Err(failure);
            }
            let wait = self.wait(attempt, &failure, left());
            attempt += 1;
            let (error, retry_in) = (failure.explained(), tracing::field::debug(wait));
            if attempt == 1 {
                tracing::warn!(%error, attempt, of = self.retry.max, retry_in, "vault request failed, trying again");
            } else {
                tracing::debug!(%error, attempt, of = self.retry.max, retry_in, "vault request failed again");
            }
            sleep(wait).await;
        }
    }

    /// Exponential with jitter over its upper half, at least as long as a server asked for.
    fn wait(&self, attempt: u32, failure: &Failure, left: Option<Duration>) -> Duration {
        let most = window(self.retry.delay, MOST_WAIT, attempt);
        let mut wait = Jitter::UpperHalf.wait(most);
        if let Some(asked) = failure.asked_wait() {
            wait = wait.max(asked.min(MOST_WAIT));
        }
        match left.filter(|left| !left.is_zero()) {
            Some(left) => wait.min((left / 2).max(self.retry.delay / 2)),
            None => wait,
        }
    }

    /// Sends `ask` to each server until one answers.
    pub(super) async fn once(&mut self, ask: &Ask) -> Result<Reply, Failure> {
        let mut failed = Vec::new();
        let count = self.addresses.len();
        for step in 0..count {
            let index = (self.preferred + step) % count;
            let Some(address) = self.addresses.get(index).cloned() else {
                continue;
            };
            match self.exchange(&address, ask).await {
                Ok(reply) => {
                    self.preferred = index;
                    return Ok(reply);
                }
                Err(fault) => {
                    let last_word = !fault.passes();
                    failed.push((address, fault));
                    if last_word {
                        self.preferred = index;
                        break;
                    }
                }
            }
        }
        Err(Failure { at: failed })
    }

    /// One request to one server, and to the leader it names.
    async fn exchange(&self, first: &VaultAddress, ask: &Ask) -> Result<Reply, Fault> {
        let mut address = first.clone();
        for _ in 0..=MOST_REDIRECTS {
            let (status, headers, body) = self.talk(&address, ask).await?;
            if matches!(status.as_u16(), 301 | 302 | 307 | 308) {
                address = leader(&address, &headers, ask)?;
                continue;
            }
            return self.judge(&address, status, &headers, body);
        }
        Err(Fault::Unreachable(
            "redirected from server to server".to_owned(),
        ))
    }

    async fn talk(
        &self,
        address: &VaultAddress,
        ask: &Ask,
    ) -> Result<(StatusCode, HeaderMap, Zeroizing<Vec<u8>>), Fault> {
        let connection = match timeout(CONNECT_WITHIN, self.dial.dial(address)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(DialError::Failed(why))) => return Err(Fault::Unreachable(why)),
            Ok(Err(DialError::Setup(explained))) => return Err(Fault::Setup(explained)),
            Err(_) => {
                let why = format!("connection timed out after {CONNECT_WITHIN:?}");
                return Err(Fault::Unreachable(why));
            }
        };
        let request = self.request(address, ask)?;
        match timeout(ANSWER_WITHIN, converse(connection, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::NoReply(format!(
                "the reply was not complete within {ANSWER_WITHIN:?}"
            ))),
        }
    }

    fn request(&self, address: &VaultAddress, ask: &Ask) -> Result<Request<Full<Bytes>>, Fault> {
        let unfit = |_| {
            Fault::Setup(
                Explained::new(Code::Usage, "a value cannot be sent to vault")
                    .cause("a token or a name has bytes that HTTP does not carry")
                    .hint("check token, namespace and host for control characters"),
            )
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}/v1/{}", address.prefix(), ask.path))
            .header(HOST, address.authority())
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = &ask.token {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|e| unfit(e.into()))?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        let body = match &ask.body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from_owner(Wiped(body.clone()))
            }
            None => Bytes::new(),
        };
        request.body(Full::new(body)).map_err(unfit)
    }

    fn judge(
        &self,
        address: &VaultAddress,
        status: StatusCode,
        headers: &HeaderMap,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Reply, Fault> {
        if status.is_success() {
            return Ok(Reply {
                body,
                from: address.clone(),
                clock_ahead: date(headers).map(|theirs| ahead(theirs, self.clock.now())),
            });
        }
        let said = match serde_json::from_slice::<Errors>(&body) {
            Ok(body) => body.errors,
            Err(_) => plain(&body),
        };
        let code = status.as_u16();
        // Sealed and standby servers share a status with others; Vault tells them apart in words alone.
        let is = |word: &str| said.iter().any(|text| text.contains(word));
        if code == 503 && is("sealed") {
            return Err(Fault::Sealed);
        }
        if matches!(code, 412 | 429 | 472 | 473) || status.is_server_error() {
            return Err(Fault::Busy {
                status: code,
                said,
                wait: seconds(headers),
            });
        }
        Err(Fault::Refused(Refusal { status: code, said }))
    }
}
