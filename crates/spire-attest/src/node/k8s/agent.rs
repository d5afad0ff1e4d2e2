use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::node::k8s::AttestationData;
use crate::node::{AgentHalf, NoChallenge, Payload};
use crate::{AttestError, Builtin};

/// Where `k8s_psat` finds the projected token, unless told otherwise.
const PROJECTED: &str = "/var/run/secrets/tokens/spire-agent";

/// Where every pod has the token of its service account.
const PLAIN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct K8sAgentConfig {
    /// The name that the server's `clusters` has for the cluster of this pod. Required.
    pub cluster: String,
    /// The file of the token. Where Kubernetes puts it, if empty.
    pub token_path: PathBuf,
}

/// The agent's half of `k8s_psat` and `k8s_sat`.
#[derive(Clone, Debug)]
pub struct K8sAgent {
    builtin: Builtin,
    cluster: String,
    token_path: PathBuf,
}

impl K8sAgent {
    /// The half of `k8s_psat`.
    pub fn projected(config: K8sAgentConfig) -> Result<Self, AttestError> {
        Self::configure(Builtin::K8sPsat, PROJECTED, config)
    }

    /// The half of `k8s_sat`.
    pub fn plain(config: K8sAgentConfig) -> Result<Self, AttestError> {
        Self::configure(Builtin::K8sSat, PLAIN, config)
    }

    fn configure(
        builtin: Builtin,
        default_path: &str,
        config: K8sAgentConfig,
    ) -> Result<Self, AttestError> {
        if config.cluster.is_empty() {
            return Err(AttestError::invalid(
                "configuration missing cluster",
                "set `cluster` to the name that the server's plugin has for this cluster",
            )
            .of_builtin(builtin));
        }
        let token_path = match config.token_path {
            path if path.as_os_str().is_empty() => PathBuf::from(default_path),
            path => path,
        };
        Ok(Self {
            builtin,
            cluster: config.cluster,
            token_path,
        })
    }
}

impl AgentHalf for K8sAgent {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        self.builtin.name()
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let path = self.token_path.display();
        let unable = |why: String| {
            AttestError::invalid(
                format!("unable to load token from {path}: {why}"),
                "mount the service account's token into the agent's pod, or set `token_path` to where it is",
            )
            .of_builtin(self.builtin)
        };
        let bytes = tokio::fs::read(&self.token_path).await;
        let bytes = Zeroizing::new(bytes.map_err(|error| unable(error.to_string()))?);
        let token = std::str::from_utf8(&bytes).map_err(|_| unable("it is not text".into()))?;
        let token = token.trim();
        if token.is_empty() {
            return Err(unable("it is empty".into()));
        }
        let payload = AttestationData::write(&self.cluster, token);
        Ok((payload, NoChallenge::of(self.builtin)))
    }
}
