//! `k8s`: the pod and the container that a process runs in, as the kubelet of this node knows them.
//!
//! The container is found by the process's control groups, and the kubelet is asked for its pods (`/pods`), over its
//! read-only port or the secure one. A container that has just started is not among them yet: the kubelet is asked
//! again every `poll_retry_interval`, once for all who wait.
//!
//! Brokers may name pods and other objects instead (`KubernetesObjectReference`): those are looked up with the kubelet,
//! or in the Kubernetes API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::node::k8s::Api;
use crate::peer::PeerInfo;
use crate::workload::container::{Found, Locator, add, legacy};
use crate::workload::sigstore::{self, Sigstore, SigstoreConfig};
use crate::workload::{Named, OBJECT_REFERENCE, ProcRoot, Reference, WorkloadAttestor, cgroup};
use crate::{AttestError, Builtin, Selector};

mod broker;
mod kubelet;
mod lists;
mod objects;
mod pods;

use broker::Told;
pub use broker::{AccessPolicy, BrokerConfig, PodScope};
use kubelet::Kubelet;
use lists::Lists;
use objects::Objects;
use pods::{Container, Pod};

/// How often the kubelet is asked.
const POLLS: u32 = 60;
const INTERVAL: Duration = Duration::from_millis(500);

/// How old tokens and certificates may be.
const RELOAD: Duration = Duration::from_mins(1);

/// The attestor's settings, under the names of SPIRE's configuration files. What is empty, 0 or `None` has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct K8sConfig {
    /// The kubelet's port without TLS, at 127.0.0.1.
    pub kubelet_read_only_port: i64,
    /// The kubelet's port with TLS: 10250, unless there is one without.
    pub kubelet_secure_port: i64,
    /// How often the kubelet is asked for a container that it does not have yet: 60.
    pub max_poll_attempts: i64,
    /// The time between: 0.5 s.
    pub poll_retry_interval: Duration,
    /// PEM of the authorities of the kubelet's certificate: those that every pod has.
    pub kubelet_ca_path: PathBuf,
    /// Whoever answers is taken for the kubelet.
    pub skip_kubelet_verification: bool,
    /// The token that is shown to the kubelet: that of the pod's service account.
    pub token_path: PathBuf,
    /// PEM of a certificate that is shown instead.
    pub certificate_path: PathBuf,
    /// PEM of its key.
    pub private_key_path: PathBuf,
    /// Nothing is shown.
    pub use_anonymous_authentication: bool,
    /// The node, which the kubelet's certificate has to name; empty for 127.0.0.1, which none does.
    pub node_name: String,
    /// How often files are read again: 1 min.
    pub reload_interval: Duration,
    /// Only what is of the pod is told, also of a container that the kubelet does not have yet.
    pub disable_container_selectors: bool,
    /// `Some(false)`: IDs are looked for as older versions did.
    pub use_new_container_locator: Option<bool>,
    /// Logs the control groups of each process, at debug.
    pub verbose_container_locator_logs: bool,
    /// Also tells the labels of the pod's namespace, which the Kubernetes API is asked for.
    pub enable_namespace_labels: bool,
    /// How to reach that API; empty for the pod's own way.
    pub kubeconfig: PathBuf,
    /// The kubelet is not asked: no process is told anything of, and brokers need [`PodScope::Cluster`].
    pub disable_kubelet_client: bool,
    /// Who may name workloads; none may.
    pub brokers: Option<BrokerConfig>,
    /// Which signatures the workload's image has to have; none.
    pub sigstore: Option<SigstoreConfig>,
}

/// The attestor. Cheap to clone; clones share what the kubelet said.
#[derive(Clone)]
pub struct K8s(Arc<Inner>);

struct Inner {
    locator: Locator,
    old_locator: bool,
    /// Unless there is `disable_kubelet_client`.
    lists: Option<Lists>,
    polls: u32,
    interval: Duration,
    /// `disable_container_selectors`
    pods_alone: bool,
    namespaces: Option<Api>,
    objects: Objects,
    brokers: Option<BrokerConfig>,
    sigstore: Option<Sigstore>,
}

impl K8s {
    /// The attestor that reads processes in `proc`, which has to be procfs of this PID namespace.
    ///
    /// # Errors
    /// Name the setting that cannot be used, or the file that cannot be read.
    pub async fn configure(config: &K8sConfig, proc: ProcRoot) -> Result<Self, AttestError> {
        let or = |set: Duration, default| if set.is_zero() { default } else { set };
        let interval = or(config.poll_retry_interval, INTERVAL);
        let lists = match config.disable_kubelet_client {
            true => None,
            false => {
                let kubelet = Kubelet::new(config)?;
                let lists = Lists::new(kubelet, interval, or(config.reload_interval, RELOAD));
                lists.check().await.map_err(|why| {
                    AttestError::invalid(
                        why,
                        "let kubelet_ca_path, token_path, certificate_path and private_key_path name files that the \
                         agent's user may read",
                    )
                })?;
                Some(lists)
            }
        };
        for (broker, scope) in config.brokers.iter().flat_map(|config| &config.brokers) {
            if lists.is_none() && *scope == PodScope::AgentNode {
                return Err(AttestError::invalid(
                    format!(
                        "experimental.broker.brokers[{broker}].pod_reference_scope must be \"cluster\" when \
                         disable_kubelet_client is true"
                    ),
                    "set pod_reference_scope = \"cluster\": the kubelet alone knows the pods of the node",
                ));
            }
        }
        let polls = u32::try_from(config.max_poll_attempts).unwrap_or(0);
        Ok(Self(Arc::new(Inner {
            locator: Locator {
                proc,
                pods: true,
                verbose: config.verbose_container_locator_logs,
            },
            old_locator: config.use_new_container_locator == Some(false),
            lists,
            polls: if polls == 0 { POLLS } else { polls },
            interval,
            pods_alone: config.disable_container_selectors,
            namespaces: config
                .enable_namespace_labels
                .then(|| Api::new(config.kubeconfig.clone(), "spire-agent")),
            objects: Objects::new(config.kubeconfig.clone()),
            brokers: config.brokers.clone(),
            sigstore: match &config.sigstore {
                Some(config) => Some(Sigstore::configure(config).await?),
                None => None,
            },
        })))
    }
}

impl WorkloadAttestor for K8s {
    fn name(&self) -> &str {
        Builtin::K8s.name()
    }

    /// All of its polls, the answer to the last one, and what registries may take.
    fn deadline(&self) -> Duration {
        let polling = self.0.interval.saturating_mul(self.0.polls);
        let registries = self
            .0
            .sigstore
            .as_ref()
            .map_or(Duration::ZERO, |_| sigstore::TIMEOUT);
        polling
            .saturating_add(kubelet::TIMEOUT)
            .saturating_add(registries)
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let told = self.0.told(peer.pid()).await?;
        Ok(told.map(|told| selectors(told.values)).unwrap_or_default())
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        if let Named::Other(other) = reference.workload
            && other.type_url != OBJECT_REFERENCE
        {
            return Ok(None);
        }
        let values = self.0.referenced(reference).await?;
        Ok(Some(selectors(values)))
    }
}

fn selectors(values: Vec<String>) -> Vec<Selector> {
    let selector = |value| Selector::new(Builtin::K8s.name(), value);
    values.into_iter().map(selector).collect()
}

/// Values of selectors of the signatures of the image `id`.
async fn signed(sigstore: &Sigstore, id: &str) -> Result<Vec<String>, AttestError> {
    sigstore.verify(id).await.map_err(|why| {
        AttestError::internal(
            format!("error verifying sigstore image signature for imageID {id}: {why}"),
            "see who signed the image with `cosign tree` and `cosign verify`; skipped_images lists images that need no \
             signature",
        )
    })
}

/// What is said to whoever would need the kubelet.
fn no_kubelet() -> AttestError {
    AttestError::not_set_up(
        "kubelet client is disabled",
        "take disable_kubelet_client out of the attestor's plugin_data, or the attestor out of the file where no broker \
         needs it",
    )
}

/// What the kubelet says of a container.
struct Listed<'a> {
    pod: &'a Pod,
    /// Unless only the pod is listed yet.
    status: Option<&'a Container>,
    /// Of selectors.
    values: Vec<String>,
}

impl Inner {
    fn locate(&self, pid: i32) -> Result<Found, AttestError> {
        if !self.old_locator {
            return self.locator.locate(pid);
        }
        let mut found = Found::default();
        for path in cgroup::paths(&self.locator.proc, pid)? {
            if let Some(place) = legacy(&path) {
                add(&mut found, place)?;
            }
        }
        Ok(found)
    }

    /// What is told of the process `pid`; nothing of one in no container.
    async fn told(&self, pid: i32) -> Result<Option<Told>, AttestError> {
        let lists = self.lists.as_ref().ok_or_else(no_kubelet)?;
        let found = self.locate(pid)?;
        let Some(container) = &found.container else {
            return Ok(None);
        };
        let told = self.listed(lists, container, found.pod.as_deref());
        told.await.map(Some)
    }

    /// What is told of `container`, in the pod `pod` where its control groups name one.
    async fn listed(
        &self,
        lists: &Lists,
        container: &str,
        pod: Option<&str>,
    ) -> Result<Told, AttestError> {
        let mut seen = 0;
        let mut failed = None;
        for attempt in 1..=self.polls {
            let (number, list) = lists.next(seen).await;
            seen = number;
            failed = match list {
                Ok(pods) => {
                    if let Some(listed) = self.find(&pods, container, pod)? {
                        let Listed {
                            pod,
                            status,
                            mut values,
                        } = listed;
                        values.extend(self.namespace_labels(pod.namespace()).await?);
                        if let (Some(sigstore), Some(status)) = (&self.sigstore, status) {
                            values.extend(signed(sigstore, status.image_id()).await?);
                        }
                        return Ok(Told::of_pod(pod, values));
                    }
                    None
                }
                Err(error) => Some(error),
            };
            tracing::debug!(
                container,
                attempt,
                error = failed.as_deref(),
                "the kubelet does not have a workload's container yet"
            );
        }
        Err(match failed {
            Some(error) => AttestError::unavailable(
                error,
                "see that the kubelet runs, and what it lets the agent do (get nodes/proxy, or nodes/pods)",
            ),
            None => AttestError::unavailable(
                format!(
                    "no selectors found after max poll attempts: the kubelet has no container {container}"
                ),
                "if it is still starting (as in a hook of postStart), set disable_container_selectors = true",
            ),
        })
    }

    /// The pod of `container`, and what is told of both.
    fn find<'a>(
        &self,
        pods: &'a [Pod],
        container: &str,
        uid: Option<&str>,
    ) -> Result<Option<Listed<'a>>, AttestError> {
        let mut found = None;
        for pod in pods
            .iter()
            .filter(|pod| uid.is_none_or(|uid| pod.uid() == uid))
        {
            let status = pod.container(container);
            let values = match status {
                Some(status) if !self.pods_alone => {
                    let mut values = pod.values();
                    values.extend(status.values());
                    values
                }
                Some(_) => pod.values(),
                None if uid.is_some() && self.pods_alone => pod.values(),
                None => continue,
            };
            let listed = Listed {
                pod,
                status,
                values,
            };
            if found.replace(listed).is_some() {
                return Err(AttestError::internal(
                    "two pods found with same container Id",
                    "look at the kubelet's pods: it says that they share a container",
                ));
            }
        }
        Ok(found)
    }

    /// Values of selectors, if they are wanted.
    async fn namespace_labels(&self, namespace: &str) -> Result<Vec<String>, AttestError> {
        let Some(api) = &self.namespaces else {
            return Ok(Vec::new());
        };
        let labels = api.namespace_labels(namespace).await.map_err(|error| {
            AttestError::unavailable(
                format!("unable to get namespace labels for {namespace:?}: {error}"),
                "the agent's service account needs `get` on namespaces for enable_namespace_labels",
            )
        })?;
        let value = |(key, value): (String, String)| format!("ns-label:{key}:{value}");
        Ok(labels.into_iter().map(value).collect())
    }
}
