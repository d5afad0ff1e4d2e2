use std::time::Duration;

use ah_spire_wire::http_client::HttpClient;
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use http::{Request, StatusCode};
use regex::Regex;
use spiffe::{SpiffeId, TrustDomain};

use crate::node::http_challenge::{AttestationData, Nonce, path};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const HTTP: Builtin = Builtin::HttpChallenge;

/// How long the fetching of the nonce may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Ports below are for the superuser (ip(7)).
const FIRST_FREE_PORT: i64 = 1024;

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpChallengeServerConfig {
    /// Regular expressions, one of which is found in the host name. Any name if there are none.
    pub allowed_dns_patterns: Vec<String>,
    /// The one port that agents may have.
    pub required_port: Option<i64>,
    /// Whether they may have a port from 1024 on; true if not set.
    pub allow_non_root_ports: Option<bool>,
    /// Whether the first agent of a host is the only one until it is evicted; true if not set.
    pub tofu: Option<bool>,
}

/// The server's half.
pub struct HttpChallengeServer {
    trust_domain: TrustDomain,
    patterns: Vec<Regex>,
    required_port: Option<i64>,
    allow_non_root_ports: bool,
    tofu: bool,
}

impl HttpChallengeServer {
    /// The half that lets hosts into `trust_domain`.
    pub fn configure(
        config: HttpChallengeServerConfig,
        trust_domain: TrustDomain,
    ) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| AttestError::invalid(text, hint).of_builtin(HTTP);
        let patterns = config.allowed_dns_patterns.iter().map(|pattern| {
            Regex::new(pattern).map_err(|error| {
                wrong(
                    format!("cannot compile allowed_dns_pattern: {pattern:?}, {error}"),
                    "write a regular expression, such as \"^[a-z0-9-]+\\\\.example\\\\.org$\"",
                )
            })
        });
        let patterns = patterns.collect::<Result<_, _>>()?;
        let free_ports = match config.required_port {
            Some(port) => port >= FIRST_FREE_PORT,
            None => config.allow_non_root_ports.unwrap_or(true),
        };
        let tofu = config.tofu.unwrap_or(true);
        if !tofu && free_ports {
            return Err(wrong(
                "you can not turn off trust on first use (TOFU) when non-root ports are allowed"
                    .into(),
                "set required_port below 1024, or allow_non_root_ports = false",
            ));
        }
        Ok(Self {
            trust_domain,
            patterns,
            required_port: config.required_port,
            allow_non_root_ports: config.allow_non_root_ports.unwrap_or(true),
            tofu,
        })
    }

    /// What is claimed, if it is worth a challenge.
    fn examine(&self, payload: &[u8]) -> Result<AttestationData, AttestError> {
        let invalid = |text: String| {
            AttestError::invalid(
                text,
                "compare `port`, `hostname` and `agentname` of the agent's plugin with what the server's allows",
            )
        };
        let data: AttestationData = serde_json::from_slice(payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        let port = data.port;
        if self.required_port.is_some_and(|required| required != port) {
            return Err(invalid(format!(
                "port {port} is not allowed to be used by this server"
            )));
        }
        if !self.allow_non_root_ports && port >= FIRST_FREE_PORT {
            return Err(invalid(format!("port {port} is not allowed to be >= 1024")));
        }
        if u16::try_from(port).is_err() || port == 0 {
            return Err(invalid("port is invalid".into()));
        }
        let name = data.agentname.as_bytes();
        let named = name.first().is_some_and(u8::is_ascii_alphabetic)
            && name.len() <= 32
            && name
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
        if !named {
            return Err(invalid("agent name is not valid".into()));
        }
        self.examine_host(&data.hostname)?;
        Ok(data)
    }

    fn examine_host(&self, host: &str) -> Result<(), AttestError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || !host.bytes().all(fits) {
            return Err(AttestError::invalid(
                format!("hostname {host:?} is no host name"),
                "let `hostname` of the agent's plugin be the name that the server reaches the node by",
            ));
        }
        if host == "localhost" {
            return Err(AttestError::refused(
                "you can not use localhost as a hostname",
                "let `hostname` of the agent's plugin be the name that the server reaches the node by",
            ));
        }
        let allowed =
            self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.is_match(host));
        if allowed {
            return Ok(());
        }
        Err(AttestError::refused(
            "the requested hostname is not allowed to connect",
            format!("add a pattern for {host} to allowed_dns_patterns if an agent is to run there"),
        ))
    }

    /// Whether the host of `data` serves `nonce`.
    async fn verify(data: &AttestationData, nonce: &str) -> Result<(), String> {
        let url = format!(
            "http://{}:{}{}",
            data.hostname,
            data.port,
            path(&data.agentname)
        );
        let request = Request::get(&url).body(Bytes::new());
        let request = request.map_err(|error| format!("{url}: {error}"))?;
        let client = HttpClient::plain()?;
        let answer = tokio::time::timeout(TIMEOUT, Box::pin(client.send(request))).await;
        let answer =
            answer.map_err(|_| format!("{url}: no answer within {}s", TIMEOUT.as_secs()))??;
        if answer.status() != StatusCode::OK {
            return Err(format!("{url}: the answer is {}", answer.status()));
        }
        if answer.body().trim_ascii() == nonce.as_bytes() {
            Ok(())
        } else {
            Err("expected nonce was not found in HTTP response".into())
        }
    }
}

impl ServerHalf for HttpChallengeServer {
    fn name(&self) -> &str {
        HTTP.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let told = |error: AttestError| error.of_builtin(HTTP);
        let data = self.examine(claim.payload).map_err(told)?;
        let broken = |error: &str| {
            told(AttestError::internal(
                format!("unable to generate challenge: {error}"),
                "see the system's log: getrandom(2) fails",
            ))
        };
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| broken("no random numbers"))?;
        let nonce = Nonce {
            nonce: URL_SAFE.encode(bytes),
        };
        let challenge = serde_json::to_vec(&nonce).map_err(|error| broken(&error.to_string()))?;
        // The proof is what the host serves.
        agent.challenge(challenge).await?;
        let verified = Self::verify(&data, &nonce.nonce).await;
        verified.map_err(|error| {
            told(AttestError::refused(
                format!("challenge verification failed: {error}"),
                "the server has to reach the agent's node by its host name, at the agent's port, by HTTP",
            ))
        })?;
        let id = format!(
            "spiffe://{}/spire/agent/{}/{}",
            self.trust_domain,
            HTTP.name(),
            data.hostname
        );
        let id = SpiffeId::new(&id).map_err(|error| {
            told(AttestError::internal(
                format!("failed to make spiffe id: {error}"),
                "let `hostname` of the agent's plugin be a name that a SPIFFE ID can have",
            ))
        })?;
        let host = format!("hostname:{}", data.hostname);
        Ok(AttestedAgent {
            id,
            selectors: vec![Selector::new(HTTP.name(), host)],
            can_reattest: !self.tofu,
        })
    }
}
