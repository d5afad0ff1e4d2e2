mod configuration;
mod hostile;
mod spiffe_mode;
mod upstream;

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::join_token::{JoinTokens, TokenUse};
use ah_spire_attest::node::x509pop::{
    Authorities, X509PopAgent, X509PopAgentConfig, X509PopServer, X509PopServerConfig,
};
use ah_spire_attest::node::{AttestedAgent, BuiltinAgent, BuiltinServer};
use ah_testkit::ca::{KeyType, LeafBuilder, TestCa, TestLeaf};
use ah_testkit::node_suite::{self, NodeFixture, attest};
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tempfile::TempDir;

/// The bundle of the server's own trust domain.
pub(crate) struct Own(Vec<CertificateDer<'static>>);

impl Authorities for Own {
    type Error = Infallible;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, Infallible> {
        Ok(self.0.clone())
    }
}

/// A store without join tokens.
pub(crate) struct NoTokens;

impl JoinTokens for NoTokens {
    type Error = Infallible;

    async fn consume(&self, _token: &str, _now: SystemTime) -> Result<TokenUse, Infallible> {
        Ok(TokenUse::Unknown)
    }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

/// A leaf as an operator would make one for a node.
pub(crate) fn node(ca: &TestCa) -> LeafBuilder {
    ca.leaf().subject("node-7").serial(&[0x0a, 0x1b, 0x2c])
}

/// The settings that trust `ca`, whose file is written to `folder`.
pub(crate) fn trusting(folder: &Path, ca: &TestCa) -> X509PopServerConfig {
    X509PopServerConfig {
        ca_bundle_path: ca.write(folder, "roots"),
        ..X509PopServerConfig::default()
    }
}

pub(crate) async fn server(config: X509PopServerConfig) -> Result<X509PopServer<Own>, AttestError> {
    X509PopServer::configure(config, trust_domain(), Own(Vec::new())).await
}

pub(crate) fn files(folder: &Path, leaf: &TestLeaf) -> X509PopAgentConfig {
    let files = leaf.write(folder, "node");
    X509PopAgentConfig {
        private_key_path: files.key,
        certificate_path: files.cert,
        ..X509PopAgentConfig::default()
    }
}

pub(crate) async fn agent(folder: &Path, leaf: &TestLeaf) -> X509PopAgent {
    X509PopAgent::configure(files(folder, leaf)).await.unwrap()
}

/// What a server that trusts `ca`, with the settings that `change` makes, says of `leaf`.
pub(crate) async fn outcome(
    ca: &TestCa,
    leaf: &TestLeaf,
    now: SystemTime,
    change: impl FnOnce(&mut X509PopServerConfig),
) -> Result<AttestedAgent, AttestError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = trusting(folder.path(), ca);
    change(&mut config);
    let server = server(config).await.unwrap();
    attest(&agent(folder.path(), leaf).await, &server, now).await
}

/// An error that is of this sort and says all of `words`.
macro_rules! assert_error {
    ($outcome:expr, $sort:ident, $($word:expr),+ $(,)?) => {
        let error = $outcome.map(|_| ()).unwrap_err();
        assert!(matches!(error, AttestError::$sort(_)), "{error:?}");
        crate::assert_told(&error, "x509pop", &[$($word),+]);
    };
}
pub(crate) use assert_error;

struct Fixture {
    /// Files are read at each attestation.
    _folders: [TempDir; 2],
    server: RefCell<Option<X509PopServer<Own>>>,
    honest: (TestLeaf, X509PopAgent),
    impostor: X509PopAgent,
}

impl Fixture {
    async fn new(key: KeyType) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [own, foreign] = folders.each_ref().map(TempDir::path);
        let ca = TestCa::new("example.org");
        let leaf = node(&ca.intermediate().issue()).key_type(key).issue();
        let other = node(&TestCa::new("example.org")).key_type(key).issue();
        Self {
            server: RefCell::new(Some(server(trusting(own, &ca)).await.unwrap())),
            impostor: agent(foreign, &other).await,
            honest: (leaf.clone(), agent(own, &leaf).await),
            _folders: folders,
        }
    }
}

impl NodeFixture for Fixture {
    type Agent = BuiltinAgent;
    type Server = BuiltinServer<NoTokens, Own>;

    const NAME: &'static str = "x509pop";
    const CHALLENGES: usize = 1;
    const CAN_REATTEST: bool = true;

    fn server(&self) -> Self::Server {
        BuiltinServer::X509Pop(self.server.take().expect("one server is enough"))
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> BuiltinAgent {
        BuiltinAgent::X509Pop(self.honest.1.clone())
    }

    fn impostor(&self) -> BuiltinAgent {
        BuiltinAgent::X509Pop(self.impostor.clone())
    }

    fn secrets(&self) -> Vec<String> {
        let pem = self.honest.0.key_pem();
        let lines = pem.lines().map(str::to_owned);
        lines.filter(|line| !line.starts_with('-')).collect()
    }
}

#[tokio::test]
async fn it_conforms_with_every_kind_of_key() {
    for key in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
        node_suite::conforms(Fixture::new(key).await).await;
    }
}

#[tokio::test]
async fn the_agent_is_named_after_its_certificate() {
    let ca = TestCa::new("example.org");
    let leaf = node(&ca)
        .uri("x509pop://example.org/rack/a/7")
        .uri("x509pop://example.com/rack/of-others")
        .issue();
    let attested = outcome(&ca, &leaf, SystemTime::now(), |_| ())
        .await
        .unwrap();
    let path = attested.id.path().to_owned();
    assert!(path.starts_with("/spire/agent/x509pop/"), "{path}");
    let texts: Vec<_> = attested.selectors.iter().map(ToString::to_string).collect();
    let [cn, root, serial, san] = texts.as_slice() else {
        panic!("{texts:?}");
    };
    assert_eq!(cn, "x509pop:subject:cn:node-7");
    assert!(root.starts_with("x509pop:ca:fingerprint:"), "{root}");
    assert_eq!(root.len(), "x509pop:ca:fingerprint:".len() + 40);
    assert_eq!(serial, "x509pop:serialnumber:0a1b2c");
    assert_eq!(san, "x509pop:san:rack:a/7");
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_at_the_next_attestation() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let server = server(trusting(folder.path(), &ca)).await.unwrap();
    let agent = agent(folder.path(), &node(&ca).issue()).await;
    let before = attest(&agent, &server, SystemTime::now()).await.unwrap();
    node(&ca).issue().write(folder.path(), "node");
    let after = attest(&agent, &server, SystemTime::now()).await.unwrap();
    assert_ne!(before.id, after.id);
}
