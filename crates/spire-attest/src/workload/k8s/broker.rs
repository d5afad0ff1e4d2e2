//! Workloads that brokers name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ah_spire_wire::broker::{KubernetesObjectReference, KubernetesObjectType};
use prost::Message;
use prost_types::Any;
use spiffe::SpiffeId;

use crate::AttestError;
use crate::workload::k8s::objects::{Key, Kind, Subject, api_group};
use crate::workload::k8s::pods::{Metadata, Owner, Pod};
use crate::workload::k8s::{Inner, no_kubelet};
use crate::workload::{Named, Reference};

/// `experimental.broker`: who may name workloads to the attestor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Whether the cluster is asked what a broker may.
    pub access_policy: AccessPolicy,
    /// And which pods each may name.
    pub brokers: BTreeMap<SpiffeId, PodScope>,
}

/// `access_policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessPolicy {
    /// Nobody is asked.
    Permissive,
    /// The cluster is, by a `SubjectAccessReview` with the verb `impersonate-via-spire`.
    Enforced,
}

/// `pod_reference_scope`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodScope {
    /// Those that this node's kubelet tells of.
    #[default]
    AgentNode,
    /// All of the cluster.
    Cluster,
}

/// What is told of a workload, and of what object it is told.
pub(super) struct Told {
    pub(super) values: Vec<String>,
    of_type: KubernetesObjectType,
    namespace: String,
    name: String,
}

impl Told {
    pub(super) fn of_pod(pod: &Pod, values: Vec<String>) -> Self {
        Self {
            values,
            of_type: KubernetesObjectType {
                plural: "pods".into(),
                group: "core".into(),
            },
            namespace: pod.namespace().into(),
            name: pod.name().into(),
        }
    }
}

impl Inner {
    /// Values of selectors of what `reference` names, if whoever asks may.
    pub(super) async fn referenced(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Vec<String>, AttestError> {
        let broker = reference.broker;
        let config = self.brokers.as_ref().ok_or_else(|| {
            AttestError::refused(
                "broker configuration missing",
                "name the broker in experimental.broker of the attestor's plugin_data",
            )
        })?;
        let scope = config.brokers.get(broker).copied().ok_or_else(|| {
            AttestError::refused(
                format!("broker \"{broker}\" is not configured"),
                "name it in experimental.broker.brokers of the attestor's plugin_data",
            )
        })?;
        let told = match reference.workload {
            Named::Process(peer) => self.told(peer.pid()).await?,
            Named::Other(object) => Some(self.of_object(scope, object).await?),
        };
        let Some(told) = told else {
            return Ok(Vec::new());
        };
        if config.access_policy == AccessPolicy::Enforced {
            let subject = Subject {
                of_type: &told.of_type,
                namespace: &told.namespace,
                name: &told.name,
            };
            self.objects.review(broker, subject).await?;
        }
        Ok(told.values)
    }

    async fn of_object(&self, scope: PodScope, object: &Any) -> Result<Told, AttestError> {
        let reference = KubernetesObjectReference::decode(object.value.as_slice());
        let reference = reference
            .map_err(|error| bad(format!("unable to unmarshal object reference: {error}")))?;
        let of_type = reference
            .r#type
            .ok_or_else(|| bad("object reference is missing type"))?;
        let (namespace, name) = match &reference.key {
            Some(key) => (key.namespace.as_str(), key.name.as_str()),
            None => ("", ""),
        };
        let uid = reference.uid.as_str();
        match () {
            () if of_type.plural.is_empty() => {
                return Err(bad("object reference type is missing plural"));
            }
            () if of_type.group.is_empty() => {
                return Err(bad("object reference type is missing group"));
            }
            () if reference.key.is_none() && uid.is_empty() => {
                return Err(bad("object reference is missing key and UID"));
            }
            () if reference.key.is_some() && name.is_empty() => {
                return Err(bad("object reference key is missing name"));
            }
            () => {}
        }
        let key = Key {
            namespace,
            name,
            uid,
        };
        if of_type.plural == "pods" && of_type.group == "core" {
            return self.pod(scope, key).await;
        }
        let kind = self.objects.kind(&of_type).await?;
        if kind.namespaced && !name.is_empty() && namespace.is_empty() {
            return Err(namespace_missing());
        }
        if !kind.namespaced && !namespace.is_empty() {
            return Err(bad("namespace must be empty for cluster-scoped resource"));
        }
        let found = self.objects.metadata(&of_type, &kind, key).await?;
        if !uid.is_empty() && found.uid != uid {
            return Err(AttestError::not_found(
                format!(
                    "{}.{} {}/{} has UID {}, expected {uid}",
                    of_type.plural, of_type.group, found.namespace, found.name, found.uid
                ),
                ANOTHER,
            ));
        }
        let mut values = values(&of_type, &kind, &found);
        if kind.namespaced && !found.namespace.is_empty() {
            values.extend(self.namespace_labels(&found.namespace).await?);
        }
        Ok(Told {
            values,
            of_type,
            namespace: found.namespace,
            name: found.name,
        })
    }

    async fn pod(&self, scope: PodScope, key: Key<'_>) -> Result<Told, AttestError> {
        if !key.name.is_empty() && key.namespace.is_empty() {
            return Err(namespace_missing());
        }
        let wanted = |pod: &&Pod| match key.name {
            "" => pod.uid() == key.uid,
            name => pod.name() == name && pod.namespace() == key.namespace,
        };
        let here = self.pods_of_node(scope).await?;
        let here = here.as_deref().and_then(|pods| pods.iter().find(wanted));
        let fetched;
        let pod = match (here, scope, key.name) {
            (Some(pod), ..) => pod,
            (None, PodScope::AgentNode, name) => {
                let what = match name {
                    "" => format!("pod with UID {}", key.uid),
                    name => format!("pod {}/{name}", key.namespace),
                };
                return Err(AttestError::not_found(
                    format!("{what} not found on agent node"),
                    "ask the agent of the pod's node, or let the broker's pod_reference_scope be \"cluster\"",
                ));
            }
            (None, PodScope::Cluster, "") => {
                fetched = self.objects.pod_by_uid(key.uid).await?;
                &fetched
            }
            (None, PodScope::Cluster, name) => {
                fetched = self.objects.pod(key.namespace, name).await?;
                &fetched
            }
        };
        if !key.uid.is_empty() && pod.uid() != key.uid {
            return Err(AttestError::not_found(
                format!(
                    "pod {}/{} has UID {}, expected {}",
                    pod.namespace(),
                    pod.name(),
                    pod.uid(),
                    key.uid
                ),
                ANOTHER,
            ));
        }
        let mut values = pod.values();
        values.extend(self.namespace_labels(pod.namespace()).await?);
        Ok(Told::of_pod(pod, values))
    }

    /// As the kubelet lists them; nothing where all of the cluster count and it cannot be asked.
    async fn pods_of_node(&self, scope: PodScope) -> Result<Option<Arc<Vec<Pod>>>, AttestError> {
        let cluster = scope == PodScope::Cluster;
        let Some(lists) = &self.lists else {
            return if cluster { Ok(None) } else { Err(no_kubelet()) };
        };
        match lists.next(0).await.1 {
            Ok(pods) => Ok(Some(pods)),
            Err(error) if cluster => {
                tracing::debug!(error, "the kubelet cannot be asked for a broker's pod");
                Ok(None)
            }
            Err(error) => Err(AttestError::unavailable(
                error,
                "see that the kubelet runs, and what it lets the agent do (get nodes/proxy, or nodes/pods)",
            )),
        }
    }
}

/// Values of selectors of an object that is no pod.
fn values(of_type: &KubernetesObjectType, kind: &Kind, found: &Metadata) -> Vec<String> {
    let KubernetesObjectType { plural, group } = of_type;
    let Metadata {
        uid,
        name,
        namespace,
        labels,
        owner_references,
    } = found;
    let version = &kind.version;
    let api_version = match api_group(group) {
        "" => version.clone(),
        group => format!("{group}/{version}"),
    };
    let mut values = vec![
        format!("uid:{uid}"),
        format!("resource:{plural}.{group}"),
        format!("plural:{plural}"),
        format!("group:{group}"),
        format!("version:{version}"),
        format!("apiVersion:{api_version}"),
        format!("kind:{}", kind.kind),
        format!("name:{name}"),
    ];
    if namespace.is_empty() {
        values.push(format!("key:{name}"));
    } else {
        values.push(format!("namespace:{namespace}"));
        values.push(format!("key:{namespace}/{name}"));
    }
    let labels = labels.iter();
    values.extend(labels.map(|(key, value)| format!("label:{key}:{value}")));
    for owner in owner_references {
        let Owner {
            api_version,
            kind,
            name,
            uid,
            controller,
        } = owner;
        let group = api_version
            .split_once('/')
            .map_or("core", |(group, _)| group);
        let mut of = |what: &str| {
            values.push(format!("{what}-key:{group}/{kind}/{name}"));
            values.push(format!("{what}-uid:{group}/{kind}/{uid}"));
        };
        of("owner");
        if *controller {
            of("controller");
        }
    }
    values
}

const ANOTHER: &str =
    "the object was made anew since: take the UID out of the reference, or name the new one";

fn bad(text: impl fmt::Display) -> AttestError {
    AttestError::invalid(
        text,
        "the broker's reference names an object by type, with its plural and group, and by key or UID",
    )
}

fn namespace_missing() -> AttestError {
    bad("namespace is required when name is set for a namespaced resource")
}
