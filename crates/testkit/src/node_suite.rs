//! What every node attestor must do: the conformance suite of the seam between an agent's half and a server's.
//!
//! An attestor's own tests say what its proof is and how it is forged; a [`NodeFixture`] lets this suite do the same
//! few things to each and hold all of them to the same promises.

use std::time::SystemTime;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::node::{
    AgentHalf, AttestedAgent, Challenge, Claim, Conversation, Payload, ServerHalf,
};
use spiffe::TrustDomain;

/// One attestor, and agents that may and may not come in.
pub trait NodeFixture {
    /// The half of the agent.
    type Agent: AgentHalf;
    /// The half of the server.
    type Server: ServerHalf;

    /// The attestation type on the wire.
    const NAME: &'static str;

    /// How many challenges an honest agent answers.
    const CHALLENGES: usize;

    /// Whether an agent may attest again.
    const CAN_REATTEST: bool;

    /// The server's half, with the tokens, roots and so on that let [`NodeFixture::honest`] in.
    fn server(&self) -> Self::Server;

    /// The trust domain that agents are let into.
    fn trust_domain(&self) -> TrustDomain;

    /// An agent that has what it takes. Each call gives the same one.
    fn honest(&self) -> Self::Agent;

    /// An agent with a well-formed claim that no server of the fixture may accept.
    fn impostor(&self) -> Self::Agent;

    /// Texts that no error and no `Debug` may contain.
    fn secrets(&self) -> Vec<String>;
}

/// Leads both halves through one attestation at the time `now`, as agent and server do over the wire.
pub async fn attest(
    agent: &impl AgentHalf,
    server: &impl ServerHalf,
    now: SystemTime,
) -> Result<AttestedAgent, AttestError> {
    let (payload, conversation) = agent.begin().await?;
    let mut way = Honest {
        conversation,
        challenges: 0,
    };
    server.attest(claim(payload.expose(), now), &mut way).await
}

/// A claim from nowhere.
pub fn claim(payload: &[u8], now: SystemTime) -> Claim<'_> {
    Claim {
        payload,
        client_ip: None,
        now,
    }
}

/// Panics unless the fixture's attestor keeps every promise of the seam.
pub async fn conforms<F: NodeFixture>(fixture: F) {
    let told = Told(fixture.secrets());
    let server = fixture.server();
    let agent = fixture.honest();
    assert_eq!(server.name(), F::NAME);
    assert_eq!(agent.name(), F::NAME);

    refuses_what_is_no_payload(&server, &told).await;
    refuses_an_impostor(&fixture, &server, &told).await;
    if F::CHALLENGES > 0 {
        refuses_wrong_answers(&agent, &server, &told).await;
        gives_back_the_error_of_an_agent_that_left(&agent, &server).await;
    }
    let first = lets_in(&fixture, &agent, &server).await;
    let second = attest(&agent, &server, SystemTime::now()).await;
    if F::CAN_REATTEST {
        assert_eq!(second.expect("an agent that attests again"), first);
    } else {
        told.by_error(&second.expect_err("a proof that works once"));
    }
    bears_any_challenge(&agent, &told).await;
}

async fn lets_in<F: NodeFixture>(
    fixture: &F,
    agent: &F::Agent,
    server: &F::Server,
) -> AttestedAgent {
    let (payload, conversation) = agent.begin().await.expect("an honest agent begins");
    let mut way = Honest {
        conversation,
        challenges: 0,
    };
    let claim = claim(payload.expose(), SystemTime::now());
    let attested = server.attest(claim, &mut way).await;
    let attested = attested.unwrap_or_else(|error| panic!("{}", error.explained().report()));
    assert_eq!(way.challenges, F::CHALLENGES);
    assert_eq!(attested.can_reattest, F::CAN_REATTEST);
    assert!(attested.id.is_member_of(&fixture.trust_domain()));
    let path = attested.id.path();
    assert!(path.starts_with("/spire/agent/"), "{path}");
    for selector in &attested.selectors {
        assert_eq!(selector.kind, F::NAME, "{selector}");
    }
    attested
}

/// None of these is a payload of any attestor, and none is worth a challenge.
async fn refuses_what_is_no_payload(server: &impl ServerHalf, told: &Told) {
    let huge = vec![b'a'; 10 * 1024 * 1024];
    let nested = "[".repeat(100_000);
    let payloads: [&[u8]; 9] = [
        b"",
        b"\0",
        &[0xff; 64],
        b"null",
        b"{}",
        b"[]",
        b"{\"certificates\":[\"\"]}",
        nested.as_bytes(),
        &huge,
    ];
    for payload in payloads {
        let mut way = Unasked;
        let outcome = server.attest(claim(payload, SystemTime::now()), &mut way);
        let error = outcome.await.expect_err("no payload");
        assert!(matches!(error, AttestError::Invalid(_)), "{error:?}");
        told.by_error(&error);
    }
}

async fn refuses_an_impostor<F: NodeFixture>(fixture: &F, server: &F::Server, told: &Told) {
    let impostor = fixture.impostor();
    let error = attest(&impostor, server, SystemTime::now()).await;
    let error = error.expect_err("an impostor");
    let fitting = matches!(error, AttestError::Invalid(_) | AttestError::Refused(_));
    assert!(fitting, "{error:?}");
    told.by_error(&error);
}

async fn refuses_wrong_answers(agent: &impl AgentHalf, server: &impl ServerHalf, told: &Told) {
    let huge = vec![b'a'; 10 * 1024 * 1024];
    let answers: [&[u8]; 6] = [b"", b"\0\xff", b"null", b"{}", b"[]", &huge];
    for answer in answers {
        let (payload, _) = agent.begin().await.expect("an honest agent begins");
        let mut way = Says(answer.to_vec());
        let claim = claim(payload.expose(), SystemTime::now());
        let error = server.attest(claim, &mut way).await;
        let error = error.expect_err("a wrong answer");
        let fitting = matches!(error, AttestError::Invalid(_) | AttestError::Refused(_));
        assert!(fitting, "{error:?}");
        told.by_error(&error);
    }
}

async fn gives_back_the_error_of_an_agent_that_left(
    agent: &impl AgentHalf,
    server: &impl ServerHalf,
) {
    let left = AttestError::Unavailable(Explained::new(Code::Unavailable, "the agent left"));
    let (payload, _) = agent.begin().await.expect("an honest agent begins");
    let mut way = Left(left.clone());
    let claim = claim(payload.expose(), SystemTime::now());
    let error = server.attest(claim, &mut way).await;
    assert_eq!(error.expect_err("no answer"), left);
}

/// A server that is none of ours may ask anything; the agent says what is wrong.
async fn bears_any_challenge(agent: &impl AgentHalf, told: &Told) {
    let challenges: [&[u8]; 5] = [b"", b"\0\xff", b"null", b"{}", b"[]"];
    for challenge in challenges {
        let (payload, mut conversation) = agent.begin().await.expect("an honest agent begins");
        told.by_text(&format!("{payload:?}"));
        let error = conversation.answer(challenge).await;
        told.by_error(&error.expect_err("no challenge of ours"));
    }
}

/// What may not be told, and what must be.
struct Told(Vec<String>);

impl Told {
    fn by_error(&self, error: &AttestError) {
        let explained = error.explained();
        assert!(!explained.text.is_empty());
        assert!(
            explained.hint.is_some(),
            "no remedy: {}",
            explained.report()
        );
        assert!(
            explained.report().len() < 4096,
            "an error as long as what was sent"
        );
        self.by_text(&explained.report());
        self.by_text(&format!("{error:?}"));
    }

    fn by_text(&self, text: &str) {
        for secret in &self.0 {
            assert!(!text.contains(secret), "a secret is told: {text}");
        }
    }
}

struct Honest<C> {
    conversation: C,
    challenges: usize,
}

impl<C: Conversation> Challenge for Honest<C> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.challenges += 1;
        self.conversation.answer(&challenge).await
    }
}

/// Fails the test when it is asked anything.
pub struct Unasked;

impl Challenge for Unasked {
    async fn challenge(&mut self, _challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        panic!("a challenge for what is no payload");
    }
}

/// Answers every challenge with these bytes.
pub struct Says(pub Vec<u8>);

impl Challenge for Says {
    async fn challenge(&mut self, _challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        Ok(self.0.clone())
    }
}

struct Left(AttestError);

impl Challenge for Left {
    async fn challenge(&mut self, _challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        Err(self.0.clone())
    }
}

/// An agent's half that sends these bytes and answers with the conversation of another.
pub struct Sends<'a, A> {
    /// What is sent in place of the payload.
    pub payload: Vec<u8>,
    /// Who answers.
    pub agent: &'a A,
}

impl<A: AgentHalf> AgentHalf for Sends<'_, A> {
    type Conversation = A::Conversation;

    fn name(&self) -> &str {
        self.agent.name()
    }

    async fn begin(&self) -> Result<(Payload, Self::Conversation), AttestError> {
        let (_, conversation) = self.agent.begin().await?;
        Ok((Payload::new(self.payload.clone()), conversation))
    }
}
