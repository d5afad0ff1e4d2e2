//! The Broker API (inventory sections 1.5, 4): brokers, what they may name and where, and what they are told.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{CertificateFacts, PrivateKey, SystemClock, TrustBundles};
use ah_spire_wire::Channel;
use ah_spire_wire::broker::api_client::ApiClient;
use ah_spire_wire::broker::{
    FetchJwtsvidRequest, KubernetesObjectKey, KubernetesObjectReference, KubernetesObjectType,
    SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest, SubscribeToX509svidRequest,
    SubscribeToX509svidResponse, WorkloadPidReference, WorkloadReference,
};
use ah_testkit::process::{Process, field};
use ah_testkit::web::Web;
use ah_tls::{OwnKey, ServerTrust, SpiffeClient, Trust};
use prost::Message;
use prost_types::Any;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Request, Status, Streaming};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::fake::{Ca, DOMAIN, Fake};
use crate::program::{Conf, get, serve_us};
use crate::rig::{Node, soon};

const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// What the configuration allows: `far` anything everywhere, `near` processes over the unix socket.
const BROKERS: &str = r#"brokers = [
    { id = "spiffe://example.org/near" allowed_reference_types = [
        { type_url = "type.googleapis.com/spiffe.broker.WorkloadPIDReference" }
    ] },
    { id = "spiffe://other.org/far" allowed_reference_types = [ { type_url = "*" allow_over_tcp = true } ] }
]"#;

/// An agent with a workload of our user, and a process of it.
struct Rig {
    fake: Fake,
    socket: PathBuf,
    address: String,
    /// Of `other.org`, which an entry federates with.
    other: Arc<Ca>,
    workload: Child,
    agent: Process,
    /// Where metrics are.
    metrics: String,
    _node: Node,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.workload.kill();
        let _ = self.workload.wait();
    }
}

/// A client of the agent of `fake`, who shows an SVID of `id` that `ca` signed, or none.
pub(crate) fn client_of_agent(fake: &Fake, id: Option<(&str, &Ca)>) -> SpiffeClient {
    let key = KeyPair::generate().unwrap();
    let own = id.map(|(id, ca)| {
        let leaf = ca.leaf(id, &key, Duration::from_secs(600));
        let key = OwnKey::Here(PrivateKey::pkcs8(key.serialize_der()));
        (vec![leaf], key)
    });
    let mut bundles = TrustBundles::default();
    let root: CertificateDer<'static> = fake.state().ca.der.clone();
    let ours = TrustDomain::new(DOMAIN).unwrap();
    bundles.domains.insert(ours, vec![root]);
    let agent = SpiffeId::new(&fake.state().agent_id).unwrap();
    let client = SpiffeClient::new(
        agent,
        ServerTrust::Roots(Arc::new(Trust::new(&bundles))),
        own.as_ref().map(|(chain, key)| (chain.clone(), key)),
        false,
        Arc::new(SystemClock),
    );
    client.unwrap()
}

impl Rig {
    async fn start() -> Self {
        Self::beside("").await
    }

    /// With `attestors` beside that of `unix`, the last block still open.
    async fn beside(attestors: &str) -> Self {
        let fake = Fake::start().await;
        let other = Ca::new();
        fake.federate("other.org", &other);
        serve_us(&fake);
        fake.set_entry("a", "/a", |entry| {
            entry.hint = "hint".into();
            entry.federates_with = vec!["other.org".into()];
        });
        let node = Node::new(&fake);
        let mut conf = Conf::new(&node);
        let socket = node.directory.path().join("private/broker.sock");
        conf.experimental = format!(
            r#"broker {{ socket_path = {socket:?} bind_address = "127.0.0.1:0" {BROKERS} }}"#
        );
        if !attestors.is_empty() {
            conf.unix = format!("plugin_data {{}} }} {attestors}");
        }
        conf.more = r#"telemetry {
            EnableHostnameLabel = false
            Prometheus { host = "localhost" port = 0 }
        }"#
        .into();
        let agent = Process::start(&mut conf.command(&node, &fake, "run"));
        let metrics = agent.wait_for("Serving metrics");
        let line = agent.wait_for("serving the Broker API over TCP");
        let address = field(&line, "address=").trim_matches('"').to_owned();
        fake.called_in_all("SyncAuthorizedEntries", 2).await;
        Self {
            fake,
            socket,
            address,
            other,
            workload: Command::new("sleep").arg("1000").spawn().unwrap(),
            agent,
            metrics,
            _node: node,
        }
    }

    /// Whoever shows an SVID of `id` that `ca` signed, or none.
    async fn connect<T>(&self, transport: T, id: Option<(&str, &Ca)>) -> Result<Channel, ()>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let client = client_of_agent(&self.fake, id);
        let (stream, _) = soon(client.handshake(transport)).await.map_err(drop)?;
        Channel::over(stream).await.map_err(drop)
    }

    /// The broker `near`, at the unix socket.
    async fn near(&self) -> ApiClient<Channel> {
        let transport = UnixStream::connect(&self.socket).await.unwrap();
        let ca = self.fake.state().ca.clone();
        let id = ("spiffe://example.org/near", &*ca);
        client(self.connect(transport, Some(id)).await.unwrap())
    }

    async fn over_tcp(&self, id: &str, ca: &Ca) -> ApiClient<Channel> {
        let transport = TcpStream::connect(&self.address).await.unwrap();
        client(self.connect(transport, Some((id, ca))).await.unwrap())
    }

    fn workload(&self) -> Option<WorkloadReference> {
        process(i32::try_from(self.workload.id()).unwrap())
    }

    async fn x509_svids(
        &self,
        client: &mut ApiClient<Channel>,
        reference: Option<WorkloadReference>,
    ) -> Result<Streaming<SubscribeToX509svidResponse>, Status> {
        let request = secured(SubscribeToX509svidRequest { reference });
        let answer = soon(client.subscribe_to_x509svid(request)).await?;
        Ok(answer.into_inner())
    }
}

fn client(channel: Channel) -> ApiClient<Channel> {
    ApiClient::with_origin(channel, Channel::origin())
}

/// With the header that every call has.
fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("broker.spiffe.io", "true".parse().unwrap());
    request
}

fn reference(type_url: &str, value: Vec<u8>) -> Option<WorkloadReference> {
    Some(WorkloadReference {
        reference: Some(Any {
            type_url: type_url.into(),
            value,
        }),
    })
}

fn process(pid: i32) -> Option<WorkloadReference> {
    reference(PID, WorkloadPidReference { pid }.encode_to_vec())
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = soon(stream.message()).await.unwrap();
    message.expect("the stream ended")
}

fn ids(response: &SubscribeToX509svidResponse) -> Vec<&str> {
    let svids = response.svids.iter();
    svids.map(|svid| svid.spiffe_id.as_str()).collect()
}

fn refused<T>(answer: Result<T, Status>, code: Code, text: &str) {
    let error = answer.err().expect("it was answered");
    assert_eq!(error.code(), code, "{error}");
    assert!(error.message().starts_with(text), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_given_what_the_workload_would_be_and_told_of_changes() {
    let rig = Rig::start().await;
    let mut near = rig.near().await;
    let mut stream = rig.x509_svids(&mut near, rig.workload()).await.unwrap();
    let first = next(&mut stream).await;
    assert_eq!(ids(&first), ["spiffe://example.org/a"]);
    let [svid] = &first.svids[..] else {
        panic!("not one");
    };
    assert_eq!(svid.hint, "hint");
    let leaf = CertificateFacts::from_der(&svid.x509_svid).unwrap();
    assert_eq!(leaf.uris, ["spiffe://example.org/a"]);
    assert!(!svid.x509_svid_key.is_empty());
    assert_eq!(svid.bundle, rig.fake.state().ca.der.to_vec());
    let federated = &first.federated_bundles["spiffe://other.org"];
    assert_eq!(*federated, rig.other.der.to_vec());

    // What is an administrator's is nobody's to lend.
    let ours = |entry: &mut ah_spire_wire::types::Entry| {
        entry.selectors[0].value = format!("uid:{}", nix::unistd::getuid());
    };
    rig.fake.set_entry("c", "/c", |entry| {
        ours(entry);
        entry.admin = true;
    });
    rig.fake.set_entry("d", "/d", |entry| {
        ours(entry);
        entry.downstream = true;
    });
    rig.fake.set_entry("e", "/e", ours);
    let mut told = next(&mut stream).await;
    while ids(&told) != ["spiffe://example.org/a", "spiffe://example.org/e"] {
        assert_eq!(ids(&told), ["spiffe://example.org/a"]);
        told = next(&mut stream).await;
    }
    let metrics = get(&rig.metrics, "/metrics").1;
    let waited =
        "spire_agent_delegated_identity_api_subscribe_x509_svids_first_update_elapsed_time_count 1";
    assert!(metrics.contains(waited), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_told_bundles_and_fetches_jwt_svids() {
    let rig = Rig::start().await;
    let mut far = rig.over_tcp("spiffe://other.org/far", &rig.other).await;
    let reference = rig.workload();
    let x509 = far.subscribe_to_x509_bundles(secured(SubscribeToX509BundlesRequest {
        reference: reference.clone(),
    }));
    let mut x509 = soon(x509).await.unwrap().into_inner();
    let bundles = next(&mut x509).await.bundles;
    let own = rig.fake.state().ca.der.to_vec();
    assert_eq!(bundles["spiffe://example.org"], own);
    assert_eq!(bundles["spiffe://other.org"], rig.other.der.to_vec());
    let jwt = far.subscribe_to_jwt_bundles(secured(SubscribeToJwtBundlesRequest {
        reference: reference.clone(),
    }));
    let mut jwt = soon(jwt).await.unwrap().into_inner();
    let bundles = next(&mut jwt).await.bundles;
    let keys: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(0));
    assert_eq!(bundles.len(), 2);
    // What goes is not told any more.
    rig.fake.state().federated.clear();
    while next(&mut x509).await.bundles.len() != 1 {}

    let asked = FetchJwtsvidRequest {
        reference,
        audience: vec!["one".into()],
        spiffe_id: String::new(),
    };
    let answer = soon(far.fetch_jwtsvid(secured(asked.clone())))
        .await
        .unwrap();
    let [svid] = &answer.into_inner().svids[..] else {
        panic!("not one");
    };
    assert_eq!(
        (&*svid.spiffe_id, &*svid.hint),
        ("spiffe://example.org/a", "hint")
    );
    assert!(!svid.svid.is_empty());
    let other = FetchJwtsvidRequest {
        spiffe_id: "spiffe://example.org/b".into(),
        ..asked.clone()
    };
    let answer = soon(far.fetch_jwtsvid(secured(other))).await;
    refused(answer, Code::PermissionDenied, "no identity issued");
    let without = FetchJwtsvidRequest {
        audience: Vec::new(),
        ..asked
    };
    let answer = soon(far.fetch_jwtsvid(secured(without))).await;
    refused(answer, Code::InvalidArgument, "audience must be specified");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_has_to_be_one_that_the_broker_may_use_there() {
    let rig = Rig::start().await;
    let mut near = rig.near().await;
    let ca = rig.fake.state().ca.clone();
    let mut near_by_tcp = rig.over_tcp("spiffe://example.org/near", &ca).await;
    let mut far = rig.over_tcp("spiffe://other.org/far", &rig.other).await;
    let object = reference(OBJECT, KubernetesObjectReference::default().encode_to_vec());
    for nothing in [
        None,
        Some(WorkloadReference::default()),
        reference("", vec![]),
    ] {
        refused(
            rig.x509_svids(&mut near, nothing).await,
            Code::InvalidArgument,
            "workload reference must be provided",
        );
    }
    let text = format!(
        "broker \"spiffe://example.org/near\" is not allowed to use reference type \"{OBJECT}\""
    );
    refused(
        rig.x509_svids(&mut near, object.clone()).await,
        Code::PermissionDenied,
        &text,
    );
    let text = format!(
        "reference type \"{PID}\" is not allowed over TCP for broker \"spiffe://example.org/near\""
    );
    refused(
        rig.x509_svids(&mut near_by_tcp, rig.workload()).await,
        Code::PermissionDenied,
        &text,
    );
    let bundles = near_by_tcp.subscribe_to_jwt_bundles(secured(SubscribeToJwtBundlesRequest {
        reference: rig.workload(),
    }));
    refused(soon(bundles).await, Code::PermissionDenied, &text);
    // Nobody here knows Kubernetes.
    refused(
        rig.x509_svids(&mut far, object).await,
        Code::Unimplemented,
        "no workload attestor handled reference",
    );
    refused(
        rig.x509_svids(&mut far, process(i32::MAX)).await,
        Code::NotFound,
        "process 2147483647 cannot be attested",
    );
    refused(
        rig.x509_svids(&mut far, reference(PID, vec![0xff])).await,
        Code::InvalidArgument,
        "unable to unmarshal PID reference: ",
    );
    let mut stream = rig.x509_svids(&mut far, rig.workload()).await.unwrap();
    assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_named_by_its_object() {
    let kubelet = Web::start().await;
    kubelet.answers(
        "/pods",
        serde_json::json!({"items": [{
            "metadata": {"uid": "u-1", "name": "server", "namespace": "shop"},
            "spec": {"serviceAccountName": "shop-server"},
            "status": {},
        }]}),
    );
    let port = kubelet.address.port();
    let rig = Rig::beside(&format!(
        r#"WorkloadAttestor "k8s" {{ plugin_data {{
            kubelet_read_only_port = "{port}"
            experimental {{ broker {{
                access_policy = "permissive"
                brokers = [ {{ id = "spiffe://other.org/far" pod_reference_scope = "agent_node" }} ]
            }} }}
        }}"#
    ))
    .await;
    rig.fake.set_entry("k", "/in-a-pod", |entry| {
        entry.selectors = ["ns:shop", "sa:shop-server", "pod-name:server"]
            .map(|value| ah_spire_wire::types::Selector {
                r#type: "k8s".into(),
                value: value.into(),
            })
            .into();
    });
    let pod = |uid: &str| {
        let object = KubernetesObjectReference {
            r#type: Some(KubernetesObjectType {
                plural: "pods".into(),
                group: "core".into(),
            }),
            key: Some(KubernetesObjectKey {
                namespace: "shop".into(),
                name: "server".into(),
            }),
            uid: uid.into(),
        };
        reference(OBJECT, object.encode_to_vec())
    };
    let mut far = rig.over_tcp("spiffe://other.org/far", &rig.other).await;
    let mut stream = rig.x509_svids(&mut far, pod("u-1")).await.unwrap();
    // The entry may come after the first answer.
    while ids(&next(&mut stream).await) != ["spiffe://example.org/in-a-pod"] {}
    refused(
        rig.x509_svids(&mut far, pod("u-2")).await,
        Code::NotFound,
        "workload attestation failed: workloadattestor(k8s): pod shop/server has UID u-1, expected u-2",
    );
    let nothing = reference(OBJECT, KubernetesObjectReference::default().encode_to_vec());
    refused(
        rig.x509_svids(&mut far, nothing).await,
        Code::InvalidArgument,
        "workload attestation failed: workloadattestor(k8s): object reference is missing type",
    );
    // It names no other broker, whatever the agent allows that one: unix alone answers.
    let mut near = rig.near().await;
    let mut stream = rig.x509_svids(&mut near, rig.workload()).await.unwrap();
    assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/a"]);
    let line = rig.agent.wait_for("is not configured");
    assert!(line.contains("spiffe://example.org/near"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_broker_gets_nowhere() {
    let rig = Rig::start().await;
    let ca = rig.fake.state().ca.clone();
    let strangers = [
        // Of the trust domain, and not named.
        Some(("spiffe://example.org/a", &*ca)),
        // A name that another trust domain's CA has no say in (SV-52).
        Some(("spiffe://example.org/near", &*rig.other)),
        None,
    ];
    for stranger in strangers {
        let unix = UnixStream::connect(&rig.socket).await.unwrap();
        let tcp = TcpStream::connect(&rig.address).await.unwrap();
        // TLS 1.3 lets a client believe that it is through before the server has seen its certificate.
        for channel in [
            rig.connect(unix, stranger).await,
            rig.connect(tcp, stranger).await,
        ] {
            let Ok(channel) = channel else { continue };
            let answer = rig.x509_svids(&mut client(channel), rig.workload()).await;
            assert!(answer.is_err());
        }
    }
    rig.agent
        .wait_for("is not one of experimental.broker.brokers");
    // Without the header a broker is told nothing either, not even what there is.
    let mut near = rig.near().await;
    let bare = SubscribeToX509svidRequest {
        reference: rig.workload(),
    };
    let text = "security header missing from request";
    refused(
        soon(near.subscribe_to_x509svid(bare)).await,
        Code::InvalidArgument,
        text,
    );
}

// Inventory section 4: gRPC reflection (broker UDS only).
#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_told_at_the_unix_socket_alone() {
    let rig = Rig::start().await;
    let ca = rig.fake.state().ca.clone();
    let id = ("spiffe://example.org/near", &*ca);
    let ask = || {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        tokio_stream::iter([request])
    };
    let unix = UnixStream::connect(&rig.socket).await.unwrap();
    let channel = rig.connect(unix, Some(id)).await.unwrap();
    let mut reflection = ServerReflectionClient::with_origin(channel, Channel::origin());
    let mut answers = soon(reflection.server_reflection_info(secured(ask())))
        .await
        .unwrap()
        .into_inner();
    let told = format!("{:?}", next(&mut answers).await);
    assert!(told.contains("\"spiffe.broker.API\""), "{told}");
    let text = "security header missing from request";
    refused(
        soon(reflection.server_reflection_info(ask())).await,
        Code::InvalidArgument,
        text,
    );
    let tcp = TcpStream::connect(&rig.address).await.unwrap();
    let channel = rig.connect(tcp, Some(id)).await.unwrap();
    let mut reflection = ServerReflectionClient::with_origin(channel, Channel::origin());
    let text = "server reflection is only available over Unix sockets";
    refused(
        soon(reflection.server_reflection_info(secured(ask()))).await,
        Code::PermissionDenied,
        text,
    );
}
