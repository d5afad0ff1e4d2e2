//! Mode `spiffe`: an X509-SVID of the server's trust domain is exchanged for an agent's.

use std::fmt;
use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::AttestedAgent;
use ah_spire_attest::node::x509pop::{
    Authorities, X509PopAgent, X509PopAgentConfig, X509PopServer, X509PopServerConfig,
};
use ah_testkit::ca::{TestCa, TestLeaf};
use ah_testkit::node_suite::attest;
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};
use rustls_pki_types::CertificateDer;

use super::{Own, agent, assert_error, node, trust_domain};

fn config(prefix: Option<&str>) -> X509PopServerConfig {
    X509PopServerConfig {
        mode: "spiffe".into(),
        spiffe_prefix: prefix.map(str::to_owned),
        ..X509PopServerConfig::default()
    }
}

async fn exchange(
    ca: &TestCa,
    leaf: &TestLeaf,
    prefix: Option<&str>,
) -> Result<AttestedAgent, AttestError> {
    let folder = tempfile::tempdir().unwrap();
    let own = Own(vec![ca.der().clone()]);
    let server = X509PopServer::configure(config(prefix), trust_domain(), own).await;
    let agent = agent(folder.path(), leaf).await;
    attest(&agent, &server.unwrap(), SystemTime::now()).await
}

#[tokio::test]
async fn the_path_after_the_prefix_names_the_agent() {
    let ca = TestCa::new("example.org");
    for (prefix, id, path) in [
        (
            None,
            "spiffe://example.org/spire-exchange/testhost",
            "/spire/agent/x509pop/testhost",
        ),
        (
            Some("/nodes"),
            "spiffe://example.org/nodes/a/b",
            "/spire/agent/x509pop/a/b",
        ),
        (
            Some("/nodes/"),
            "spiffe://example.org/nodes/a",
            "/spire/agent/x509pop/a",
        ),
        (
            Some(""),
            "spiffe://example.org/any/thing",
            "/spire/agent/x509pop/any/thing",
        ),
    ] {
        let attested = exchange(&ca, &node(&ca).spiffe(id).issue(), prefix)
            .await
            .unwrap();
        assert_eq!(attested.id.path(), path);
        assert!(attested.can_reattest);
    }
}

#[tokio::test]
async fn another_path_another_domain_and_no_svid_are_refused() {
    let ca = TestCa::new("example.org");
    let other_path = node(&ca).spiffe("spiffe://example.org/workload").issue();
    assert_error!(
        exchange(&ca, &other_path, None).await,
        Refused,
        "x509 cert doesnt match SVID prefix",
        "does not begin with /spire-exchange/",
        "spiffe_prefix",
    );
    for leaf in [
        node(&ca).issue(),
        node(&ca)
            .uri("https://example.org/spire-exchange/a")
            .issue(),
        node(&ca)
            .spiffe("spiffe://example.com/spire-exchange/a")
            .issue(),
    ] {
        let outcome = exchange(&ca, &leaf, None).await;
        assert_error!(
            outcome,
            Refused,
            "valid SVID x509 cert not found",
            "example.org"
        );
    }
    let foreign = TestCa::new("example.org");
    let leaf = node(&foreign)
        .spiffe("spiffe://example.org/spire-exchange/a")
        .issue();
    assert_error!(
        exchange(&ca, &leaf, None).await,
        Refused,
        "unknown authority"
    );
}

struct Broken;

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("database is locked")
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Broken {}

impl Authorities for Broken {
    type Error = Self;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, Self> {
        Err(Self)
    }
}

#[tokio::test]
async fn without_a_bundle_nobody_is_trusted() {
    let ca = TestCa::new("example.org");
    let folder = tempfile::tempdir().unwrap();
    let leaf = node(&ca)
        .spiffe("spiffe://example.org/spire-exchange/a")
        .issue();
    let agent = agent(folder.path(), &leaf).await;

    let empty = X509PopServer::configure(config(None), trust_domain(), Own(Vec::new())).await;
    let outcome = attest(&agent, &empty.unwrap(), SystemTime::now()).await;
    assert_error!(outcome, Internal, "failed to get trust bundle: it is empty");

    let broken = X509PopServer::configure(config(None), trust_domain(), Broken).await;
    let outcome = attest(&agent, &broken.unwrap(), SystemTime::now()).await;
    assert_error!(
        outcome,
        Internal,
        "failed to get trust bundle: database is locked"
    );
}

#[tokio::test]
async fn the_agent_can_take_its_svid_from_a_workload_api() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let svid = |name: &str| {
        let id = format!("spiffe://example.org/spire-exchange/{name}");
        Answer::Set(Svids::of(&node(&ca).spiffe(&id).issue(), &ca))
    };
    let api = WorkloadApi::unix(folder.path().join("api.sock"), svid("first"));
    let agent = X509PopAgent::configure(X509PopAgentConfig {
        spiffe_endpoint_socket: api.endpoint(),
        ..X509PopAgentConfig::default()
    });
    let agent = agent.await.unwrap();
    let own = Own(vec![ca.der().clone()]);
    let server = X509PopServer::configure(config(None), trust_domain(), own)
        .await
        .unwrap();
    let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
    assert_eq!(attested.id.path(), "/spire/agent/x509pop/first");

    api.say(svid("second"));
    let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
    assert_eq!(attested.id.path(), "/spire/agent/x509pop/second");

    drop(api);
    let outcome = attest(&agent, &server, SystemTime::now()).await;
    assert_error!(
        outcome,
        Unavailable,
        "unable to fetch SVID from workload API: "
    );
}
