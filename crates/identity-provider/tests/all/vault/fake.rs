//! A Vault in memory that does what a test says, and counts what it is asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ah_identity_provider::Clock;
use ah_identity_provider::vault::{Connection, Dial, DialError, VaultAddress};
use ah_testkit::ca::TestCa;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// A real server takes a moment, in which a second request would show. By the paused clock: nobody waits.
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

/// How the fake behaves towards everybody.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    /// As a healthy server.
    Well,
    /// Nobody listens.
    Down,
    /// 503, sealed.
    Sealed,
    /// This answer to everything.
    Answers(u16, &'static str),
    /// The same, with a header.
    Redirects(String),
    /// The connection ends in the middle of the reply.
    BreaksOff,
    /// Never answers.
    Hangs,
}

/// One request that arrived, or one connection that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    /// `POST auth/approle/login`; empty when no connection was made.
    pub(crate) what: String,
    pub(crate) host: String,
    pub(crate) status: u16,
}

pub(crate) struct State {
    pub(crate) mood: Mood,
    /// By host, before `mood`.
    pub(crate) moods: HashMap<String, Mood>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) secret_id: String,
    /// How often the secret id may still be used.
    pub(crate) uses: u32,
    pub(crate) token_ttl: u64,
    pub(crate) token_max: u64,
    pub(crate) certificate_ttl: Duration,
    /// What Vault's clock says less ours, in seconds.
    pub(crate) ahead: i64,
    /// The policy does not allow the PKI path.
    pub(crate) forbidden: bool,
    /// What the role says to any request.
    pub(crate) refuses: Option<(u16, Value)>,
    pub(crate) ca: TestCa,
    tokens: HashMap<String, Life>,
    busy: usize,
    pub(crate) busiest: usize,
}

struct Life {
    born: Instant,
    expires: Instant,
}

/// The fake. Clones are the same server.
#[derive(Clone)]
pub(crate) struct FakeVault {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for FakeVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeVault")
    }
}

impl FakeVault {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let ca = TestCa::new("example.org").intermediate().issue();
        Self {
            state: Arc::new(Mutex::new(State {
                mood: Mood::Well,
                moods: HashMap::new(),
                asked: Vec::new(),
                secret_id: "first-secret-id".to_owned(),
                uses: u32::MAX,
                token_ttl: 3600,
                token_max: 4 * 3600,
                certificate_ttl: Duration::from_secs(3600),
                ahead: 0,
                forbidden: false,
                refuses: None,
                ca,
                tokens: HashMap::new(),
                busy: 0,
                busiest: 0,
            })),
            clock,
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many requests were answered with `status` and begin with `what`.
    pub(crate) fn count(&self, what: &str, status: u16) -> usize {
        let state = self.state();
        let asked = state.asked.iter();
        asked
            .filter(|asked| asked.what.starts_with(what) && asked.status == status)
            .count()
    }

    pub(crate) fn revoke_all(&self) {
        self.state().tokens.clear();
    }

    async fn answer(
        self,
        host: String,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let token = request.headers().get("x-vault-token");
        let token = token.map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(request.headers()["x-vault-request"], "true");
        let path = request.uri().path().trim_start_matches("/v1/").to_owned();
        let what = format!("{} {path}", request.method());
        {
            let mut state = self.state();
            state.busy += 1;
            state.busiest = state.busiest.max(state.busy);
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(LATENCY).await;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mood = self.mood(&host);
        if matches!(mood, Mood::Hangs) {
            self.note(&host, &what, 0);
            self.state().busy -= 1;
            return std::future::pending().await;
        }
        let (status, answer) = match mood {
            Mood::Sealed => (503, json!({"errors": ["Vault is sealed"]})),
            Mood::Answers(status, text) => (status, serde_json::from_str(text).unwrap_or_default()),
            Mood::Redirects(_) => (307, Value::Null),
            _ => self.act(&what, token.as_deref(), &body),
        };
        self.note(&host, &what, status);
        self.state().busy -= 1;
        let mut reply = Response::builder().status(status);
        if let Mood::Redirects(to) = self.mood(&host) {
            reply = reply.header("location", format!("{to}/v1/{path}"));
        }
        let text = match self.mood(&host) {
            Mood::Answers(_, text) => text.to_owned(),
            _ => answer.to_string(),
        };
        Ok(reply.body(Full::new(Bytes::from(text))).unwrap())
    }

    fn mood(&self, host: &str) -> Mood {
        let state = self.state();
        let mood = state.moods.get(host).unwrap_or(&state.mood);
        mood.clone()
    }

    fn note(&self, host: &str, what: &str, status: u16) {
        self.state().asked.push(Asked {
            at: Instant::now(),
            what: what.to_owned(),
            host: host.to_owned(),
            status,
        });
    }

    fn act(&self, what: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let now = Instant::now();
        let mut state = self.state();
        let denied = (403, json!({"errors": ["permission denied"]}));
        let (ttl, max) = (state.token_ttl, state.token_max);
        if what == "POST auth/approle/login" {
            if body["secret_id"] != state.secret_id.as_str() || state.uses == 0 {
                return (400, json!({"errors": ["invalid role or secret ID"]}));
            }
            state.uses -= 1;
            let token = format!("s.token-{}", state.asked.len());
            let life = Life {
                born: now,
                expires: now + Duration::from_secs(ttl),
            };
            state.tokens.insert(token.clone(), life);
            return (
                200,
                json!({"auth": {"client_token": token, "lease_duration": ttl, "renewable": true}}),
            );
        }
        if what == "GET pki/cert/ca" {
            return (200, json!({"data": {"certificate": state.ca.pem()}}));
        }
        let life = token.and_then(|token| state.tokens.get_mut(token));
        let Some(life) = life.filter(|life| life.expires > now) else {
            return denied;
        };
        match what {
            "POST auth/token/renew-self" => {
                let end = life.born + Duration::from_secs(max);
                life.expires = (now + Duration::from_secs(ttl)).min(end);
                let left = (life.expires - now).as_secs();
                (
                    200,
                    json!({"auth": {"client_token": token, "lease_duration": left, "renewable": true}}),
                )
            }
            "GET auth/token/lookup-self" => {
                let left = (life.expires - now).as_secs();
                (
                    200,
                    json!({"data": {"ttl": left, "creation_ttl": ttl, "renewable": true}}),
                )
            }
            "POST pki/issue/executor" => match &state.refuses {
                Some(refusal) => refusal.clone(),
                None if state.forbidden => (
                    403,
                    json!({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}),
                ),
                None => (200, self.issued(&state, body)),
            },
            _ => (404, json!({"errors": []})),
        }
    }

    fn issued(&self, state: &State, body: &Value) -> Value {
        let span = Duration::from_secs(state.ahead.unsigned_abs());
        let now = if state.ahead < 0 {
            self.clock.now() - span
        } else {
            self.clock.now() + span
        };
        let backdate = Duration::from_secs(30);
        let leaf = state
            .ca
            .leaf()
            .dns(body["common_name"].as_str().unwrap())
            .valid_from(now - backdate)
            .valid_for(state.certificate_ttl + backdate)
            .issue();
        let chain = leaf.chain_pem();
        let end = "-----END CERTIFICATE-----";
        let own = chain.find(end).unwrap() + end.len();
        json!({"data": {
            "certificate": chain.get(..own).unwrap(),
            "issuing_ca": state.ca.pem(),
            "ca_chain": [state.ca.pem()],
            "private_key": leaf.key_pem(),
        }})
    }
}

impl Dial for FakeVault {
    fn dial<'a>(
        &'a self,
        address: &'a VaultAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>> {
        Box::pin(async move {
            let host = address.host().to_owned();
            match self.mood(&host) {
                Mood::Down => {
                    self.note(&host, "", 0);
                    return Err(DialError::Failed("connection refused".to_owned()));
                }
                Mood::BreaksOff => {
                    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
                    self.note(&host, "", 0);
                    tokio::spawn(async move {
                        // Some of the request first: an answer to nothing is another fault.
                        let _ = theirs.read(&mut [0; 16]).await;
                        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"auth\":";
                        let _: io::Result<()> = theirs.write_all(head).await;
                    });
                    return Ok(Box::new(ours) as Box<dyn Connection>);
                }
                _ => {}
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let fake = self.clone();
            let service = service_fn(move |request| fake.clone().answer(host.clone(), request));
            tokio::spawn(async move {
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(theirs), service)
                    .await;
            });
            Ok(Box::new(ours) as Box<dyn Connection>)
        })
    }
}
