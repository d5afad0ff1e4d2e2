//! The delegated identity API on the admin socket (inventory sections 1.1 authorized_delegates, 4, 10.2).

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use ah_identity_provider::CertificateFacts;
use ah_spire_wire::Channel;
use ah_spire_wire::agent::delegatedidentity::delegated_identity_client::DelegatedIdentityClient;
use ah_spire_wire::agent::delegatedidentity::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use ah_spire_wire::types;
use ah_testkit::process::{Process, eventually};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tonic::{Code, Status, Streaming};
use x509_parser::parse_x509_certificate;

use crate::fake::{Ca, Fake};
use crate::program::{Conf, get, serve_us};
use crate::rig::{Node, soon};

/// An agent whose delegate is who runs the test, and the workload of user 1.
struct Rig {
    fake: Fake,
    socket: PathBuf,
    /// Where metrics are.
    metrics: String,
    agent: Process,
    _node: Node,
}

impl Rig {
    async fn start(delegates: &str) -> Self {
        let fake = Fake::start().await;
        serve_us(&fake);
        fake.set_entry("b", "/b", |entry| entry.hint = "hint".into());
        let node = Node::new(&fake);
        let mut conf = Conf::new(&node);
        let socket = node.directory.path().join("private/admin.sock");
        conf.agent = format!("admin_socket_path = {socket:?} authorized_delegates = [{delegates}]");
        conf.more = r#"telemetry {
            EnableHostnameLabel = false
            Prometheus { host = "localhost" port = 0 }
        }"#
        .into();
        let agent = Process::start(&mut conf.command(&node, &fake, "run"));
        let metrics = agent.wait_for("Serving metrics");
        fake.called_in_all("SyncAuthorizedEntries", 2).await;
        Self {
            fake,
            socket,
            metrics,
            agent,
            _node: node,
        }
    }

    async fn client(&self) -> DelegatedIdentityClient<Channel> {
        let channel = Channel::unix(&self.socket).await.unwrap();
        DelegatedIdentityClient::with_origin(channel, Channel::origin())
    }

    async fn x509_svids(
        &self,
        request: SubscribeToX509sviDsRequest,
    ) -> Result<Streaming<SubscribeToX509sviDsResponse>, Status> {
        let mut client = self.client().await;
        let answer = soon(client.subscribe_to_x509svi_ds(request)).await?;
        Ok(answer.into_inner())
    }

    /// Until it is there.
    async fn counted(&self, wanted: &str) {
        eventually(wanted, || {
            let text = get(&self.metrics, "/metrics").1;
            text.lines()
                .any(|line| line.starts_with(wanted))
                .then_some(())
        });
    }
}

const DELEGATE: &str = r#""spiffe://example.org/a""#;

fn selectors(value: &str) -> Vec<types::Selector> {
    vec![types::Selector {
        r#type: "unix".into(),
        value: value.into(),
    }]
}

/// What is asked for the workload of user 1.
fn by_selectors() -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest {
        selectors: selectors("uid:1"),
        pid: 0,
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = soon(stream.message()).await.unwrap();
    message.expect("the stream ended")
}

fn paths(response: &SubscribeToX509sviDsResponse) -> Vec<String> {
    let svids = response.x509_svids.iter();
    let ids = svids.map(|svid| svid.x509_svid.clone().unwrap().id.unwrap());
    ids.map(|id| {
        assert_eq!(id.trust_domain, "example.org");
        id.path
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_is_given_what_its_workload_would_be_and_told_of_changes() {
    let rig = Rig::start(DELEGATE).await;
    let mut stream = rig.x509_svids(by_selectors()).await.unwrap();
    let first = next(&mut stream).await;
    assert_eq!(paths(&first), ["/b"]);
    assert_eq!(first.federates_with, Vec::<String>::new());
    let with_key = &first.x509_svids[0];
    let svid = with_key.x509_svid.clone().unwrap();
    assert_eq!(svid.hint, "hint");
    let leaf = CertificateFacts::from_der(&svid.cert_chain[0]).unwrap();
    assert_eq!(leaf.uris, ["spiffe://example.org/b"]);
    let until = Duration::from_secs(svid.expires_at.try_into().unwrap());
    assert_eq!(leaf.not_after, UNIX_EPOCH + until);
    let key = PrivatePkcs8KeyDer::from(with_key.x509_svid_key.clone());
    let key = KeyPair::try_from(&key).unwrap();
    let (_, parsed) = parse_x509_certificate(&svid.cert_chain[0]).unwrap();
    assert_eq!(parsed.public_key().raw, key.subject_public_key_info());

    // Another one, of an entry that the server's administrator has: it is nobody's to lend.
    rig.fake.set_entry("c", "/c", |entry| entry.admin = true);
    rig.fake
        .set_entry("d", "/d", |entry| entry.downstream = true);
    rig.fake.set_entry("e", "/e", |_| ());
    let mut told = next(&mut stream).await;
    while paths(&told) != ["/b", "/e"] {
        assert_eq!(paths(&told), ["/b"]);
        told = next(&mut stream).await;
    }
    rig.counted("spire_agent_delegated_identity_api_connection 1")
        .await;
    rig.counted("spire_agent_delegated_identity_api_connections 1")
        .await;
    let latency =
        "spire_agent_delegated_identity_api_subscribe_x509_svids_first_update_elapsed_time";
    rig.counted(&format!("{latency}_count 1")).await;
    drop(stream);
    rig.counted("spire_agent_delegated_identity_api_connections 0")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_named_by_its_selectors_or_its_process() {
    let rig = Rig::start(DELEGATE).await;
    let own = i32::try_from(std::process::id()).unwrap();
    let of_process = |pid| SubscribeToX509sviDsRequest {
        selectors: Vec::new(),
        pid,
    };
    let mut stream = rig.x509_svids(of_process(own)).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await), ["/a"]);
    let both = SubscribeToX509sviDsRequest {
        pid: own,
        ..by_selectors()
    };
    for wrong in [both, of_process(0)] {
        let error = rig.x509_svids(wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(
            error.message(),
            "must provide either selectors or non-zero PID, but not both"
        );
    }
    let broken = SubscribeToX509sviDsRequest {
        selectors: selectors(""),
        pid: 0,
    };
    let error = rig.x509_svids(broken).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .starts_with("could not parse provided selectors"),
        "{error}"
    );
    let error = rig.x509_svids(of_process(i32::MAX)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(error.message(), "workload attestation failed");
    // Nobody has these: there is nothing to tell but that.
    let nobody = SubscribeToX509sviDsRequest {
        selectors: selectors("uid:77"),
        pid: 0,
    };
    let mut stream = rig.x509_svids(nobody).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_is_told_the_bundles_of_all_trust_domains() {
    let rig = Rig::start(DELEGATE).await;
    let mut client = rig.client().await;
    let x509 = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {});
    let mut x509 = soon(x509).await.unwrap().into_inner();
    let jwt = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {});
    let mut jwt = soon(jwt).await.unwrap().into_inner();
    let own = "spiffe://example.org";
    let first = next(&mut x509).await.ca_certificates;
    assert_eq!(first.keys().collect::<Vec<_>>(), [own]);
    assert_eq!(first[own], rig.fake.state().ca.der.to_vec());
    let first = next(&mut jwt).await.bundles;
    let keys: serde_json::Value = serde_json::from_slice(&first[own]).unwrap();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(0));

    let other = Ca::new();
    rig.fake.federate("other.org", &other);
    rig.fake.set_entry("b", "/b", |entry| {
        entry.federates_with = vec!["other.org".into()];
    });
    let both = next(&mut x509).await.ca_certificates;
    assert_eq!(both["spiffe://other.org"], other.der.to_vec());
    assert_eq!(both.len(), 2);
    assert_eq!(next(&mut jwt).await.bundles.len(), 2);
    let mut svids = rig.x509_svids(by_selectors()).await.unwrap();
    assert_eq!(
        next(&mut svids).await.federates_with,
        ["spiffe://other.org"]
    );
    // What goes is not told any more.
    rig.fake.state().federated.clear();
    assert_eq!(next(&mut x509).await.ca_certificates.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_fetches_jwt_svids() {
    let rig = Rig::start(DELEGATE).await;
    rig.fake.set_entry("c", "/c", |entry| entry.admin = true);
    let mut client = rig.client().await;
    let asked = FetchJwtsviDsRequest {
        audience: vec!["one".into(), "two".into()],
        selectors: selectors("uid:1"),
        pid: 0,
    };
    let answer = soon(client.fetch_jwtsvi_ds(asked.clone())).await.unwrap();
    let [svid] = &answer.into_inner().svids[..] else {
        panic!("not one");
    };
    let id = svid.id.clone().unwrap();
    assert_eq!(
        (id.trust_domain.as_str(), id.path.as_str()),
        ("example.org", "/b")
    );
    assert_eq!(svid.hint, "hint");
    assert_eq!(svid.expires_at - svid.issued_at, 300);
    assert!(!svid.token.is_empty());
    let without = FetchJwtsviDsRequest {
        audience: Vec::new(),
        ..asked.clone()
    };
    let error = soon(client.fetch_jwtsvi_ds(without)).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.message(), "audience must be specified");
    let nobody = FetchJwtsviDsRequest {
        selectors: selectors("uid:77"),
        ..asked
    };
    let error = soon(client.fetch_jwtsvi_ds(nobody)).await.err().unwrap();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert_eq!(error.message(), "no identity issued");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_delegate_is_refused() {
    let rig = Rig::start(r#""spiffe://example.org/other""#).await;
    let refused = |error: Status, text: &str| {
        assert_eq!(error.code(), Code::PermissionDenied);
        assert_eq!(error.message(), text);
    };
    let text = "caller not configured as an authorized delegate";
    refused(rig.first_of_all().await, text);
    rig.agent.wait_for("not one of authorized_delegates");
    let mut client = rig.client().await;
    let jwt = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {});
    refused(soon(jwt).await.err().unwrap(), text);
    let x509 = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {});
    refused(soon(x509).await.err().unwrap(), text);
    let jwt = client.fetch_jwtsvi_ds(FetchJwtsviDsRequest {
        audience: vec!["a".into()],
        selectors: selectors("uid:1"),
        pid: 0,
    });
    refused(soon(jwt).await.err().unwrap(), text);

    // Without an entry at all.
    rig.fake.state().entries.remove("a");
    rig.fake.called("SyncAuthorizedEntries", 2).await;
    refused(rig.first_of_all().await, "no identity issued");
}

impl Rig {
    async fn first_of_all(&self) -> Status {
        self.x509_svids(by_selectors()).await.unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_a_delegate_no_more_is_told_no_more() {
    let rig = Rig::start(DELEGATE).await;
    let mut stream = rig.x509_svids(by_selectors()).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await), ["/b"]);
    {
        // Of one synchronization: the next set would be the first without the delegate.
        let mut state = rig.fake.state();
        state.entries.remove("a");
        let entry = state.entries.get_mut("b").unwrap();
        entry.revision_number += 1;
    }
    let error = soon(stream.message()).await.err().unwrap();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert_eq!(error.message(), "no identity issued");
}
