//! Node attestors: what the file says of them, and which of them judges a claim.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Code as Kind, Explained};
use ah_spire_attest::node::aws_iid::{Amazon, AwsIidServer, AwsIidServerConfig};
use ah_spire_attest::node::azure_imds::{AzureImdsServer, AzureImdsServerConfig};
use ah_spire_attest::node::azure_msi::{AzureMsiServer, AzureMsiServerConfig};
use ah_spire_attest::node::gcp_iit::{GcpIitServer, GcpIitServerConfig, Google};
use ah_spire_attest::node::http_challenge::{HttpChallengeServer, HttpChallengeServerConfig};
use ah_spire_attest::node::join_token::{JoinTokens, TokenUse};
use ah_spire_attest::node::k8s::{PsatClusterConfig, PsatServer, SatClusterConfig, SatServer};
use ah_spire_attest::node::sshpop::{SshPopServer, SshPopServerConfig};
use ah_spire_attest::node::tpm_devid::{TpmDevIdServer, TpmDevIdServerConfig};
use ah_spire_attest::node::x509pop::{Authorities, X509PopServer, X509PopServerConfig};
use ah_spire_attest::node::{AttestedAgent, BuiltinServer, Challenge, Claim, ServerHalf};
use ah_spire_attest::{AttestError, PluginKind};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin_host::node::ServerNode;
use ah_spire_wire::azure::Azure;
use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tonic::{Code, Status};

mod cloud;

pub(super) use self::cloud::known_alone;
use super::data;
use super::external::Running;
use crate::api::{Ask, Attested, Attestors};
use crate::store::{Agents, Bundles, SqlStore, StoreError};

config_block! {
    /// `NodeAttestor "gcp_iit"`
    struct GcpIitData {
        projectid_allow_list: Vec<String> = "projectid_allow_list",
        agent_path_template: String = "agent_path_template",
        use_instance_metadata: bool = "use_instance_metadata",
        allowed_label_keys: Vec<String> = "allowed_label_keys",
        allowed_metadata_keys: Vec<String> = "allowed_metadata_keys",
        max_metadata_value_size: i64 = "max_metadata_value_size",
        service_account_file: String = "service_account_file",
    }
}

config_block! {
    /// `NodeAttestor "http_challenge"`
    struct HttpChallengeData {
        allowed_dns_patterns: Vec<String> = "allowed_dns_patterns",
        required_port: Option<i64> = "required_port",
        allow_non_root_ports: Option<bool> = "allow_non_root_ports",
        tofu: Option<bool> = "tofu",
    }
}

config_block! {
    /// `NodeAttestor "k8s_psat"`
    struct PsatData {
        clusters: BTreeMap<String, PsatCluster> = "clusters",
    }
}

config_block! {
    /// A cluster of `k8s_psat`.
    struct PsatCluster {
        service_account_allow_list: Vec<String> = "service_account_allow_list",
        audience: Option<Vec<String>> = "audience",
        kube_config_file: String = "kube_config_file",
        allowed_node_label_keys: Vec<String> = "allowed_node_label_keys",
        allowed_pod_label_keys: Vec<String> = "allowed_pod_label_keys",
        use_pod_uid_for_agent_id: bool = "use_pod_uid_for_agent_id",
    }
}

config_block! {
    /// `NodeAttestor "k8s_sat"`
    struct SatData {
        clusters: BTreeMap<String, SatCluster> = "clusters",
    }
}

config_block! {
    /// A cluster of `k8s_sat`.
    struct SatCluster {
        service_account_allow_list: Vec<String> = "service_account_allow_list",
        use_token_review_api_validation: bool = "use_token_review_api_validation",
        service_account_key_file: String = "service_account_key_file",
        kube_config_file: String = "kube_config_file",
    }
}

config_block! {
    /// `NodeAttestor "sshpop"`
    struct SshPopData {
        cert_authorities: Vec<String> = "cert_authorities",
        cert_authorities_path: String = "cert_authorities_path",
        canonical_domain: String = "canonical_domain",
        agent_path_template: String = "agent_path_template",
    }
}

config_block! {
    /// `NodeAttestor "tpm_devid"`
    struct TpmDevIdData {
        devid_ca_path: String = "devid_ca_path",
        endorsement_ca_path: String = "endorsement_ca_path",
    }
}

config_block! {
    /// `NodeAttestor "x509pop"`
    struct X509PopData {
        mode: String = "mode",
        spiffe_prefix: Option<String> = "spiffe_prefix",
        svid_prefix: Option<String> = "svid_prefix",
        ca_bundle_path: String = "ca_bundle_path",
        ca_bundle_paths: Vec<String> = "ca_bundle_paths",
        agent_path_template: String = "agent_path_template",
        max_intermediates: Option<i64> = "max_intermediates",
        max_rsa_key_size: Option<i64> = "max_rsa_key_size",
        verify_client_ip: bool = "verify_client_ip",
    }
}

/// A built-in node attestor, with its settings.
#[derive(Clone)]
pub(crate) enum NodeWanted {
    AwsIid(AwsIidServerConfig),
    AzureImds(AzureImdsServerConfig),
    AzureMsi(AzureMsiServerConfig),
    GcpIit(GcpIitServerConfig),
    HttpChallenge(HttpChallengeServerConfig),
    K8sPsat(BTreeMap<String, PsatClusterConfig>),
    K8sSat(BTreeMap<String, SatClusterConfig>),
    SshPop(SshPopServerConfig),
    TpmDevId(TpmDevIdServerConfig),
    X509Pop(X509PopServerConfig),
}

impl NodeWanted {
    /// `None` if there is no such attestor.
    pub(super) fn read(plugin: &PluginConfig) -> Result<Option<Self>, String> {
        Ok(Some(match plugin.name.as_str() {
            "aws_iid" => Self::AwsIid(cloud::aws_iid(plugin)?),
            "azure_imds" => Self::AzureImds(cloud::azure_imds(plugin)?),
            "azure_msi" => Self::AzureMsi(cloud::azure_msi(plugin)?),
            "gcp_iit" => Self::GcpIit(gcp_iit(plugin)?),
            "http_challenge" => Self::HttpChallenge(http_challenge(plugin)?),
            "k8s_psat" => Self::K8sPsat(k8s_psat(plugin)?),
            "k8s_sat" => Self::K8sSat(k8s_sat(plugin)?),
            "sshpop" => Self::SshPop(sshpop(plugin)?),
            "tpm_devid" => Self::TpmDevId(tpm_devid(plugin)?),
            "x509pop" => Self::X509Pop(x509pop(plugin)?),
            _ => return Ok(None),
        }))
    }

    async fn open(self, own: OwnAuthorities) -> Result<BuiltIn, AttestError> {
        let of = own.trust_domain.clone();
        Ok(match self {
            Self::AwsIid(config) => {
                let server = AwsIidServer::configure(config, of, Amazon::of_process())?;
                BuiltIn::AwsIid(Box::new(server))
            }
            Self::AzureImds(config) => {
                let server = AzureImdsServer::configure(config, of, Azure::of_process());
                BuiltIn::AzureImds(Box::new(Box::pin(server).await?))
            }
            Self::AzureMsi(config) => {
                let server = AzureMsiServer::configure(config, of, Azure::of_process());
                BuiltIn::AzureMsi(Box::new(Box::pin(server).await?))
            }
            Self::GcpIit(config) => {
                let server = GcpIitServer::configure(config, of, Google::default())?;
                BuiltIn::GcpIit(Box::new(server))
            }
            Self::HttpChallenge(config) => {
                BuiltIn::HttpChallenge(HttpChallengeServer::configure(config, of)?)
            }
            Self::K8sPsat(clusters) => BuiltIn::K8sPsat(PsatServer::configure(of, clusters)?),
            Self::K8sSat(clusters) => BuiltIn::K8sSat(SatServer::configure(of, clusters).await?),
            Self::SshPop(config) => {
                BuiltIn::SshPop(Box::new(SshPopServer::configure(config, of).await?))
            }
            Self::TpmDevId(config) => {
                BuiltIn::TpmDevId(Box::new(TpmDevIdServer::configure(config, of).await?))
            }
            Self::X509Pop(config) => {
                BuiltIn::X509Pop(X509PopServer::configure(config, of, own).await?)
            }
        })
    }
}

fn gcp_iit(plugin: &PluginConfig) -> Result<GcpIitServerConfig, String> {
    let data = data(plugin, |it: &GcpIitData| &it.unknown)?;
    Ok(GcpIitServerConfig {
        projectid_allow_list: data.projectid_allow_list,
        agent_path_template: data.agent_path_template,
        use_instance_metadata: data.use_instance_metadata,
        allowed_label_keys: data.allowed_label_keys,
        allowed_metadata_keys: data.allowed_metadata_keys,
        max_metadata_value_size: data.max_metadata_value_size,
        service_account_file: data.service_account_file.into(),
    })
}

fn http_challenge(plugin: &PluginConfig) -> Result<HttpChallengeServerConfig, String> {
    let data = data(plugin, |it: &HttpChallengeData| &it.unknown)?;
    Ok(HttpChallengeServerConfig {
        allowed_dns_patterns: data.allowed_dns_patterns,
        required_port: data.required_port,
        allow_non_root_ports: data.allow_non_root_ports,
        tofu: data.tofu,
    })
}

fn k8s_psat(plugin: &PluginConfig) -> Result<BTreeMap<String, PsatClusterConfig>, String> {
    let data = data(plugin, |it: &PsatData| &it.unknown)?;
    let clusters = data.clusters.into_iter().map(|(name, cluster)| {
        known_alone(plugin, &format!("cluster \"{name}\""), &cluster.unknown)?;
        let config = PsatClusterConfig {
            service_account_allow_list: cluster.service_account_allow_list,
            audience: cluster.audience,
            kube_config_file: cluster.kube_config_file.into(),
            allowed_node_label_keys: cluster.allowed_node_label_keys,
            allowed_pod_label_keys: cluster.allowed_pod_label_keys,
            use_pod_uid_for_agent_id: cluster.use_pod_uid_for_agent_id,
        };
        Ok((name, config))
    });
    clusters.collect()
}

fn k8s_sat(plugin: &PluginConfig) -> Result<BTreeMap<String, SatClusterConfig>, String> {
    let data = data(plugin, |it: &SatData| &it.unknown)?;
    let clusters = data.clusters.into_iter().map(|(name, cluster)| {
        known_alone(plugin, &format!("cluster \"{name}\""), &cluster.unknown)?;
        let config = SatClusterConfig {
            service_account_allow_list: cluster.service_account_allow_list,
            use_token_review_api_validation: cluster.use_token_review_api_validation,
            service_account_key_file: cluster.service_account_key_file.into(),
            kube_config_file: cluster.kube_config_file.into(),
        };
        Ok((name, config))
    });
    clusters.collect()
}

fn sshpop(plugin: &PluginConfig) -> Result<SshPopServerConfig, String> {
    let data = data(plugin, |it: &SshPopData| &it.unknown)?;
    Ok(SshPopServerConfig {
        cert_authorities: data.cert_authorities,
        cert_authorities_path: data.cert_authorities_path.into(),
        canonical_domain: data.canonical_domain,
        agent_path_template: data.agent_path_template,
    })
}

fn tpm_devid(plugin: &PluginConfig) -> Result<TpmDevIdServerConfig, String> {
    let data = data(plugin, |it: &TpmDevIdData| &it.unknown)?;
    Ok(TpmDevIdServerConfig {
        devid_ca_path: data.devid_ca_path.into(),
        endorsement_ca_path: data.endorsement_ca_path.into(),
    })
}

fn x509pop(plugin: &PluginConfig) -> Result<X509PopServerConfig, String> {
    let data = data(plugin, |it: &X509PopData| &it.unknown)?;
    Ok(X509PopServerConfig {
        mode: data.mode,
        spiffe_prefix: data.spiffe_prefix.or(data.svid_prefix),
        ca_bundle_path: data.ca_bundle_path.into(),
        ca_bundle_paths: data
            .ca_bundle_paths
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        agent_path_template: data.agent_path_template,
        max_intermediates: data.max_intermediates,
        max_rsa_key_size: data.max_rsa_key_size,
        verify_client_ip: data.verify_client_ip,
    })
}

/// The own X.509 authorities, for attestors that take the server's SVIDs.
#[derive(Clone)]
pub(crate) struct OwnAuthorities {
    pub(crate) store: SqlStore,
    pub(crate) trust_domain: TrustDomain,
}

impl Authorities for OwnAuthorities {
    type Error = StoreError;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let bundle = self.store.bundle(&self.trust_domain).await?;
        let authorities = bundle.into_iter().flat_map(|bundle| bundle.x509);
        Ok(authorities.map(|ca| CertificateDer::from(ca.der)).collect())
    }
}

/// Join tokens are judged by the API itself.
pub(crate) enum NoTokens {}

impl JoinTokens for NoTokens {
    type Error = StoreError;

    async fn consume(&self, _: &str, _: SystemTime) -> Result<TokenUse, StoreError> {
        match *self {}
    }
}

type BuiltIn = BuiltinServer<NoTokens, OwnAuthorities>;

/// The configured node attestors, by their names.
pub(crate) struct NodeAttestors {
    own: OwnAuthorities,
    built_in: HashMap<String, ArcSwap<BuiltIn>>,
    external: HashMap<String, ServerNode>,
}

impl NodeAttestors {
    pub(crate) async fn open(
        wanted: Vec<NodeWanted>,
        own: OwnAuthorities,
        running: &Running,
    ) -> Result<Self, String> {
        let external = running.of(PluginType::NodeAttestor).map(|plugin| {
            let node = ServerNode::new(plugin.clone(), own.trust_domain.clone());
            (plugin.name().to_owned(), node)
        });
        let mut attestors = Self {
            external: external.collect(),
            built_in: HashMap::new(),
            own,
        };
        for wanted in wanted {
            let server = attestors.configured(wanted).await?;
            let name = server.name().to_owned();
            attestors
                .built_in
                .insert(name, ArcSwap::from_pointee(server));
        }
        Ok(attestors)
    }

    /// What `wanted` names judges by its settings from now on.
    pub(super) async fn replace(&self, wanted: NodeWanted) -> Result<(), String> {
        let server = self.configured(wanted).await?;
        if let Some(place) = self.built_in.get(server.name()) {
            place.store(Arc::new(server));
        }
        Ok(())
    }

    async fn configured(&self, wanted: NodeWanted) -> Result<BuiltIn, String> {
        let opened = Box::pin(wanted.open(self.own.clone())).await;
        opened.map_err(|error| error.explained().report())
    }

    /// An agent that cannot attest again is the only one of its ID: whoever shows the same proof later may have stolen
    /// it. Plugins in processes of their own see to that themselves, as with upstream.
    async fn first_use(
        &self,
        kind: &str,
        agent: AttestedAgent,
    ) -> Result<AttestedAgent, AttestError> {
        if agent.can_reattest {
            return Ok(agent);
        }
        let error = match self.own.store.agent(&agent.id).await {
            Ok(None) => return Ok(agent),
            Ok(Some(_)) => AttestError::Refused(
                Explained::new(
                    Kind::PermissionDenied,
                    "attestation data has already been used to attest an agent",
                )
                .hint(format!(
                    "if {} lost its data, let it in again with `spire-server agent evict`",
                    agent.id
                )),
            ),
            Err(error) => AttestError::Unavailable(Explained::new(
                Kind::Unavailable,
                format!("unable to get agent info: {error}"),
            )),
        };
        Err(error.of_plugin(PluginKind::NodeAttestor, kind))
    }
}

#[tonic::async_trait]
impl Attestors for NodeAttestors {
    async fn attest(
        &self,
        name: &str,
        payload: &[u8],
        address: Option<IpAddr>,
        agent: &mut dyn Ask,
    ) -> Option<Result<Attested, Status>> {
        let claim = Claim {
            payload,
            client_ip: address,
            now: SystemTime::now(),
        };
        let mut asked = Asked {
            agent,
            refused: None,
        };
        let judged = match (self.external.get(name), self.built_in.get(name)) {
            (Some(plugin), _) => plugin.attest(claim, &mut asked).await,
            (None, Some(built_in)) => {
                let built_in = built_in.load_full();
                match built_in.attest(claim, &mut asked).await {
                    Ok(agent) => self.first_use(name, agent).await,
                    refused => refused,
                }
            }
            (None, None) => return None,
        };
        Some(match (judged, asked.refused) {
            (Ok(agent), _) => Ok(Attested {
                id: agent.id,
                selectors: agent.selectors,
                can_reattest: agent.can_reattest,
            }),
            (Err(_), Some(status)) => Err(status),
            (Err(error), None) => Err(status(&error)),
        })
    }
}

/// The way back to the agent, with the status of a conversation that broke.
struct Asked<'a> {
    agent: &'a mut dyn Ask,
    refused: Option<Status>,
}

impl Challenge for Asked<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.agent.ask(challenge).await.map_err(|status| {
            let error = Explained::new(Kind::Other, status.message().to_owned());
            self.refused = Some(status);
            AttestError::Unavailable(error)
        })
    }
}

fn status(error: &AttestError) -> Status {
    let code = match error {
        AttestError::Invalid(_) => Code::InvalidArgument,
        AttestError::Refused(_) => Code::PermissionDenied,
        AttestError::Unavailable(_) => Code::Unavailable,
        AttestError::NotFound(_) => Code::NotFound,
        AttestError::NotSetUp(_) => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    tracing::error!(error = %error.explained().report(), "Node attestation failed");
    Status::new(code, error.to_string())
}
