//! Node attestation: a node without an SVID proves who it is, and gets one.

use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::node::{AgentHalf, Conversation};
use ah_spire_wire::model::Bundle;
use ah_spire_wire::server::agent::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, attest_agent_request,
    attest_agent_response,
};
use ah_spire_wire::types;
use ah_tls::{parse_spiffe_id, verify_spiffe_server};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::keys::{NodeKey, spki_of_certificate};
use crate::server_client::{
    ServerClient, ServerFault, agent_client, roots_of, server_id, trust_of,
};

/// Bytes that an attestation may hand over at once; upstream's limit for payloads is less.
const CHALLENGES: usize = 32;

/// A node that was believed.
#[derive(Debug)]
pub struct Attested {
    /// DER, leaf first.
    pub svid: Vec<CertificateDer<'static>>,
    /// Whether it may attest again under the same ID.
    pub reattestable: bool,
    /// The bundle of its trust domain.
    pub bundle: Bundle,
}

/// Why an attestation did not succeed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AttestFault {
    /// The server, or the way to it.
    #[error(transparent)]
    Server(#[from] ServerFault),
    /// This node has nothing to prove itself with, now.
    #[error(transparent)]
    Node(#[from] AttestError),
}

impl AttestFault {
    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Server(fault) => fault.explained(),
            Self::Node(error) => error.explained(),
        }
    }
}

/// Attests with `half` over `client`, for `key`.
///
/// The bundle is fetched first: when the SVID comes, all that has to be remembered is there, and a process that dies
/// between the server's yes and the disk's has only that moment to do so. With trust on first use the server's own
/// certificate has to be of the bundle that it sent. `begin` is called before anything is sent that a server may use
/// up.
pub async fn attest(
    client: &ServerClient,
    half: &impl AgentHalf,
    key: &NodeKey,
    begin: impl FnOnce() -> Result<(), Explained>,
) -> Result<Attested, AttestFault> {
    let connection = client.connection().await?;
    let bundle = client.bundle().await?;
    let domain = &client.settings().trust_domain;
    let now = client.settings().clock.now();
    let trust = trust_of(domain, roots_of(&bundle));
    let server = server_id(domain).map_err(ServerFault::Malformed)?;
    verify_spiffe_server(&connection.server, &trust, &server, now).map_err(|refused| {
        ServerFault::malformed(
            "fetching the trust bundle",
            format!(
                "the server's own certificate is not of the bundle that it sent: {}",
                refused.explained().text
            ),
        )
    })?;
    let csr = key
        .request(None)
        .map_err(|error| ServerFault::Malformed(error.explained().clone()))?;
    let (payload, conversation) = half.begin().await?;
    begin().map_err(ServerFault::Refused)?;
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: half.name().to_owned(),
            payload: payload.expose().to_vec().into(),
        }),
        params: Some(AgentX509svidParams { csr }),
    };
    let result = converse(client, params, conversation)
        .await
        .map_err(|fault| with_hint(fault, half.name()))?;
    let chain = result.svid.map(|svid| svid.cert_chain).unwrap_or_default();
    let svid: Vec<CertificateDer<'static>> = chain.iter().map(|der| der.to_vec().into()).collect();
    vet(&svid, key, domain, roots_of(&bundle), now)?;
    Ok(Attested {
        svid,
        reattestable: result.reattestable,
        bundle,
    })
}

/// What may have happened to the token of a node whose attestation before had no answer.
pub(crate) fn with_lost_answer(fault: AttestFault, attestor: &str) -> AttestFault {
    match fault {
        AttestFault::Server(ServerFault::Refused(told)) if attestor == "join_token" => {
            AttestFault::Server(ServerFault::Refused(told.cause(
                "an attestation of this node was cut off before: the server may have taken the token then, and its answer was lost",
            )))
        }
        other => other,
    }
}

/// What an operator does about a proof that the server does not take.
fn with_hint(fault: AttestFault, attestor: &str) -> AttestFault {
    let AttestFault::Server(ServerFault::Refused(told)) = fault else {
        return fault;
    };
    let hint = match attestor {
        "join_token" => "a token is good once, until it ends: make another with `spire-server token generate` and give it to the agent as `join_token`, or in the file of `join_token_file`".to_owned(),
        other => format!("compare the server's settings of NodeAttestor \"{other}\" with what this node has, and look into the server's log"),
    };
    AttestFault::Server(ServerFault::Refused(told.hint(hint)))
}

/// The SPIFFE ID of an SVID.
pub fn id_of(svid: &[CertificateDer<'static>]) -> Option<SpiffeId> {
    let leaf = CertificateFacts::from_der(svid.first()?).ok()?;
    parse_spiffe_id(leaf.uris.first()?).ok()
}

/// Refuses an SVID that a server should not have sent: for another key, of another trust domain, no agent's, or
/// issued by an authority that is not in `roots`.
pub(crate) fn vet(
    svid: &[CertificateDer<'static>],
    key: &NodeKey,
    domain: &TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> Result<SpiffeId, ServerFault> {
    let refuse = |why: String| ServerFault::malformed("the agent's SVID", why);
    let leaf = svid
        .first()
        .ok_or_else(|| refuse("it has no certificate".into()))?;
    if spki_of_certificate(leaf).is_none_or(|spki| spki != key.spki()) {
        return Err(refuse(
            "it was issued for another key than the agent's".into(),
        ));
    }
    let id = id_of(svid).ok_or_else(|| refuse("it has no SPIFFE ID".into()))?;
    if id.trust_domain() != domain {
        return Err(refuse(format!(
            "{id} is of the trust domain {}, the agent's is {domain}",
            id.trust_domain()
        )));
    }
    if !id.path().starts_with("/spire/agent/") {
        return Err(refuse(format!("{id} is no agent's SPIFFE ID")));
    }
    verify_spiffe_server(svid, &trust_of(domain, roots), &id, now).map_err(|refused| {
        let told = refused.explained();
        refuse(format!("{}: {}", told.text, told.causes.join("; ")))
    })?;
    Ok(id)
}

async fn converse(
    client: &ServerClient,
    params: attest_agent_request::Params,
    mut conversation: impl Conversation,
) -> Result<attest_agent_response::Result, AttestFault> {
    use attest_agent_request::Step as Request;
    use attest_agent_response::Step as Answer;
    const WHAT: &str = "node attestation";

    let (requests, receiver) = mpsc::channel(1);
    let first = AttestAgentRequest {
        step: Some(Request::Params(params)),
    };
    let ended = || ServerFault::malformed(WHAT, "the server ended the stream without an SVID");
    requests.send(first).await.map_err(|_| ended())?;
    // The deadline of the call holds for its opening; each answer has its own below.
    let stream = client
        .call(WHAT, async |channel| {
            agent_client(channel)
                .attest_agent(ReceiverStream::new(receiver))
                .await
        })
        .await?;
    let stream = Arc::new(tokio::sync::Mutex::new(stream));
    for _ in 0..CHALLENGES {
        let stream = stream.clone();
        let answer: Option<AttestAgentResponse> = client
            .call(WHAT, async |_| {
                stream
                    .lock()
                    .await
                    .message()
                    .await
                    .map(tonic::Response::new)
            })
            .await?;
        let challenge = match answer.and_then(|answer| answer.step) {
            Some(Answer::Result(result)) => return Ok(result),
            Some(Answer::Challenge(challenge)) => challenge,
            None => return Err(ended().into()),
        };
        let response = conversation.answer(&challenge).await?;
        let request = AttestAgentRequest {
            step: Some(Request::ChallengeResponse(response)),
        };
        requests.send(request).await.map_err(|_| ended())?;
    }
    Err(ServerFault::Refused(
        Explained::new(Code::Other, format!("{WHAT} failed"))
            .cause(format!("the server sent more than {CHALLENGES} challenges")),
    )
    .into())
}
