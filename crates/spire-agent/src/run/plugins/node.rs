//! How this node proves itself: the one node attestor that is configured.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ah_identity_provider::Explained;
use ah_spire_attest::AttestError;
use ah_spire_attest::node::aws_iid::{AwsIidAgent, AwsIidAgentConfig};
use ah_spire_attest::node::azure_imds::{AzureImdsAgent, AzureImdsAgentConfig};
use ah_spire_attest::node::azure_msi::{AzureMsiAgent, AzureMsiAgentConfig};
use ah_spire_attest::node::gcp_iit::{GcpIitAgent, GcpIitAgentConfig};
use ah_spire_attest::node::http_challenge::{HttpChallengeAgent, HttpChallengeAgentConfig};
use ah_spire_attest::node::join_token::{JoinTokenAgent, Token};
use ah_spire_attest::node::k8s::{K8sAgent, K8sAgentConfig};
use ah_spire_attest::node::sshpop::{SshPopAgent, SshPopAgentConfig};
use ah_spire_attest::node::tpm_devid::{TpmDevIdAgent, TpmDevIdAgentConfig};
use ah_spire_attest::node::x509pop::{X509PopAgent, X509PopAgentConfig};
use ah_spire_attest::node::{AgentHalf, BuiltinAgent, BuiltinConversation, Conversation, Payload};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_plugin_host::Plugin;
use ah_spire_plugin_host::node::{AgentNode, Aided};
use ah_spire_wire::aws::Environment;
use ah_spire_wire::azure::Azure;
use zeroize::Zeroizing;

use super::data;

config_block! {
    /// `NodeAttestor "aws_iid"`
    struct AwsIidData {
        ec2_metadata_endpoint: String = "ec2_metadata_endpoint",
    }
}

config_block! {
    /// `NodeAttestor "azure_imds"`
    struct AzureImdsData {
        tenant_domain: String = "tenant_domain",
    }
}

config_block! {
    /// `NodeAttestor "azure_msi"`
    struct AzureMsiData {
        resource_id: String = "resource_id",
    }
}

config_block! {
    /// `NodeAttestor "gcp_iit"`
    struct GcpIitData {
        identity_token_host: String = "identity_token_host",
        service_account: String = "service_account",
    }
}

config_block! {
    /// `NodeAttestor "http_challenge"`
    struct HttpChallengeData {
        hostname: String = "hostname",
        agentname: String = "agentname",
        port: i64 = "port",
        advertised_port: i64 = "advertised_port",
    }
}

config_block! {
    /// `NodeAttestor "k8s_psat"` and `"k8s_sat"`
    struct K8sData {
        cluster: String = "cluster",
        token_path: String = "token_path",
    }
}

config_block! {
    /// `NodeAttestor "sshpop"`
    struct SshPopData {
        host_key_path: String = "host_key_path",
        host_cert_path: String = "host_cert_path",
    }
}

config_block! {
    /// `NodeAttestor "tpm_devid"`
    struct TpmDevIdData {
        tpm_device_path: String = "tpm_device_path",
        devid_cert_path: String = "devid_cert_path",
        devid_priv_path: String = "devid_priv_path",
        devid_pub_path: String = "devid_pub_path",
        devid_password: Zeroizing<String> = "devid_password",
        owner_hierarchy_password: Zeroizing<String> = "owner_hierarchy_password",
        endorsement_hierarchy_password: Zeroizing<String> = "endorsement_hierarchy_password",
    }
}

config_block! {
    /// `NodeAttestor "x509pop"`
    struct X509PopData {
        private_key_path: String = "private_key_path",
        certificate_path: String = "certificate_path",
        intermediates_path: String = "intermediates_path",
        spiffe_endpoint_socket: String = "spiffe_endpoint_socket",
    }
}

/// A built-in node attestor, with its settings.
pub(super) enum BuiltInNode {
    AwsIid(AwsIidAgentConfig),
    AzureImds(AzureImdsAgentConfig),
    AzureMsi(AzureMsiAgentConfig),
    GcpIit(GcpIitAgentConfig),
    HttpChallenge(HttpChallengeAgentConfig),
    JoinToken,
    K8sPsat(K8sAgentConfig),
    K8sSat(K8sAgentConfig),
    SshPop(SshPopAgentConfig),
    TpmDevId(Box<TpmDevIdAgentConfig>),
    X509Pop(X509PopAgentConfig),
}

impl BuiltInNode {
    /// `None` if there is no such attestor.
    pub(super) fn read(plugin: &PluginConfig) -> Result<Option<Self>, Explained> {
        Ok(Some(match plugin.name.as_str() {
            "aws_iid" => {
                let data: AwsIidData = data(plugin)?;
                Self::AwsIid(AwsIidAgentConfig {
                    ec2_metadata_endpoint: data.ec2_metadata_endpoint,
                })
            }
            "azure_imds" => {
                let data: AzureImdsData = data(plugin)?;
                Self::AzureImds(AzureImdsAgentConfig {
                    tenant_domain: data.tenant_domain,
                })
            }
            "azure_msi" => {
                let data: AzureMsiData = data(plugin)?;
                Self::AzureMsi(AzureMsiAgentConfig {
                    resource_id: data.resource_id,
                })
            }
            "gcp_iit" => {
                let data: GcpIitData = data(plugin)?;
                Self::GcpIit(GcpIitAgentConfig {
                    identity_token_host: data.identity_token_host,
                    service_account: data.service_account,
                })
            }
            "http_challenge" => {
                let data: HttpChallengeData = data(plugin)?;
                Self::HttpChallenge(HttpChallengeAgentConfig {
                    hostname: data.hostname,
                    agentname: data.agentname,
                    port: data.port,
                    advertised_port: data.advertised_port,
                })
            }
            "join_token" => Self::JoinToken,
            "k8s_psat" => Self::K8sPsat(k8s(plugin)?),
            "k8s_sat" => Self::K8sSat(k8s(plugin)?),
            "sshpop" => {
                let data: SshPopData = data(plugin)?;
                Self::SshPop(SshPopAgentConfig {
                    host_key_path: data.host_key_path.into(),
                    host_cert_path: data.host_cert_path.into(),
                })
            }
            "tpm_devid" => Self::TpmDevId(Box::new(tpm_devid(plugin)?)),
            "x509pop" => Self::X509Pop(x509pop(plugin)?),
            _ => return Ok(None),
        }))
    }
}

fn k8s(plugin: &PluginConfig) -> Result<K8sAgentConfig, Explained> {
    let data: K8sData = data(plugin)?;
    Ok(K8sAgentConfig {
        cluster: data.cluster,
        token_path: data.token_path.into(),
    })
}

fn tpm_devid(plugin: &PluginConfig) -> Result<TpmDevIdAgentConfig, Explained> {
    let data: TpmDevIdData = data(plugin)?;
    Ok(TpmDevIdAgentConfig {
        tpm_device_path: data.tpm_device_path.into(),
        devid_cert_path: data.devid_cert_path.into(),
        devid_priv_path: data.devid_priv_path.into(),
        devid_pub_path: data.devid_pub_path.into(),
        devid_password: data.devid_password,
        owner_hierarchy_password: data.owner_hierarchy_password,
        endorsement_hierarchy_password: data.endorsement_hierarchy_password,
    })
}

fn x509pop(plugin: &PluginConfig) -> Result<X509PopAgentConfig, Explained> {
    let data: X509PopData = data(plugin)?;
    Ok(X509PopAgentConfig {
        private_key_path: data.private_key_path.into(),
        certificate_path: data.certificate_path.into(),
        intermediates_path: data.intermediates_path.into(),
        spiffe_endpoint_socket: data.spiffe_endpoint_socket,
    })
}

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
        BuiltInNode::AwsIid(wanted) => {
            let agent = AwsIidAgent::configure(&wanted, &Environment::of_process());
            BuiltinAgent::AwsIid(agent.map_err(told)?)
        }
        BuiltInNode::AzureImds(wanted) => {
            let agent = AzureImdsAgent::configure(wanted, Azure::of_process());
            BuiltinAgent::AzureImds(Box::new(agent.map_err(told)?))
        }
        BuiltInNode::AzureMsi(wanted) => {
            let agent = AzureMsiAgent::configure(wanted, Azure::of_process());
            BuiltinAgent::AzureMsi(Box::new(agent))
        }
        BuiltInNode::GcpIit(wanted) => {
            BuiltinAgent::GcpIit(GcpIitAgent::configure(&wanted).map_err(told)?)
        }
        BuiltInNode::HttpChallenge(wanted) => {
            BuiltinAgent::HttpChallenge(HttpChallengeAgent::configure(wanted).map_err(told)?)
        }
        BuiltInNode::K8sPsat(wanted) => {
            BuiltinAgent::K8s(K8sAgent::projected(wanted).map_err(told)?)
        }
        BuiltInNode::K8sSat(wanted) => BuiltinAgent::K8s(K8sAgent::plain(wanted).map_err(told)?),
        BuiltInNode::SshPop(wanted) => {
            BuiltinAgent::SshPop(SshPopAgent::configure(wanted).await.map_err(told)?)
        }
        BuiltInNode::TpmDevId(wanted) => {
            BuiltinAgent::TpmDevId(TpmDevIdAgent::configure(*wanted).await.map_err(told)?)
        }
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
