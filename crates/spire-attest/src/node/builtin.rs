//! The attestors that are built in, each as one type for callers that hold any of them.

use crate::AttestError;
use crate::node::aws_iid::{AwsIidAgent, AwsIidServer};
use crate::node::azure_imds::{AzureImdsAgent, AzureImdsConversation, AzureImdsServer};
use crate::node::azure_msi::{AzureMsiAgent, AzureMsiServer};
use crate::node::gcp_iit::{GcpIitAgent, GcpIitServer};
use crate::node::http_challenge::{
    HttpChallengeAgent, HttpChallengeConversation, HttpChallengeServer,
};
use crate::node::join_token::{JoinTokenAgent, JoinTokenServer, JoinTokens};
use crate::node::k8s::{K8sAgent, PsatServer, SatServer};
use crate::node::sshpop::{SshPopAgent, SshPopConversation, SshPopServer};
use crate::node::tpm_devid::{TpmDevIdAgent, TpmDevIdConversation, TpmDevIdServer};
use crate::node::x509pop::{Authorities, X509PopAgent, X509PopConversation, X509PopServer};
use crate::node::{
    AgentHalf, AttestedAgent, Challenge, Claim, Conversation, NoChallenge, Payload, ServerHalf,
};

/// The agent's half of any built-in attestor.
#[derive(Debug)]
pub enum BuiltinAgent {
    /// `join_token`
    JoinToken(JoinTokenAgent),
    /// `aws_iid`
    AwsIid(AwsIidAgent),
    /// `azure_imds`
    AzureImds(Box<AzureImdsAgent>),
    /// `azure_msi`
    AzureMsi(Box<AzureMsiAgent>),
    /// `gcp_iit`
    GcpIit(GcpIitAgent),
    /// `http_challenge`
    HttpChallenge(HttpChallengeAgent),
    /// `k8s_psat` and `k8s_sat`
    K8s(K8sAgent),
    /// `sshpop`
    SshPop(SshPopAgent),
    /// `tpm_devid`
    TpmDevId(TpmDevIdAgent),
    /// `x509pop`
    X509Pop(X509PopAgent),
}

/// The conversation of a [`BuiltinAgent`].
#[derive(Debug)]
pub enum BuiltinConversation {
    /// `azure_imds`
    AzureImds(Box<AzureImdsConversation>),
    /// `http_challenge`
    HttpChallenge(HttpChallengeConversation),
    /// Attestors without challenges.
    None(NoChallenge),
    /// `sshpop`
    SshPop(SshPopConversation),
    /// `tpm_devid`
    TpmDevId(Box<TpmDevIdConversation>),
    /// `x509pop`
    X509Pop(X509PopConversation),
}

impl AgentHalf for BuiltinAgent {
    type Conversation = BuiltinConversation;

    fn name(&self) -> &str {
        match self {
            Self::JoinToken(agent) => agent.name(),
            Self::AwsIid(agent) => agent.name(),
            Self::AzureImds(agent) => agent.name(),
            Self::AzureMsi(agent) => agent.name(),
            Self::GcpIit(agent) => agent.name(),
            Self::HttpChallenge(agent) => agent.name(),
            Self::K8s(agent) => agent.name(),
            Self::SshPop(agent) => agent.name(),
            Self::TpmDevId(agent) => agent.name(),
            Self::X509Pop(agent) => agent.name(),
        }
    }

    async fn begin(&self) -> Result<(Payload, BuiltinConversation), AttestError> {
        Ok(match self {
            Self::JoinToken(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::None(conversation))
            }
            Self::AwsIid(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::None(conversation))
            }
            Self::AzureImds(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (
                    payload,
                    BuiltinConversation::AzureImds(Box::new(conversation)),
                )
            }
            Self::AzureMsi(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::None(conversation))
            }
            Self::GcpIit(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::None(conversation))
            }
            Self::HttpChallenge(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::HttpChallenge(conversation))
            }
            Self::K8s(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::None(conversation))
            }
            Self::SshPop(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::SshPop(conversation))
            }
            Self::TpmDevId(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (
                    payload,
                    BuiltinConversation::TpmDevId(Box::new(conversation)),
                )
            }
            Self::X509Pop(agent) => {
                let (payload, conversation) = agent.begin().await?;
                (payload, BuiltinConversation::X509Pop(conversation))
            }
        })
    }
}

impl Conversation for BuiltinConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        match self {
            Self::AzureImds(conversation) => conversation.answer(challenge).await,
            Self::HttpChallenge(conversation) => conversation.answer(challenge).await,
            Self::None(conversation) => conversation.answer(challenge).await,
            Self::SshPop(conversation) => conversation.answer(challenge).await,
            Self::TpmDevId(conversation) => conversation.answer(challenge).await,
            Self::X509Pop(conversation) => conversation.answer(challenge).await,
        }
    }
}

/// The server's half of any built-in attestor. `T` holds join tokens, `A` the server's own authorities.
pub enum BuiltinServer<T, A> {
    /// `join_token`
    JoinToken(JoinTokenServer<T>),
    /// `aws_iid`
    AwsIid(Box<AwsIidServer>),
    /// `azure_imds`
    AzureImds(Box<AzureImdsServer>),
    /// `azure_msi`
    AzureMsi(Box<AzureMsiServer>),
    /// `gcp_iit`
    GcpIit(Box<GcpIitServer>),
    /// `http_challenge`
    HttpChallenge(HttpChallengeServer),
    /// `k8s_psat`
    K8sPsat(PsatServer),
    /// `k8s_sat`
    K8sSat(SatServer),
    /// `sshpop`
    SshPop(Box<SshPopServer>),
    /// `tpm_devid`
    TpmDevId(Box<TpmDevIdServer>),
    /// `x509pop`
    X509Pop(X509PopServer<A>),
}

impl<T: JoinTokens, A: Authorities> ServerHalf for BuiltinServer<T, A> {
    fn name(&self) -> &str {
        match self {
            Self::JoinToken(server) => server.name(),
            Self::AwsIid(server) => server.name(),
            Self::AzureImds(server) => server.name(),
            Self::AzureMsi(server) => server.name(),
            Self::GcpIit(server) => server.name(),
            Self::HttpChallenge(server) => server.name(),
            Self::K8sPsat(server) => server.name(),
            Self::K8sSat(server) => server.name(),
            Self::SshPop(server) => server.name(),
            Self::TpmDevId(server) => server.name(),
            Self::X509Pop(server) => server.name(),
        }
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        match self {
            Self::JoinToken(server) => server.attest(claim, agent).await,
            Self::AwsIid(server) => server.attest(claim, agent).await,
            Self::AzureImds(server) => server.attest(claim, agent).await,
            Self::AzureMsi(server) => server.attest(claim, agent).await,
            Self::GcpIit(server) => server.attest(claim, agent).await,
            Self::HttpChallenge(server) => server.attest(claim, agent).await,
            Self::K8sPsat(server) => server.attest(claim, agent).await,
            Self::K8sSat(server) => server.attest(claim, agent).await,
            Self::SshPop(server) => server.attest(claim, agent).await,
            Self::TpmDevId(server) => server.attest(claim, agent).await,
            Self::X509Pop(server) => server.attest(claim, agent).await,
        }
    }
}
