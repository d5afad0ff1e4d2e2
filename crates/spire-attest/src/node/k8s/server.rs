use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use spiffe::TrustDomain;

use crate::node::k8s::api::Api;
use crate::node::k8s::{AttestationData, agent_id, no_such_cluster, not_allowed, selector};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin};

const PSAT: Builtin = Builtin::K8sPsat;

/// One cluster of the server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PsatClusterConfig {
    /// `<namespace>:<name>` of those that may attest. Required.
    pub service_account_allow_list: Vec<String>,
    /// What the token must be for: `spire-server` if not set; the API server's own audience if empty.
    pub audience: Option<Vec<String>>,
    /// The kubeconfig that leads to the cluster. This process's own cluster, if empty.
    pub kube_config_file: PathBuf,
    /// Labels of nodes that become selectors.
    pub allowed_node_label_keys: Vec<String>,
    /// Labels of pods that become selectors.
    pub allowed_pod_label_keys: Vec<String>,
    /// Whether the agent's SPIFFE ID ends with `pod/<UID of the pod>` and not with the UID of the node.
    pub use_pod_uid_for_agent_id: bool,
}

/// The server's half of `k8s_psat`.
pub struct PsatServer {
    trust_domain: TrustDomain,
    clusters: BTreeMap<String, Cluster>,
}

struct Cluster {
    accounts: BTreeSet<String>,
    audience: Vec<String>,
    api: Api,
    node_labels: BTreeSet<String>,
    pod_labels: BTreeSet<String>,
    pod_in_id: bool,
}

impl PsatServer {
    /// The half that lets pods of `clusters`, by their names, into `trust_domain`.
    pub fn configure(
        trust_domain: TrustDomain,
        clusters: BTreeMap<String, PsatClusterConfig>,
    ) -> Result<Self, AttestError> {
        if clusters.is_empty() {
            tracing::info!("No clusters configured, PSAT attestation is effectively disabled");
        }
        let clusters = clusters.into_iter().map(|(name, config)| {
            let accounts = accounts(PSAT, &name, config.service_account_allow_list)?;
            let audience = config
                .audience
                .unwrap_or_else(|| vec!["spire-server".to_owned()]);
            let cluster = Cluster {
                accounts,
                audience,
                api: Api::new(config.kube_config_file, "spire-server"),
                node_labels: config.allowed_node_label_keys.into_iter().collect(),
                pod_labels: config.allowed_pod_label_keys.into_iter().collect(),
                pod_in_id: config.use_pod_uid_for_agent_id,
            };
            Ok((name, cluster))
        });
        Ok(Self {
            trust_domain,
            clusters: clusters.collect::<Result<_, AttestError>>()?,
        })
    }

    async fn judge(&self, data: &AttestationData) -> Result<AttestedAgent, AttestError> {
        let name = data.cluster.as_str();
        let cluster = self.clusters.get(name);
        let cluster = cluster.ok_or_else(|| no_such_cluster(name))?;
        let broken = |what: &str, error: String| {
            AttestError::internal(
                format!("{what} for cluster {name:?}: {error}"),
                "look at kube_config_file and at what the API server allows: the SPIRE server's account needs \
                 `create tokenreviews` and `get pods, nodes`",
            )
        };
        let status = cluster.api.review(&data.token.0, &cluster.audience).await;
        let status = status
            .map_err(|error| broken("unable to validate token with TokenReview API", error))?;
        if !status.authenticated {
            return Err(AttestError::refused(
                format!(
                    "token not authenticated according to TokenReview API for cluster {name:?}"
                ),
                "give the agent's pod a projected token of this cluster, for the server's audience, that has not \
                 ended",
            ));
        }
        let names = status.names();
        let (namespace, account) = names
            .map_err(|error| broken("failed to parse username from token review status", error))?;
        let full = format!("{namespace}:{account}");
        if !cluster.accounts.contains(&full) {
            return Err(not_allowed(&full, &format!(" for cluster {name:?}")));
        }
        let pod_name = status.pod_name();
        let pod_name = pod_name
            .map_err(|error| broken("failed to get pod name from token review status", error))?;
        let pod_uid = status.pod_uid();
        let pod_uid = pod_uid
            .map_err(|error| broken("failed to get pod UID from token review status", error))?;
        let pod = cluster.api.pod(namespace, pod_name).await;
        let pod = pod.map_err(|error| broken("failed to get pod from k8s API server", error))?;
        if pod.metadata.uid != pod_uid {
            return Err(AttestError::refused(
                format!(
                    "pod UID mismatch for pod {pod_name:?} in cluster {name:?}: token bound to pod UID {pod_uid:?}"
                ),
                "the token is of a pod that is gone: restart the agent's pod",
            ));
        }
        let node = cluster.api.node(&pod.spec.node_name).await;
        let node = node.map_err(|error| broken("failed to get node from k8s API server", error))?;
        let node_uid = node.metadata.uid.as_str();
        if node_uid.is_empty() {
            return Err(broken(
                "node UID is empty",
                "the API server gave none".into(),
            ));
        }

        let mut selectors = Vec::new();
        let mut add = |parts: &[&str]| selectors.push(selector(PSAT, parts));
        add(&["cluster", name]);
        add(&["agent_ns", namespace]);
        add(&["agent_sa", account]);
        add(&["agent_pod_name", pod_name]);
        add(&["agent_pod_uid", pod_uid]);
        add(&["agent_node_ip", &pod.status.host_ip]);
        add(&["agent_node_name", &pod.spec.node_name]);
        add(&["agent_node_uid", node_uid]);
        for (allowed, labels, kind) in [
            (
                &cluster.node_labels,
                &node.metadata.labels,
                "agent_node_label",
            ),
            (&cluster.pod_labels, &pod.metadata.labels, "agent_pod_label"),
        ] {
            for (key, value) in labels.iter().filter(|(key, _)| allowed.contains(*key)) {
                add(&[kind, key, value]);
            }
        }
        let suffix = if cluster.pod_in_id {
            format!("pod/{pod_uid}")
        } else {
            node_uid.to_owned()
        };
        Ok(AttestedAgent {
            id: agent_id(&self.trust_domain, PSAT, name, &suffix)?,
            selectors,
            can_reattest: true,
        })
    }
}

impl ServerHalf for PsatServer {
    fn name(&self) -> &str {
        PSAT.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let data = AttestationData::read(claim.payload);
        let judged = match data {
            Ok(data) => Box::pin(self.judge(&data)).await,
            Err(error) => Err(error),
        };
        judged.map_err(|error| error.of_builtin(PSAT))
    }
}

/// The allow list of the cluster `name`, which may not be empty.
pub(super) fn accounts(
    builtin: Builtin,
    name: &str,
    list: Vec<String>,
) -> Result<BTreeSet<String>, AttestError> {
    if list.is_empty() {
        return Err(AttestError::invalid(
            format!("cluster {name:?} configuration must have at least one service account allowed"),
            "list those of the agents in service_account_allow_list, such as [\"spire:spire-agent\"]",
        )
        .of_builtin(builtin));
    }
    Ok(list.into_iter().collect())
}
