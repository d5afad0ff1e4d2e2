//! The conversation of `AttestAgent`.

use std::sync::Arc;

use ah_identity_provider::hex;
use ah_spire_wire::server::agent::{
    AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use ah_spire_wire::spiffe_id_to_wire;
use ah_spire_wire::types::{AttestationData, X509svid};
use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::audit::{Audit, Fields};
use super::{Attested, Caller, Core, csr::Csr, failed, internal, invalid, unix};
use crate::ca::{X509Svid, X509SvidRequest};
use crate::ids;
use crate::store::{Agent, Spender, Store, StoreError};

const JOIN_TOKEN: &str = "join_token";

/// How long whoever took a join token may ask for the answer again, in seconds: as long as it takes to mend a network
/// or to start a node again.
const ANSWERED_AGAIN: i64 = 15 * 60;

/// Answers to an agent.
pub(super) struct Answers(mpsc::Sender<Result<AttestAgentResponse, Status>>);

impl Answers {
    async fn send(&self, step: attest_agent_response::Step) -> Result<(), Status> {
        let answer = AttestAgentResponse { step: Some(step) };
        let sent = self.0.send(Ok(answer)).await;
        sent.map_err(|_| Status::cancelled("the agent has gone"))
    }
}

/// Starts an attestation. The task ends with the stream, on either side.
pub(super) fn start<S: Store>(
    core: Arc<Core<S>>,
    caller: Caller,
    audit: Audit,
    requests: Streaming<AttestAgentRequest>,
) -> ReceiverStream<Result<AttestAgentResponse, Status>> {
    audit.apart();
    let (sender, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let gone = sender.clone();
        let attestation = Attestation {
            core,
            caller,
            audit: audit.clone(),
            requests,
            answers: Arc::new(Answers(sender.clone())),
        };
        let ended = tokio::select! {
            ended = attestation.run() => ended,
            () = gone.closed() => Err(Status::cancelled("the agent has gone")),
        };
        audit.ended(&ended);
        if let Err(status) = ended {
            // Fails when nobody listens any more.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

struct Attestation<S> {
    core: Arc<Core<S>>,
    caller: Caller,
    audit: Audit,
    requests: Streaming<AttestAgentRequest>,
    answers: Arc<Answers>,
}

impl<S: Store> Attestation<S> {
    async fn run(mut self) -> Result<(), Status> {
        let address = self.caller.address().map(|address| address.ip());
        self.core.limits.attest.wait(address, 1).await?;
        let first = self.requests.message().await.map_err(|status| {
            failed(
                Code::InvalidArgument,
                "failed to receive request from stream",
                status.message(),
            )
        })?;
        let (data, csr) = params(first).map_err(|why| invalid("malformed param", why))?;
        // Before the token is used up: a request that cannot be signed shall not cost one.
        let csr = Csr::read(&csr).map_err(|why| invalid("failed to parse CSR", why))?;
        let kind = data.r#type.clone();
        self.audit
            .about(|| Fields::default().with("node_attestor_type", kind.clone()));
        let attested = if kind == JOIN_TOKEN {
            self.join_token(&data.payload, &csr).await?
        } else {
            self.challenge(data).await?
        };
        self.audit
            .about(|| Fields::default().with("agent_id", attested.id.to_string()));
        let (svid, attested) = admit(&self.core, attested, kind, csr).await?;
        let step = attest_agent_response::Step::Result(attest_agent_response::Result {
            reattestable: attested.can_reattest,
            svid: Some(x509svid(&attested.id, &svid)),
        });
        tracing::info!(
            agent_id = %attested.id,
            address = self.caller.address().map(tracing::field::display),
            "Agent attestation request completed"
        );
        self.answers.send(step).await
    }

    /// Whoever holds the key that a token was taken with is answered again for a while: its answer may have been lost.
    async fn join_token(&self, payload: &[u8], csr: &Csr) -> Result<Attested, Status> {
        let unknown = || {
            Status::invalid_argument(
                "failed to attest: join token does not exist or has already been used",
            )
        };
        let token = std::str::from_utf8(payload).map_err(|_| unknown())?;
        let now = unix(self.core.clock.now());
        let spender = Spender {
            key: hex(digest(&SHA256, &csr.spki).as_ref()),
            now,
            until: now.saturating_add(ANSWERED_AGAIN),
        };
        let taken = self.core.store.consume_join_token(token, &spender).await;
        let taken = taken.map_err(|error| internal("failed to fetch join token", error))?;
        let taken = taken.ok_or_else(unknown)?;
        if taken.expires_at < now {
            return Err(Status::invalid_argument("join token expired"));
        }
        let id = join_token_id(&self.core.trust_domain, token)
            .map_err(|why| internal("failed to create join token ID", why))?;
        Ok(Attested {
            id,
            selectors: Vec::new(),
            can_reattest: false,
        })
    }

    async fn challenge(&mut self, data: AttestationData) -> Result<Attested, Status> {
        let address = self.caller.address().map(|address| address.ip());
        let mut asked = Asked {
            requests: &mut self.requests,
            answers: &self.answers,
        };
        let payload = zeroize::Zeroizing::new(data.payload.to_vec());
        let judged = self
            .core
            .attestors
            .attest(&data.r#type, &payload, address, &mut asked)
            .await;
        judged.unwrap_or_else(|| {
            Err(failed(
                Code::FailedPrecondition,
                "error getting node attestor",
                format!("could not find node attestor type \"{}\"", data.r#type),
            ))
        })
    }
}

/// The way back to the agent, for attestors with challenges.
struct Asked<'a> {
    requests: &'a mut Streaming<AttestAgentRequest>,
    answers: &'a Answers,
}

#[tonic::async_trait]
impl super::Ask for Asked<'_> {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, Status> {
        let step = attest_agent_response::Step::Challenge(challenge);
        self.answers.send(step).await?;
        let answer = self.requests.message().await.map_err(|status| {
            internal("failed to receive challenge from agent", status.message())
        })?;
        match answer.and_then(|answer| answer.step) {
            Some(attest_agent_request::Step::ChallengeResponse(response)) => Ok(response),
            _ => Err(internal(
                "failed to receive challenge from agent",
                "the agent answered with something else",
            )),
        }
    }
}

/// Signs for a node that proved itself, and remembers it.
async fn admit<S: Store>(
    core: &Core<S>,
    mut attested: Attested,
    kind: String,
    csr: Csr,
) -> Result<(X509Svid, Attested), Status> {
    if attested.id.trust_domain() != &core.trust_domain || ids::is_server(&attested.id) {
        let why = format!("\"{}\" cannot be an agent of this server", attested.id);
        return Err(internal("invalid agent ID", why));
    }
    if core.agent_id_as_selector {
        let id = attested.id.to_string();
        let selector = ah_spire_wire::model::Selector::new("spiffe_id", id);
        attested.selectors.push(selector);
    }
    attested.selectors.sort_unstable();
    attested.selectors.dedup();
    let before = core.store.agent(&attested.id).await;
    let before = before.map_err(|error| internal("failed to fetch agent", error))?;
    let banned = || Status::permission_denied("failed to attest: agent is banned");
    if before.as_ref().is_some_and(Agent::is_banned) {
        return Err(banned());
    }
    let svid = sign(core, &attested.id, csr)?;
    let agent = Agent {
        id: attested.id.clone(),
        attestation_type: kind,
        serial_number: svid.serial_number.clone(),
        expires_at: unix(svid.not_after),
        new_serial_number: String::new(),
        new_expires_at: 0,
        selectors: attested.selectors.clone(),
        can_reattest: attested.can_reattest,
        version: before.map(|agent| agent.version).unwrap_or_default(),
    };
    match core.store.put_agent(&agent).await {
        Ok(()) => Ok((svid, attested)),
        // Since it was looked up.
        Err(StoreError::Precondition(_)) => Err(banned()),
        Err(error) => Err(internal("failed to create attested agent", error)),
    }
}

/// Signs an agent's certificate.
pub(super) fn sign<S: Store>(
    core: &Core<S>,
    id: &spiffe::SpiffeId,
    csr: Csr,
) -> Result<X509Svid, Status> {
    let request = X509SvidRequest {
        spiffe_id: id.clone(),
        spki: csr.spki,
        dns_names: Vec::new(),
        ttl: None,
    };
    let signed = core.authority.sign_agent_svid(request);
    signed.map_err(|error| internal("failed to sign X509 SVID", error))
}

/// An SVID as it is told.
pub(super) fn x509svid(id: &spiffe::SpiffeId, svid: &X509Svid) -> X509svid {
    X509svid {
        cert_chain: svid.chain.iter().cloned().map(Into::into).collect(),
        id: Some(spiffe_id_to_wire(id)),
        expires_at: unix(svid.not_after),
        hint: String::new(),
    }
}

/// The ID of the agent that a join token lets in.
pub(super) fn join_token_id(
    of: &spiffe::TrustDomain,
    token: &str,
) -> Result<spiffe::SpiffeId, String> {
    ids::parse(&format!("spiffe://{of}/spire/agent/{JOIN_TOKEN}/{token}"))
}

fn params(first: Option<AttestAgentRequest>) -> Result<(AttestationData, Vec<u8>), &'static str> {
    let Some(attest_agent_request::Step::Params(params)) = first.and_then(|first| first.step)
    else {
        return Err("missing params");
    };
    let data = params.data.ok_or("missing attestation data")?;
    let csr = params.params.ok_or("missing X509-SVID parameters")?.csr;
    if csr.is_empty() {
        return Err("missing CSR");
    }
    if data.r#type.is_empty() {
        return Err("missing attestation data type");
    }
    if data.payload.is_empty() {
        return Err("missing attestation data payload");
    }
    Ok((data, csr))
}
