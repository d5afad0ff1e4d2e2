//! `k8s`, asked by brokers: pods and other objects by reference, against a kubelet and an API that serve them.

use std::collections::BTreeMap;

use ah_spire_attest::AttestError;
use ah_spire_attest::workload::k8s::{AccessPolicy, BrokerConfig, K8s, K8sConfig, PodScope};
use ah_spire_attest::workload::{
    Named, OBJECT_REFERENCE, Reference, WorkloadAttestor, attest_reference,
};
use ah_spire_wire::broker::{KubernetesObjectKey, KubernetesObjectReference, KubernetesObjectType};
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};
use spiffe::SpiffeId;

use crate::cgroups::this_process;
use crate::k8s::cluster::Cluster;
use crate::kubelet::{POD, Rig, container, of_container, of_pod, our_pod, pod, sorted};

const BROKER: &str = "spiffe://example.org/broker";
const FAR: &str = "00000000-b29f-11e7-9350-020968147796";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/server";

/// A kubelet and the API of its cluster.
struct Here {
    rig: Rig,
    cluster: Cluster,
}

impl Here {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let metadata = |name: &str, uid: &str| {
            json!({"metadata": {
                "name": name, "namespace": "shop", "uid": uid,
                "labels": {"tier": "front"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u1"},
                    {"apiVersion": "kustomize.example/v1", "kind": "Kustomization", "name": "k", "uid": "u2", "controller": true},
                ],
            }})
        };
        let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "kind": kind, "namespaced": namespaced});
        let mut far = pod(FAR, json!([container("server", "x")]));
        far["metadata"]["name"] = json!("far");
        cluster.with(|state| {
            for (path, object) in [
                (
                    "/apis/apps",
                    json!({"versions": [{"version": "v1"}, {"version": "v1beta1"}], "preferredVersion": {"version": "v1beta1"}}),
                ),
                ("/apis/apps/v1beta1", json!({"resources": []})),
                ("/apis/apps/v1", json!({"resources": [resource("deployments", "Deployment", true)]})),
                ("/api/v1", json!({"resources": [resource("nodes", "Node", false), resource("pods", "Pod", true)]})),
                (DEPLOYMENT, metadata("server", "d-1")),
                (
                    "/apis/apps/v1/deployments",
                    json!({"metadata": {}, "items": [metadata("other", "d-0"), metadata("server", "d-1")]}),
                ),
                ("/api/v1/nodes/worker-1", json!({"metadata": {"name": "worker-1", "uid": "n-1"}})),
                ("/api/v1/pods", json!({"items": [far.clone()]})),
                ("/api/v1/namespaces/shop/pods/far", far.clone()),
            ] {
                state.objects.insert(path.into(), object);
            }
        });
        Self {
            rig: Rig::listing(&[our_pod()]).await,
            cluster,
        }
    }

    fn config(&self, access_policy: AccessPolicy, scope: PodScope) -> K8sConfig {
        let broker = SpiffeId::new(BROKER).unwrap();
        K8sConfig {
            kubeconfig: self.cluster.kubeconfig(),
            brokers: Some(BrokerConfig {
                access_policy,
                brokers: BTreeMap::from([(broker, scope)]),
            }),
            ..self.rig.config()
        }
    }

    async fn k8s(&self, config: &K8sConfig) -> K8s {
        let proc = self.rig.proc.root();
        K8s::configure(config, proc).await.unwrap()
    }

    /// One that asks nobody whether a broker may.
    async fn permissive(&self, scope: PodScope) -> K8s {
        self.k8s(&self.config(AccessPolicy::Permissive, scope))
            .await
    }

    fn set(&self, path: &str, object: Value) {
        self.cluster
            .with(|state| state.objects.insert(path.into(), object));
    }
}

fn object(of_type: Option<(&str, &str)>, key: Option<(&str, &str)>, uid: &str) -> Any {
    let reference = KubernetesObjectReference {
        r#type: of_type.map(|(plural, group)| KubernetesObjectType {
            plural: plural.into(),
            group: group.into(),
        }),
        key: key.map(|(namespace, name)| KubernetesObjectKey {
            namespace: namespace.into(),
            name: name.into(),
        }),
        uid: uid.into(),
    };
    Any {
        type_url: OBJECT_REFERENCE.into(),
        value: reference.encode_to_vec(),
    }
}

fn pod_of(key: Option<(&str, &str)>, uid: &str) -> Any {
    object(Some(("pods", "core")), key, uid)
}

fn deployment(key: Option<(&str, &str)>, uid: &str) -> Any {
    object(Some(("deployments", "apps")), key, uid)
}

/// What `broker` is told.
async fn told(k8s: &K8s, broker: &str, workload: Named<'_>) -> Result<Vec<String>, AttestError> {
    let broker = SpiffeId::new(broker).unwrap();
    let reference = Reference {
        broker: &broker,
        workload,
    };
    let found = k8s
        .attest_reference(&reference)
        .await?
        .expect("a reference that it knows");
    assert!(found.iter().all(|selector| selector.kind == "k8s"));
    Ok(sorted(
        found.into_iter().map(|selector| selector.value).collect(),
    ))
}

async fn ask(k8s: &K8s, reference: &Any) -> Result<Vec<String>, AttestError> {
    told(k8s, BROKER, Named::Other(reference)).await
}

#[tokio::test]
async fn a_pod_has_the_selectors_that_its_processes_have() {
    let here = Here::start().await;
    let near = here.permissive(PodScope::AgentNode).await;
    let name = Some(("shop", "server-7d4b9c"));
    for reference in [pod_of(name, ""), pod_of(None, POD), pod_of(name, POD)] {
        assert_eq!(ask(&near, &reference).await.unwrap(), sorted(of_pod()));
    }
    let both = sorted([of_pod(), of_container()].concat());
    let peer = this_process();
    assert_eq!(
        told(&near, BROKER, Named::Process(&peer)).await.unwrap(),
        both
    );
    // The kubelet knows it all.
    assert!(here.cluster.with(|state| state.asked.is_empty()));

    for reference in [pod_of(Some(("shop", "far")), ""), pod_of(None, FAR)] {
        let error = ask(&near, &reference).await.unwrap_err();
        assert!(matches!(error, AttestError::NotFound(_)), "{error:?}");
        assert!(
            error.to_string().ends_with("not found on agent node"),
            "{error}"
        );
    }
    let wide = here.permissive(PodScope::Cluster).await;
    for reference in [pod_of(Some(("shop", "far")), ""), pod_of(None, FAR)] {
        let found = ask(&wide, &reference).await.unwrap();
        assert!(found.contains(&format!("pod-uid:{FAR}")), "{found:?}");
        assert!(found.contains(&"pod-name:far".to_owned()), "{found:?}");
    }
    for reference in [
        pod_of(Some(("shop", "server-7d4b9c")), "another"),
        pod_of(Some(("shop", "far")), "another"),
        pod_of(Some(("shop", "nowhere")), ""),
        pod_of(None, "nobody"),
    ] {
        let error = ask(&wide, &reference).await.unwrap_err();
        assert!(matches!(error, AttestError::NotFound(_)), "{error:?}");
    }
}

#[tokio::test]
async fn without_a_kubelet_the_cluster_is_enough() {
    let here = Here::start().await;
    let config = K8sConfig {
        disable_kubelet_client: true,
        ..here.config(AccessPolicy::Permissive, PodScope::Cluster)
    };
    let k8s = here.k8s(&config).await;
    assert!(ask(&k8s, &pod_of(Some(("shop", "far")), "")).await.is_ok());
    let peer = this_process();
    let error = told(&k8s, BROKER, Named::Process(&peer)).await.unwrap_err();
    assert!(matches!(error, AttestError::NotSetUp(_)), "{error:?}");
    let error = k8s.attest(&peer).await.unwrap_err();
    assert_eq!(error.to_string(), "kubelet client is disabled");
    assert!(here.rig.kubelet.asked().is_empty());

    let near = K8sConfig {
        disable_kubelet_client: true,
        ..here.config(AccessPolicy::Permissive, PodScope::AgentNode)
    };
    let error = K8s::configure(&near, here.rig.proc.root())
        .await
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("pod_reference_scope must be \"cluster\""),
        "{error}"
    );
    // A kubelet that does not answer is passed over, too.
    let dead = K8sConfig {
        kubelet_read_only_port: 1,
        ..here.config(AccessPolicy::Permissive, PodScope::Cluster)
    };
    let k8s = here.k8s(&dead).await;
    assert!(ask(&k8s, &pod_of(None, FAR)).await.is_ok());
}

#[tokio::test]
async fn other_objects_are_told_by_their_metadata() {
    let here = Here::start().await;
    let k8s = here.permissive(PodScope::AgentNode).await;
    let name = Some(("shop", "server"));
    let expected = [
        "uid:d-1",
        "resource:deployments.apps",
        "plural:deployments",
        "group:apps",
        "version:v1",
        "apiVersion:apps/v1",
        "kind:Deployment",
        "name:server",
        "namespace:shop",
        "key:shop/server",
        "label:tier:front",
        "owner-key:core/ConfigMap/c",
        "owner-uid:core/ConfigMap/u1",
        "owner-key:kustomize.example/Kustomization/k",
        "owner-uid:kustomize.example/Kustomization/u2",
        "controller-key:kustomize.example/Kustomization/k",
        "controller-uid:kustomize.example/Kustomization/u2",
    ];
    let expected = sorted(expected.map(ToOwned::to_owned).to_vec());
    for reference in [
        deployment(name, ""),
        deployment(None, "d-1"),
        deployment(name, "d-1"),
    ] {
        assert_eq!(ask(&k8s, &reference).await.unwrap(), expected);
    }
    let node = object(Some(("nodes", "core")), Some(("", "worker-1")), "");
    let found = ask(&k8s, &node).await.unwrap();
    for value in ["apiVersion:v1", "resource:nodes.core", "key:worker-1"] {
        assert!(found.contains(&value.to_owned()), "{found:?}");
    }
    assert!(!found.iter().any(|value| value.starts_with("namespace:")));

    here.set(
        "/api/v1/namespaces/shop",
        json!({"metadata": {"labels": {"team": "a"}}}),
    );
    let labelled = K8sConfig {
        enable_namespace_labels: true,
        ..here.config(AccessPolicy::Permissive, PodScope::AgentNode)
    };
    let labelled = here.k8s(&labelled).await;
    for reference in [deployment(name, ""), pod_of(None, POD)] {
        let found = ask(&labelled, &reference).await.unwrap();
        assert!(found.contains(&"ns-label:team:a".to_owned()), "{found:?}");
    }
}

#[tokio::test]
async fn a_reference_that_names_nothing_is_refused() {
    let here = Here::start().await;
    let k8s = here.permissive(PodScope::Cluster).await;
    for (reference, why) in [
        (object(None, None, "u"), "object reference is missing type"),
        (object(Some(("", "core")), None, "u"), "missing plural"),
        (object(Some(("pods", "")), None, "u"), "missing group"),
        (pod_of(None, ""), "missing key and UID"),
        (pod_of(Some(("shop", "")), "u"), "key is missing name"),
        (pod_of(Some(("", "far")), ""), "namespace is required"),
        (
            deployment(Some(("", "server")), ""),
            "namespace is required",
        ),
        (
            object(Some(("nodes", "core")), Some(("shop", "worker-1")), ""),
            "namespace must be empty",
        ),
        (
            object(Some(("gadgets", "apps")), None, "u"),
            "unknown Kubernetes resource gadgets.apps",
        ),
        (
            object(Some(("gadgets", "example.org")), None, "u"),
            "unknown Kubernetes resource gadgets.example.org",
        ),
        (
            object(Some(("../secrets", "core")), None, "u"),
            "unknown Kubernetes resource",
        ),
        (
            pod_of(Some(("shop", "../far")), ""),
            "is no name of Kubernetes",
        ),
        (pod_of(Some(("a/b", "far")), ""), "is no name of Kubernetes"),
        (
            Any {
                type_url: OBJECT_REFERENCE.into(),
                value: vec![0xff],
            },
            "unable to unmarshal object reference",
        ),
    ] {
        let error = ask(&k8s, &reference).await.unwrap_err();
        assert!(matches!(error, AttestError::Invalid(_)), "{why}: {error:?}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    for (reference, why) in [
        (
            deployment(Some(("shop", "nowhere")), ""),
            "Deployment shop/nowhere not found",
        ),
        (
            deployment(None, "nobody"),
            "Deployment with UID nobody not found",
        ),
        (
            deployment(Some(("shop", "server")), "another"),
            "deployments.apps shop/server has UID d-1, expected another",
        ),
    ] {
        let error = ask(&k8s, &reference).await.unwrap_err();
        assert!(
            matches!(error, AttestError::NotFound(_)),
            "{why}: {error:?}"
        );
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    // Of another kind: for others to know.
    let broker = SpiffeId::new(BROKER).unwrap();
    let other = Any {
        type_url: "type.example/Other".into(),
        value: Vec::new(),
    };
    let reference = Reference {
        broker: &broker,
        workload: Named::Other(&other),
    };
    assert_eq!(attest_reference(&[k8s], &reference).await, Ok(None));
}

#[tokio::test]
async fn who_is_not_named_is_told_nothing() {
    let here = Here::start().await;
    let k8s = here.permissive(PodScope::Cluster).await;
    let reference = pod_of(None, POD);
    let peer = this_process();
    for workload in [Named::Other(&reference), Named::Process(&peer)] {
        let error = told(&k8s, "spiffe://example.org/other", workload)
            .await
            .unwrap_err();
        assert!(matches!(error, AttestError::Refused(_)), "{error:?}");
        assert_eq!(
            error.to_string(),
            "broker \"spiffe://example.org/other\" is not configured"
        );
    }
    let none = K8sConfig {
        brokers: None,
        ..here.config(AccessPolicy::Permissive, PodScope::Cluster)
    };
    let error = ask(&here.k8s(&none).await, &reference).await.unwrap_err();
    assert_eq!(error.to_string(), "broker configuration missing");
    assert!(here.rig.kubelet.asked().is_empty());
}

#[tokio::test]
async fn the_cluster_says_what_a_broker_may() {
    let here = Here::start().await;
    let enforced = here.config(AccessPolicy::Enforced, PodScope::AgentNode);
    let k8s = here.k8s(&enforced).await;
    let by_name = deployment(Some(("shop", "server")), "");
    let error = ask(&k8s, &by_name).await.unwrap_err();
    assert!(matches!(error, AttestError::Internal(_)), "{error:?}");
    for (status, allowed) in [
        (json!({}), false),
        (json!({"status": {"allowed": false}}), false),
        (json!({"status": {"allowed": true, "denied": true}}), false),
        (json!({"status": {"allowed": true}}), true),
    ] {
        here.set(REVIEWS, status);
        let told = ask(&k8s, &by_name).await;
        assert_eq!(told.is_ok(), allowed);
        if let Err(error) = told {
            assert!(matches!(error, AttestError::Refused(_)), "{error:?}");
            assert!(
                error.to_string().contains("impersonate-via-spire"),
                "{error}"
            );
        }
    }
    here.cluster.with(|state| state.posted.clear());
    ask(&k8s, &pod_of(None, POD)).await.unwrap();
    let peer = this_process();
    told(&k8s, BROKER, Named::Process(&peer)).await.unwrap();
    ask(&k8s, &by_name).await.unwrap();
    let asked = here.cluster.with(|state| std::mem::take(&mut state.posted));
    let spec = |group: &str, resource: &str, name: &str| {
        json!({"user": BROKER, "resourceAttributes": {
            "group": group, "resource": resource, "namespace": "shop", "name": name,
            "verb": "impersonate-via-spire",
        }})
    };
    let of_pod = spec("", "pods", "server-7d4b9c");
    let specs: Vec<_> = asked.iter().map(|review| review["spec"].clone()).collect();
    assert_eq!(
        specs,
        [
            of_pod.clone(),
            of_pod,
            spec("apps", "deployments", "server")
        ]
    );
    // A workload that asks for itself needs nobody's leave.
    assert!(k8s.attest(&peer).await.is_ok());
    assert!(here.cluster.with(|state| state.posted.is_empty()));
}
