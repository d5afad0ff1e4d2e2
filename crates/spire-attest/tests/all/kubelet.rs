//! `k8s`, against kubelets that serve pods over HTTP and TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::k8s::{K8s, K8sConfig};
use ah_spire_attest::workload::{ProcRoot, WorkloadAttestor, attest};
use ah_testkit::ca::{TestCa, TestLeaf};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Response, StatusCode, header};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::cgroups::{FakeProc, Grouped, this_process, unique};
use crate::k8s::cluster::Cluster;
use crate::web::{Site, Web};

const ID: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
const OTHER_ID: &str = "45490e76e0878aaa4d9808f7d2eefba37f093c3efbba9838b6d8ab804d9bd814";
const INIT_ID: &str = "b2a102854b4969b2ce98dc329c86b4fb2b06e4ad2cc8da9d8a7578c9cd2004a2";
pub(crate) const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";
pub(crate) const DIGEST: &str = "registry.example/server@sha256:bf862e5f5eca0a73e7e538224578c5cf867ce2be91b5eaed22afc153c00363eb";

pub(crate) fn cgroup() -> String {
    format!(
        "0::/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope\n",
        POD.replace('-', "_")
    )
}

pub(crate) fn container(name: &str, id: &str) -> Value {
    json!({
        "name": name,
        "state": {"running": {"startedAt": "2026-03-01T10:00:00Z"}},
        "lastState": {},
        "ready": true,
        "restartCount": 0,
        "image": format!("registry.example/{name}:1.2"),
        "imageID": DIGEST,
        "containerID": format!("containerd://{id}"),
        "started": true,
    })
}

/// A pod as a kubelet shows it.
pub(crate) fn pod(uid: &str, containers: Value) -> Value {
    json!({
        "metadata": {
            "name": "server-7d4b9c",
            "generateName": "server-",
            "namespace": "shop",
            "uid": uid,
            "resourceVersion": "4711",
            "creationTimestamp": "2026-03-01T09:59:00Z",
            "labels": {"app": "server", "pod-template-hash": "7d4b9c"},
            "annotations": {"kubernetes.io/config.source": "api"},
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "server-7d4b9",
                "uid": "3b1f6c1e-0000-4000-8000-000000000001",
                "controller": true,
            }],
        },
        "spec": {
            "containers": [{"name": "server", "image": "registry.example/server:1.2"}],
            "serviceAccountName": "shop-server",
            "nodeName": "worker-1",
        },
        "status": {
            "phase": "Running",
            "hostIP": "10.0.0.7",
            "containerStatuses": containers,
            "initContainerStatuses": [container("init", INIT_ID)],
        },
    })
}

pub(crate) fn list(pods: &[Value]) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
}

pub(crate) fn our_pod() -> Value {
    pod(
        POD,
        json!([container("server", ID), container("sidecar", OTHER_ID)]),
    )
}

const OF_POD: [&str; 14] = [
    "sa:shop-server",
    "ns:shop",
    "node-name:worker-1",
    "pod-uid:2c48913c-b29f-11e7-9350-020968147796",
    "pod-name:server-7d4b9c",
    "pod-image-count:2",
    "pod-init-image-count:1",
    "pod-image:registry.example/server:1.2",
    "pod-image:registry.example/sidecar:1.2",
    "pod-init-image:registry.example/init:1.2",
    "pod-label:app:server",
    "pod-label:pod-template-hash:7d4b9c",
    "pod-owner:ReplicaSet:server-7d4b9",
    "pod-owner-uid:ReplicaSet:3b1f6c1e-0000-4000-8000-000000000001",
];

pub(crate) fn of_pod() -> Vec<String> {
    let digests = ["pod-image", "pod-init-image"].map(|key| format!("{key}:{DIGEST}"));
    OF_POD
        .iter()
        .map(ToString::to_string)
        .chain(digests)
        .collect()
}

pub(crate) fn of_container() -> Vec<String> {
    vec![
        "container-name:server".to_owned(),
        "container-image:registry.example/server:1.2".to_owned(),
        format!("container-image:{DIGEST}"),
    ]
}

pub(crate) fn sorted(mut values: Vec<String>) -> Vec<String> {
    values.sort();
    values
}

/// The kubelet's read-only port.
pub(crate) struct Rig {
    pub(crate) kubelet: Web,
    pub(crate) proc: FakeProc,
}

impl Rig {
    async fn new(cgroup: &str) -> Self {
        Self {
            kubelet: Web::start().await,
            proc: FakeProc::with(cgroup),
        }
    }

    /// Which lists `pods`.
    pub(crate) async fn listing(pods: &[Value]) -> Self {
        let rig = Self::new(&cgroup()).await;
        rig.kubelet.answers("/pods", list(pods));
        rig
    }

    pub(crate) fn config(&self) -> K8sConfig {
        K8sConfig {
            kubelet_read_only_port: self.kubelet.address.port().into(),
            poll_retry_interval: Duration::from_millis(5),
            max_poll_attempts: 3,
            ..Default::default()
        }
    }

    async fn values(&self) -> Result<Vec<String>, String> {
        self.values_with(self.config()).await
    }

    async fn values_with(&self, config: K8sConfig) -> Result<Vec<String>, String> {
        values(config, self.proc.root(), &this_process()).await
    }
}

async fn values(config: K8sConfig, proc: ProcRoot, peer: &PeerInfo) -> Result<Vec<String>, String> {
    let told = |error: ah_spire_attest::AttestError| error.explained().report();
    let k8s = K8s::configure(&config, proc).await.map_err(told)?;
    let selectors = k8s.attest(peer).await.map_err(told)?;
    assert!(selectors.iter().all(|selector| selector.kind == "k8s"));
    Ok(sorted(
        selectors
            .into_iter()
            .map(|selector| selector.value)
            .collect(),
    ))
}

#[tokio::test]
async fn a_workload_has_its_pods_and_its_containers_selectors() {
    let elsewhere = pod(
        "00000000-b29f-11e7-9350-020968147796",
        json!([container("other", OTHER_ID)]),
    );
    let expected = sorted([of_pod(), of_container()].concat());
    for cgroup in [
        cgroup(),
        format!(
            "11:cpu,cpuacct:/kubepods/burstable/pod{POD}/{ID}\n1:name=systemd:/kubepods/burstable/pod{POD}/{ID}\n0::/\n"
        ),
        // No pod in the name: all are looked through.
        format!("0::/../crio-{ID}.scope\n"),
    ] {
        let rig = Rig::new(&cgroup).await;
        rig.kubelet
            .answers("/pods", list(&[elsewhere.clone(), our_pod()]));
        assert_eq!(rig.values().await.unwrap(), expected, "{cgroup}");
        let old = K8sConfig {
            use_new_container_locator: Some(false),
            ..rig.config()
        };
        assert_eq!(rig.values_with(old).await.unwrap(), expected, "{cgroup}");
        let asked = rig.kubelet.asked();
        assert_eq!(asked.len(), 2);
        assert!(asked[0].headers.get(header::AUTHORIZATION).is_none());
    }
}

#[tokio::test]
async fn an_init_container_is_a_container_too() {
    let rig = Rig::new(&format!("0::/kubepods/pod{POD}/{INIT_ID}\n")).await;
    rig.kubelet.answers("/pods", list(&[our_pod()]));
    let found = rig.values().await.unwrap();
    assert!(
        found.contains(&"container-name:init".to_owned()),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_process_in_no_container_has_none_and_nobody_is_asked() {
    let rig = Rig::new("0::/user.slice/user-1000.slice/session-3.scope\n").await;
    assert_eq!(rig.values().await, Ok(Vec::new()));
    assert!(rig.kubelet.asked().is_empty());
}

// The kernel's own files, of both versions of control groups.
#[tokio::test]
async fn a_process_in_a_real_control_group_is_found() {
    let rig = Rig::new("").await;
    for kind in ["cgroup", "cgroup2"] {
        let id = format!("{:064x}", unique());
        let path = format!("kubepods-test/pod{POD}/{id}");
        let Some(grouped) = Grouped::in_group(kind, &path) else {
            continue;
        };
        rig.kubelet
            .answers("/pods", list(&[pod(POD, json!([container(kind, &id)]))]));
        let found = values(rig.config(), ProcRoot::own(), &grouped.peer())
            .await
            .unwrap();
        assert!(
            found.contains(&format!("container-name:{kind}")),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn a_container_that_has_just_started_is_waited_for() {
    let rig = Rig::listing(&[our_pod()]).await;
    let mut starting = container("server", "");
    starting["containerID"] = json!("");
    for pods in [list(&[]), list(&[pod(POD, json!([starting]))])] {
        rig.kubelet
            .answers_once(Response::new(pods.to_string().into()));
    }
    let found = rig.values().await.unwrap();
    assert!(
        found.contains(&"container-name:server".to_owned()),
        "{found:?}"
    );
    assert_eq!(rig.kubelet.asked().len(), 3);
}

#[tokio::test]
async fn a_container_that_never_comes_is_given_up() {
    let rig = Rig::listing(&[pod(POD, json!([]))]).await;
    let error = rig.values().await.unwrap_err();
    assert!(
        error.contains("no selectors found after max poll attempts"),
        "{error}"
    );
    assert!(error.contains("disable_container_selectors"), "{error}");
    assert_eq!(rig.kubelet.asked().len(), 3);
}

#[tokio::test]
async fn without_container_selectors_the_pod_is_enough() {
    let rig = Rig::listing(&[our_pod()]).await;
    let config = K8sConfig {
        disable_container_selectors: true,
        ..rig.config()
    };
    assert_eq!(
        rig.values_with(config.clone()).await.unwrap(),
        sorted(of_pod())
    );
    rig.kubelet.answers("/pods", list(&[pod(POD, Value::Null)]));
    let found = rig.values_with(config).await.unwrap();
    assert!(found.contains(&"pod-image-count:0".to_owned()), "{found:?}");
}

#[tokio::test]
async fn all_who_wait_share_one_list() {
    let rig = Rig::listing(&[our_pod()]).await;
    let config = K8sConfig {
        poll_retry_interval: Duration::from_hours(1),
        ..rig.config()
    };
    let k8s = K8s::configure(&config, rig.proc.root()).await.unwrap();
    let peer = this_process();
    let found = join_all((0..50).map(|_| k8s.attest(&peer))).await;
    assert!(found.iter().all(Result::is_ok));
    assert!(k8s.attest(&peer).await.is_ok());
    assert_eq!(rig.kubelet.asked().len(), 1);
}

fn status(status: StatusCode, body: &'static str) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
    *answer.status_mut() = status;
    answer
}

#[tokio::test]
async fn a_kubelet_that_fails_is_asked_again_and_what_it_says_is_told() {
    let rig = Rig::listing(&[our_pod()]).await;
    rig.kubelet
        .answers_once(status(StatusCode::SERVICE_UNAVAILABLE, "starting"));
    rig.kubelet.answers_once(status(StatusCode::OK, "{"));
    assert!(rig.values().await.is_ok());

    rig.kubelet.answers_with(
        "/pods",
        status(StatusCode::FORBIDDEN, "Forbidden (user=spire-agent)"),
    );
    let error = rig.values().await.unwrap_err();
    assert!(
        error.contains("unexpected status code on pods response: 403 Forbidden (user"),
        "{error}"
    );
}

#[tokio::test]
async fn answers_that_are_no_lists_of_pods_are_refused() {
    let rig = Rig::new(&cgroup()).await;
    let twice = list(&[
        our_pod(),
        pod(
            "00000000-b29f-11e7-9350-020968147796",
            json!([container("x", ID)]),
        ),
    ]);
    let config = K8sConfig {
        max_poll_attempts: 1,
        ..rig.config()
    };
    for (answer, why) in [
        ("[]".to_owned(), "unable to parse kubelet response"),
        ("{}".to_owned(), "unable to parse kubelet response"),
        ("[".repeat(100_000), "unable to parse kubelet response"),
        (
            json!({"items": [{"metadata": {"labels": {"a": 7}}}]}).to_string(),
            "unable to parse kubelet response",
        ),
        (" ".repeat(65 << 20), "length limit exceeded"),
        (json!({"items": null}).to_string(), "no selectors found"),
        (
            list(&[json!({"metadata": {"name": "without-uid"}, "spec": null, "status": null})])
                .to_string(),
            "no selectors found",
        ),
    ] {
        rig.kubelet.answers("/pods", answer);
        let error = rig.values_with(config.clone()).await.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
    let rig = Rig::new(&format!("0::/../crio-{ID}.scope\n")).await;
    rig.kubelet.answers("/pods", twice);
    let error = rig.values().await.unwrap_err();
    assert!(
        error.contains("two pods found with same container Id"),
        "{error}"
    );
}

#[tokio::test]
async fn labels_are_whatever_they_are() {
    let mut hostile = our_pod();
    hostile["metadata"]["labels"] = json!({"a:b": "c\nd", "": ""});
    let rig = Rig::listing(&[hostile]).await;
    let found = rig.values().await.unwrap();
    for value in ["pod-label:a:b:c\nd", "pod-label::"] {
        assert!(found.contains(&value.to_owned()), "{value:?}");
    }
}

#[tokio::test]
async fn labels_of_the_namespace_come_from_the_api() {
    let cluster = Cluster::start().await;
    let rig = Rig::listing(&[our_pod()]).await;
    let config = K8sConfig {
        enable_namespace_labels: true,
        kubeconfig: cluster.kubeconfig(),
        ..rig.config()
    };
    let error = rig.values_with(config.clone()).await.unwrap_err();
    assert!(
        error.contains("unable to get namespace labels for \"shop\""),
        "{error}"
    );
    cluster.with(|state| {
        let namespace =
            json!({"metadata": {"name": "shop", "labels": {"team": "a", "tier": "prod"}}});
        state
            .objects
            .insert("/api/v1/namespaces/shop".into(), namespace);
    });
    let found = rig.values_with(config).await.unwrap();
    for value in ["ns-label:team:a", "ns-label:tier:prod", "ns:shop"] {
        assert!(found.contains(&value.to_owned()), "{found:?}");
    }
}

/// The kubelet's secure port.
struct Secure {
    site: Site,
    address: SocketAddr,
    folder: TempDir,
    ca: TestCa,
}

impl Secure {
    /// With a certificate that `name`s it; with `clients`, it wants one of theirs.
    async fn start(name: &str, clients: Option<&TestCa>) -> Self {
        let ca = TestCa::new("kubernetes.example");
        let leaf = ca.leaf().dns(name).issue();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = config
            .with_single_cert(leaf.chain().to_vec(), leaf.key().der().clone_key())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = Site::default();
        site.answers("/pods", list(&[our_pod()]));
        let served = site.clone();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, site) = (acceptor.clone(), served.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        site.serve(stream).await;
                    }
                });
            }
        });
        let secure = Self {
            site,
            address,
            folder: TempDir::new().unwrap(),
            ca,
        };
        secure.file("ca.pem", &secure.ca.pem());
        secure.file("token", "first-token\n");
        secure
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn config(&self) -> K8sConfig {
        K8sConfig {
            kubelet_secure_port: self.address.port().into(),
            kubelet_ca_path: self.folder.path().join("ca.pem"),
            token_path: self.folder.path().join("token"),
            max_poll_attempts: 1,
            poll_retry_interval: Duration::from_millis(1),
            ..Default::default()
        }
    }

    fn with_certificate(&self, leaf: &TestLeaf) -> K8sConfig {
        K8sConfig {
            certificate_path: self.file("client.pem", &leaf.chain_pem()),
            private_key_path: self.file("client.key", &leaf.key_pem()),
            ..self.config()
        }
    }

    async fn values(&self, config: K8sConfig) -> Result<Vec<String>, String> {
        values(config, FakeProc::with(&cgroup()).root(), &this_process()).await
    }

    /// `Authorization` of what was asked.
    fn shown(&self) -> Vec<Option<String>> {
        let text = |value: &header::HeaderValue| value.to_str().unwrap().to_owned();
        let asked = self.site.asked();
        asked
            .iter()
            .map(|asked| asked.headers.get(header::AUTHORIZATION).map(text))
            .collect()
    }
}

#[tokio::test]
async fn the_kubelet_is_shown_the_token_and_verified() {
    let kubelet = Secure::start("localhost", None).await;
    let named = |name: &str| K8sConfig {
        node_name: name.into(),
        ..kubelet.config()
    };
    // Without a name its certificate has to be of the authority alone.
    for config in [named(""), named("localhost")] {
        kubelet.values(config).await.unwrap();
        assert_eq!(kubelet.shown(), [Some("Bearer first-token".to_owned())]);
    }
    for (config, why) in [
        (named("127.0.0.1"), "TLS"),
        (
            K8sConfig {
                kubelet_ca_path: kubelet.file("other.pem", &TestCa::new("other.example").pem()),
                ..kubelet.config()
            },
            "TLS",
        ),
    ] {
        let error = kubelet.values(config.clone()).await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(kubelet.shown().is_empty());
        let unverified = K8sConfig {
            skip_kubelet_verification: true,
            ..config
        };
        kubelet.values(unverified).await.unwrap();
        assert_eq!(kubelet.shown().len(), 1);
    }
}

#[tokio::test]
async fn the_kubelet_is_shown_a_certificate_or_nothing() {
    let clients = TestCa::new("clients.example");
    let kubelet = Secure::start("node-1", Some(&clients)).await;
    kubelet
        .values(kubelet.with_certificate(&clients.leaf().issue()))
        .await
        .unwrap();
    assert_eq!(kubelet.shown(), [None]);
    let stranger = TestCa::new("strangers.example").leaf().issue();
    assert!(
        kubelet
            .values(kubelet.with_certificate(&stranger))
            .await
            .is_err()
    );
    assert!(kubelet.values(kubelet.config()).await.is_err());

    let kubelet = Secure::start("node-1", None).await;
    let anonymous = K8sConfig {
        use_anonymous_authentication: true,
        token_path: "/nowhere".into(),
        ..kubelet.config()
    };
    kubelet.values(anonymous).await.unwrap();
    assert_eq!(kubelet.shown(), [None]);
}

#[tokio::test]
async fn files_are_read_again_when_they_are_old() {
    let kubelet = Secure::start("node-1", None).await;
    for (reload, expected) in [
        (Duration::from_nanos(1), "second"),
        (Duration::from_hours(1), "first"),
    ] {
        kubelet.file("token", "first-token");
        let config = K8sConfig {
            reload_interval: reload,
            ..kubelet.config()
        };
        let proc = FakeProc::with(&cgroup());
        let k8s = K8s::configure(&config, proc.root()).await.unwrap();
        kubelet.file("token", "second-token");
        k8s.attest(&this_process()).await.unwrap();
        assert_eq!(kubelet.shown(), [Some(format!("Bearer {expected}-token"))]);
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let ca = TestCa::new("kubernetes.example");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    let usable = K8sConfig {
        kubelet_ca_path: file.clone(),
        token_path: file.clone(),
        ..Default::default()
    };
    for (config, why) in [
        (
            K8sConfig {
                kubelet_secure_port: 1,
                kubelet_read_only_port: 2,
                ..usable.clone()
            },
            "cannot use both the read-only and secure port",
        ),
        (
            K8sConfig {
                kubelet_read_only_port: 65536,
                ..usable.clone()
            },
            "kubelet_read_only_port: 65536 is no port",
        ),
        (
            K8sConfig {
                certificate_path: file.clone(),
                ..usable.clone()
            },
            "the private key path is required with the certificate path",
        ),
        (
            K8sConfig {
                private_key_path: file.clone(),
                ..usable.clone()
            },
            "the certificate path is required with the private key path",
        ),
        (
            K8sConfig {
                certificate_path: file.clone(),
                private_key_path: file.clone(),
                ..usable.clone()
            },
            "ca.pem",
        ),
        (
            K8sConfig {
                kubelet_ca_path: "/nowhere/ca.pem".into(),
                ..usable.clone()
            },
            "unable to load kubelet CA: /nowhere/ca.pem",
        ),
        (
            K8sConfig {
                token_path: "/nowhere/token".into(),
                ..usable.clone()
            },
            "unable to load token: /nowhere/token",
        ),
    ] {
        let error = K8s::configure(&config, ProcRoot::own()).await;
        let report = error.err().unwrap().explained().report();
        assert!(report.contains(why), "{report}");
        assert!(report.contains("hint:"), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = K8sConfig {
        kubelet_read_only_port: listener.local_addr().unwrap().port().into(),
        max_poll_attempts: 2,
        ..Default::default()
    };
    let proc = FakeProc::with(&cgroup());
    let k8s = K8s::configure(&config, proc.root()).await.unwrap();
    assert_eq!(k8s.deadline(), Duration::from_secs(11));
    let error = attest(&[k8s], &this_process()).await.unwrap_err();
    let report = error.explained().report();
    assert!(
        report.contains("workloadattestor(k8s): no answer within 11s"),
        "{report}"
    );
}
