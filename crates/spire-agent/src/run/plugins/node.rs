//! How this node proves itself: the one node attestor that is configured.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ah_identity_provider::Explained;
use ah_spire_attest::AttestError;
use ah_spire_attest::node::join_token::{JoinTokenAgent, Token};
use ah_spire_attest::node::x509pop::X509PopAgent;
use ah_spire_attest::node::{AgentHalf, BuiltinAgent, BuiltinConversation, Conversation, Payload};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin_host::Plugin;
use ah_spire_plugin_host::node::{AgentNode, Aided};
use zeroize::Zeroizing;

use super::BuiltInNode;

/// The agent's half of a node attestor. Clones are one.
#[derive(Clone)]
pub(in crate::run) enum NodeHalf {
    BuiltIn(BuiltIn),
    External(AgentNode),
}

/// The file of a join token is read again for each attempt: an operator gets an evicted node back with a new token in
/// it.
#[derive(Clone)]
pub(in crate::run) struct BuiltIn {
    name: String,
    agent: Arc<RwLock<Arc<BuiltinAgent>>>,
    token_file: Option<PathBuf>,
}

/// One attestation of a [`NodeHalf`].
pub(in crate::run) enum NodeConversation {
    BuiltIn(BuiltinConversation),
    External(Aided),
}

impl NodeHalf {
    pub(super) async fn open(wanted: BuiltInNode, config: &AgentConfig) -> Result<Self, Explained> {
        let agent = node_agent(wanted, config).await?;
        Ok(Self::BuiltIn(BuiltIn {
            name: agent.name().to_owned(),
            agent: Arc::new(RwLock::new(Arc::new(agent))),
            token_file: config.join_token_file.clone(),
        }))
    }

    pub(super) fn external(plugin: Plugin) -> Self {
        Self::External(AgentNode::new(plugin))
    }

    /// Puts `agent` in the place of what is built in.
    pub(super) fn replace(&self, agent: BuiltinAgent) {
        if let Self::BuiltIn(built_in) = self {
            let mut now = built_in
                .agent
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *now = Arc::new(agent);
        }
    }
}

pub(super) async fn node_agent(
    wanted: BuiltInNode,
    config: &AgentConfig,
) -> Result<BuiltinAgent, Explained> {
    let told = |error: AttestError| error.explained().clone();
    Ok(match wanted {
        BuiltInNode::X509Pop(wanted) => {
            BuiltinAgent::X509Pop(X509PopAgent::configure(wanted).await.map_err(told)?)
        }
        BuiltInNode::JoinToken => {
            let token = config
                .join_token
                .as_ref()
                .map(|token| Token::new(&Zeroizing::new(token.reveal().to_owned())).map_err(told));
            BuiltinAgent::JoinToken(JoinTokenAgent::new(token.transpose()?))
        }
    })
}

impl BuiltIn {
    async fn begin(&self) -> Result<(Payload, BuiltinConversation), AttestError> {
        let agent = {
            let now = self.agent.read().unwrap_or_else(PoisonError::into_inner);
            now.clone()
        };
        let fresh = match (agent.as_ref(), &self.token_file) {
            (BuiltinAgent::JoinToken(_), Some(file)) => token_of(file),
            _ => None,
        };
        match fresh {
            Some(token) => {
                let agent = BuiltinAgent::JoinToken(JoinTokenAgent::new(Some(token)));
                agent.begin().await
            }
            None => agent.begin().await,
        }
    }
}

impl AgentHalf for NodeHalf {
    type Conversation = NodeConversation;

    fn name(&self) -> &str {
        match self {
            Self::BuiltIn(built_in) => &built_in.name,
            Self::External(plugin) => plugin.name(),
        }
    }

    async fn begin(&self) -> Result<(Payload, NodeConversation), AttestError> {
        Ok(match self {
            Self::BuiltIn(built_in) => {
                let (payload, conversation) = built_in.begin().await?;
                (payload, NodeConversation::BuiltIn(conversation))
            }
            Self::External(plugin) => {
                let (payload, conversation) = plugin.begin().await?;
                (payload, NodeConversation::External(conversation))
            }
        })
    }
}

impl Conversation for NodeConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        match self {
            Self::BuiltIn(conversation) => conversation.answer(challenge).await,
            Self::External(conversation) => conversation.answer(challenge).await,
        }
    }
}

/// A file that is gone or empty by now leaves the token that was in it at the start.
fn token_of(path: &Path) -> Option<Token> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).ok()?;
    Token::new(&text).ok()
}
