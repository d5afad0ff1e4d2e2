use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::join_token::{
    JoinTokenAgent, JoinTokenServer, JoinTokens, Token, TokenUse,
};
use ah_spire_attest::node::x509pop::Authorities;
use ah_spire_attest::node::{BuiltinAgent, BuiltinServer, ServerHalf};
use ah_testkit::node_suite::{self, NodeFixture, Says, attest, claim};
use futures_util::future::join_all;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use zeroize::Zeroizing;

const TOKEN: &str = "e3b6f4a2-6a75-4ab3-8f4f-1ea40a2b1d52";

/// Tokens as a store holds them: with their ends, each for one use.
#[derive(Clone, Default)]
struct Store {
    tokens: Arc<Mutex<HashMap<String, SystemTime>>>,
    broken: bool,
}

impl Store {
    fn with(token: &str, ends: SystemTime) -> Self {
        let store = Self::default();
        store.tokens.lock().unwrap().insert(token.to_owned(), ends);
        store
    }
}

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("database is locked")
    }
}

impl std::error::Error for Broken {}

impl JoinTokens for Store {
    type Error = Broken;

    async fn consume(&self, token: &str, now: SystemTime) -> Result<TokenUse, Broken> {
        if self.broken {
            return Err(Broken);
        }
        Ok(match self.tokens.lock().unwrap().remove(token) {
            None => TokenUse::Unknown,
            Some(ends) if ends < now => TokenUse::Expired,
            Some(_) => TokenUse::Taken,
        })
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn server(store: &Store) -> JoinTokenServer<Store> {
    JoinTokenServer::new(trust_domain(), store.clone())
}

fn agent(token: &str) -> JoinTokenAgent {
    JoinTokenAgent::new(Some(Token::new(&Zeroizing::new(token.to_owned())).unwrap()))
}

fn later(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

/// Join tokens need no authorities.
struct NoAuthorities;

impl Authorities for NoAuthorities {
    type Error = Broken;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, Broken> {
        Err(Broken)
    }
}

struct Fixture(Store);

impl NodeFixture for Fixture {
    type Agent = BuiltinAgent;
    type Server = BuiltinServer<Store, NoAuthorities>;

    const NAME: &'static str = "join_token";
    const CHALLENGES: usize = 0;
    const CAN_REATTEST: bool = false;

    fn server(&self) -> Self::Server {
        BuiltinServer::JoinToken(server(&self.0))
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> BuiltinAgent {
        BuiltinAgent::JoinToken(agent(TOKEN))
    }

    fn impostor(&self) -> BuiltinAgent {
        BuiltinAgent::JoinToken(agent("another-token"))
    }

    fn secrets(&self) -> Vec<String> {
        vec![TOKEN.into(), "another-token".into()]
    }
}

#[tokio::test]
async fn it_conforms() {
    node_suite::conforms(Fixture(Store::with(TOKEN, later(600)))).await;
}

#[tokio::test]
async fn the_agent_is_named_after_its_token_and_has_no_selectors() {
    let store = Store::with(TOKEN, later(600));
    let (agent, server) = (agent(TOKEN), server(&store));
    let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
    let id = format!("spiffe://example.org/spire/agent/join_token/{TOKEN}");
    assert_eq!(attested.id.to_string(), id);
    assert!(attested.selectors.is_empty());
    assert!(!attested.can_reattest);
}

#[tokio::test]
async fn of_many_agents_with_one_token_one_comes_in() {
    let server = server(&Store::with(TOKEN, later(600)));
    let agent = agent(TOKEN);
    let all = (0..50).map(|_| attest(&agent, &server, SystemTime::now()));
    let outcomes = join_all(all).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn an_expired_token_is_told_from_an_unknown_one_and_is_used_up_too() {
    let store = Store::with(TOKEN, later(600));
    let server = server(&store);
    let agent = agent(TOKEN);
    let error = attest(&agent, &server, later(601)).await.unwrap_err();
    assert!(matches!(error, AttestError::Invalid(_)));
    assert_eq!(error.to_string(), "join token expired");
    let error = attest(&agent, &server, SystemTime::now())
        .await
        .unwrap_err();
    assert!(matches!(error, AttestError::Invalid(_)));
    assert_eq!(
        error.to_string(),
        "failed to attest: join token does not exist or has already been used"
    );
}

#[tokio::test]
async fn a_broken_store_is_the_servers_fault() {
    let store = Store {
        broken: true,
        ..Store::default()
    };
    let error = attest(&agent(TOKEN), &server(&store), SystemTime::now()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, AttestError::Internal(_)));
    assert_eq!(
        error.to_string(),
        "failed to fetch join token: database is locked"
    );
}

#[tokio::test]
async fn a_token_that_makes_no_spiffe_id_lets_nobody_in_and_is_not_told() {
    let token = "with a space";
    let store = Store::with(token, later(600));
    let mut way = Says(Vec::new());
    let claim = claim(token.as_bytes(), SystemTime::now());
    let error = server(&store).attest(claim, &mut way).await.unwrap_err();
    assert!(matches!(error, AttestError::Internal(_)));
    assert!(!error.explained().report().contains(token));
}

#[tokio::test]
async fn without_a_token_the_agent_says_how_to_get_one() {
    use ah_spire_attest::node::AgentHalf;

    let error = JoinTokenAgent::new(None).begin().await.unwrap_err();
    assert!(matches!(error, AttestError::Invalid(_)));
    assert!(error.to_string().contains("join token was not provided"));
    for blank in ["", " \n"] {
        let error = Token::new(&Zeroizing::new(blank.into())).unwrap_err();
        assert!(
            error
                .explained()
                .hint
                .as_ref()
                .unwrap()
                .contains("token generate")
        );
    }
}

#[tokio::test]
async fn a_token_read_from_a_file_may_end_in_a_newline() {
    let store = Store::with(TOKEN, later(600));
    let (agent, server) = (agent(&format!("{TOKEN}\n")), server(&store));
    let outcome = attest(&agent, &server, SystemTime::now()).await;
    assert!(outcome.is_ok());
}
