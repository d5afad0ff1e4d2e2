//! Node attestors, both halves.

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::node::{
    AgentHalf, AttestedAgent, Challenge, Claim, Conversation, Payload, ServerHalf,
};
use ah_spire_attest::{AttestError, Selector};
use ah_spire_wire::Channel;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::Plugin;
use crate::packages::spire::plugin::agent::nodeattestor::v1 as agent;
use crate::packages::spire::plugin::server::nodeattestor::v1 as server;
use agent::node_attestor_client::NodeAttestorClient as AgentClient;
use agent::payload_or_challenge_response::Data;
use server::attest_request::Request as Ask;
use server::attest_response::Response as Answer;
use server::node_attestor_client::NodeAttestorClient as ServerClient;

/// What makes a plugin the agent's half.
pub const AGENT_SERVICE: &str = "spire.plugin.agent.nodeattestor.v1.NodeAttestor";

/// What makes a plugin the server's half.
pub const SERVER_SERVICE: &str = "spire.plugin.server.nodeattestor.v1.NodeAttestor";

/// Under which a plugin of the server finds the address of the agent.
const CLIENT_IP: &str = "x-forwarded-client-ip";

/// The agent's half of a plugin.
#[derive(Clone)]
pub struct AgentNode(Plugin);

impl AgentNode {
    /// `plugin` has to be one of [`AGENT_SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }
}

/// One attestation that a plugin helps with. The plugin's call ends with it.
pub struct Aided {
    plugin: Plugin,
    challenges: mpsc::Sender<agent::Challenge>,
    answers: Streaming<agent::PayloadOrChallengeResponse>,
}

impl Aided {
    /// What the plugin says next; `closed` when it says no more.
    async fn next(&mut self, closed: &str) -> Result<Option<Data>, AttestError> {
        let answer = self.plugin.wait(self.answers.message()).await;
        let answer = answer.map_err(|status| attest_error(&status))?;
        let answer = answer.ok_or_else(|| attest_error(&self.plugin.failed(closed)))?;
        Ok(answer.data)
    }
}

impl AgentHalf for AgentNode {
    type Conversation = Aided;

    fn name(&self) -> &str {
        self.0.name()
    }

    async fn begin(&self) -> Result<(Payload, Aided), AttestError> {
        let (challenges, stream) = mpsc::channel(1);
        let stream = ReceiverStream::new(stream);
        let answers = self.0.call(async |channel| {
            let mut client = AgentClient::with_origin(channel, Channel::origin());
            client.aid_attestation(stream).await
        });
        let mut aided = Aided {
            plugin: self.0.clone(),
            answers: answers.await.map_err(|status| attest_error(&status))?,
            challenges,
        };
        let data = aided.next("plugin closed stream before returning attestation data");
        match data.await? {
            Some(Data::Payload(payload)) if !payload.is_empty() => {
                Ok((Payload::new(payload), aided))
            }
            _ => Err(attest_error(
                &self.0.failed("plugin response missing attestation payload"),
            )),
        }
    }
}

impl Conversation for Aided {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        const CLOSED: &str = "plugin closed stream before handling the challenge";
        let challenge = agent::Challenge {
            challenge: challenge.to_vec(),
        };
        let sent = self.challenges.send(challenge).await;
        sent.map_err(|_| attest_error(&self.plugin.failed(CLOSED)))?;
        match self.next(CLOSED).await? {
            Some(Data::ChallengeResponse(response)) if !response.is_empty() => Ok(response),
            _ => Err(attest_error(
                &self
                    .plugin
                    .failed("plugin response missing challenge response"),
            )),
        }
    }
}

/// The server's half of a plugin.
#[derive(Clone)]
pub struct ServerNode {
    plugin: Plugin,
    trust_domain: TrustDomain,
}

impl ServerNode {
    /// `plugin` has to be one of [`SERVER_SERVICE`]; it lets nodes into `trust_domain`.
    pub fn new(plugin: Plugin, trust_domain: TrustDomain) -> Self {
        Self {
            plugin,
            trust_domain,
        }
    }

    fn attested(&self, told: server::AgentAttributes) -> Result<AttestedAgent, AttestError> {
        let refuse = |why: String| attest_error(&self.plugin.failed(&why));
        if told.spiffe_id.is_empty() {
            return Err(refuse("plugin response missing agent ID".to_owned()));
        }
        let id = SpiffeId::new(&told.spiffe_id)
            .map_err(|error| refuse(format!("agent ID {:?}: {error}", told.spiffe_id)))?;
        // Anything else may be a workload's.
        if id.trust_domain() != &self.trust_domain || !id.path().starts_with("/spire/agent/") {
            let domain = &self.trust_domain;
            return Err(refuse(format!(
                "agent ID \"{id}\" is not below \"spiffe://{domain}/spire/agent/\""
            )));
        }
        Ok(AttestedAgent {
            id,
            selectors: selectors(&self.plugin, told.selector_values),
            can_reattest: told.can_reattest,
        })
    }
}

impl ServerHalf for ServerNode {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let (asks, stream) = mpsc::channel(1);
        let ask = |request| server::AttestRequest {
            request: Some(request),
        };
        let ended = || attest_error(&self.plugin.failed("plugin closed stream unexpectedly"));
        let payload = ask(Ask::Payload(claim.payload.to_vec()));
        asks.send(payload).await.map_err(|_| ended())?;
        let mut request = Request::new(ReceiverStream::new(stream));
        let ip = claim.client_ip.map(|ip| ip.to_canonical().to_string());
        if let Ok(ip) = ip.unwrap_or_default().parse() {
            request.metadata_mut().insert(CLIENT_IP, ip);
        }
        let answers = self.plugin.call(async |channel| {
            let mut client = ServerClient::with_origin(channel, Channel::origin());
            client.attest(request).await
        });
        let mut answers = answers.await.map_err(|status| attest_error(&status))?;
        loop {
            let answer = self.plugin.wait(answers.message()).await;
            let answer = answer.map_err(|status| attest_error(&status))?;
            match answer.ok_or_else(ended)?.response {
                Some(Answer::AgentAttributes(told)) => return self.attested(told),
                Some(Answer::Challenge(challenge)) => {
                    let response = agent.challenge(challenge).await?;
                    let response = ask(Ask::ChallengeResponse(response));
                    asks.send(response).await.map_err(|_| ended())?;
                }
                None => {
                    let why = "plugin response missing challenge or agent attributes";
                    return Err(attest_error(&self.plugin.failed(why)));
                }
            }
        }
    }
}

/// Selectors have the plugin's name as their type.
pub(crate) fn selectors(plugin: &Plugin, values: Vec<String>) -> Vec<Selector> {
    let values = values.into_iter();
    values
        .map(|value| Selector::new(plugin.name(), value))
        .collect()
}

pub(crate) fn attest_error(status: &Status) -> AttestError {
    let told = Explained::new(Code::Other, status.message());
    match status.code() {
        tonic::Code::InvalidArgument => AttestError::Invalid(told),
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => AttestError::Refused(told),
        tonic::Code::NotFound => AttestError::NotFound(told),
        tonic::Code::FailedPrecondition => AttestError::NotSetUp(told),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => AttestError::Unavailable(
            told.hint("look into the log for what the plugin says, and why it ended"),
        ),
        _ => AttestError::Internal(told.hint("look into the log for what the plugin says")),
    }
}
