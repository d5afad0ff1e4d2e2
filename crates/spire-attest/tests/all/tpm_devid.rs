//! `tpm_devid`, with TPMs of `swtpm`.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::tpm_devid::{
    TpmDevIdAgent, TpmDevIdAgentConfig, TpmDevIdServer, TpmDevIdServerConfig,
};
use ah_spire_attest::node::{
    AgentHalf, AttestedAgent, BuiltinAgent, BuiltinServer, Challenge, Conversation, ServerHalf,
};
use ah_testkit::ca::TestCa;
use ah_testkit::node_suite::{self, NodeFixture, Unasked, attest, claim};
use ah_testkit::process::eventually;
use ah_testkit::swtpm::{DevIdKind, Hierarchies, Maker, Swtpm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use spiffe::TrustDomain;
use tempfile::TempDir;

use crate::x509pop::{NoTokens, Own, trust_domain};

const NONE: Hierarchies = Hierarchies {
    owner: "",
    endorsement: "",
};

/// What an operator has: CAs, and nodes with TPMs.
struct Site {
    folder: TempDir,
    maker: Maker,
    ca: TestCa,
}

impl Site {
    /// `None` where there is no swtpm.
    fn new() -> Option<Self> {
        Some(Self {
            maker: Maker::new()?,
            folder: tempfile::tempdir().unwrap(),
            ca: TestCa::new("example.org"),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Has `tpm` make an LDevID key, which the operator certifies for the node `name`.
    fn provision(&self, tpm: &Swtpm, name: &str, kind: DevIdKind, set: Hierarchies) {
        let key = tpm.devid(kind, "of-the-key", set);
        key.write(self.folder.path(), name, false);
        let leaf = self.ca.leaf().subject(name).issue_for(&key);
        std::fs::write(self.path(&format!("{name}.pem")), leaf).unwrap();
    }

    fn config(&self, tpm: &Swtpm, name: &str) -> TpmDevIdAgentConfig {
        TpmDevIdAgentConfig {
            tpm_device_path: tpm.socket(),
            devid_cert_path: self.path(&format!("{name}.pem")),
            devid_priv_path: self.path(&format!("{name}.priv")),
            devid_pub_path: self.path(&format!("{name}.pub")),
            devid_password: "of-the-key".to_owned().into(),
            ..TpmDevIdAgentConfig::default()
        }
    }

    async fn agent(&self, tpm: &Swtpm, name: &str) -> TpmDevIdAgent {
        TpmDevIdAgent::configure(self.config(tpm, name))
            .await
            .unwrap()
    }

    fn trusting(&self) -> TpmDevIdServerConfig {
        let endorsement = self.path("endorsement.pem");
        std::fs::write(&endorsement, self.maker.authorities()).unwrap();
        TpmDevIdServerConfig {
            devid_ca_path: self.ca.write(self.folder.path(), "devid"),
            endorsement_ca_path: endorsement,
        }
    }

    async fn server(&self) -> TpmDevIdServer {
        server(self.trusting()).await.unwrap()
    }
}

async fn server(config: TpmDevIdServerConfig) -> Result<TpmDevIdServer, AttestError> {
    TpmDevIdServer::configure(config, trust_domain()).await
}

/// An error that is of this sort and says all of `words`.
macro_rules! assert_error {
    ($outcome:expr, $sort:ident, $($word:expr),+ $(,)?) => {
        let error = $outcome.map(|_| ()).unwrap_err();
        assert!(matches!(error, AttestError::$sort(_)), "{error:?}");
        crate::assert_told(&error, "tpm_devid", &[$($word),+]);
    };
}

struct Fixture {
    _tpms: [Swtpm; 2],
    site: Site,
    server: RefCell<Option<TpmDevIdServer>>,
    honest: TpmDevIdAgent,
    impostor: TpmDevIdAgent,
}

impl Fixture {
    async fn new() -> Option<Self> {
        let site = Site::new()?;
        let strange = Maker::new()?;
        let (tpm, other) = (site.maker.make(NONE), strange.make(NONE));
        site.provision(&tpm, "honest", DevIdKind::Ecdsa, NONE);
        site.provision(&other, "impostor", DevIdKind::Ecdsa, NONE);
        Some(Self {
            server: RefCell::new(Some(site.server().await)),
            honest: site.agent(&tpm, "honest").await,
            impostor: site.agent(&other, "impostor").await,
            _tpms: [tpm, other],
            site,
        })
    }
}

impl NodeFixture for Fixture {
    type Agent = BuiltinAgent;
    type Server = BuiltinServer<NoTokens, Own>;

    const NAME: &'static str = "tpm_devid";
    const CHALLENGES: usize = 1;
    const CAN_REATTEST: bool = true;

    fn server(&self) -> Self::Server {
        let server = self.server.take().expect("one server is enough");
        BuiltinServer::TpmDevId(Box::new(server))
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> BuiltinAgent {
        BuiltinAgent::TpmDevId(self.honest.clone())
    }

    fn impostor(&self) -> BuiltinAgent {
        BuiltinAgent::TpmDevId(self.impostor.clone())
    }

    fn secrets(&self) -> Vec<String> {
        let blob = std::fs::read(self.site.path("honest.priv")).unwrap();
        vec!["of-the-key".into(), STANDARD.encode(blob)]
    }
}

// Inventory, NodeAttestor tpm_devid. The impostor's TPM is of another maker. RSA keys attest below: a TPM takes its time to make them.
#[tokio::test]
async fn it_conforms() {
    if let Some(fixture) = Fixture::new().await {
        node_suite::conforms(fixture).await;
    }
}

#[tokio::test]
async fn the_agent_is_named_after_its_certificate_and_leaves_the_tpm_as_it_was() {
    let Some(mut site) = Site::new() else { return };
    let root = site.ca;
    site.ca = root.intermediate().subject("between").issue();
    let tpm = site.maker.make(NONE);
    site.provision(&tpm, "node-7", DevIdKind::Ecdsa, NONE);
    let mut trusting = site.trusting();
    trusting.devid_ca_path = root.write(site.folder.path(), "root");
    let server = server(trusting).await.unwrap();
    let agent = site.agent(&tpm, "node-7").await;
    let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
    let path = attested.id.path();
    let fingerprint = path.strip_prefix("/spire/agent/tpm_devid/").unwrap();
    assert_eq!(fingerprint.len(), 40, "{path}");
    let texts: Vec<_> = attested.selectors.iter().map(ToString::to_string).collect();
    let [subject, issuer, between, root] = texts.as_slice() else {
        panic!("{texts:?}");
    };
    assert_eq!(subject, "tpm_devid:subject:cn:node-7");
    assert_eq!(issuer, "tpm_devid:issuer:cn:between");
    for signer in [between, root] {
        let fingerprint = signer.strip_prefix("tpm_devid:ca:fingerprint:").unwrap();
        assert_eq!(fingerprint.len(), 40, "{signer}");
    }
    // A conversation that is given up leaves nothing either.
    drop(agent.begin().await.unwrap());
    eventually("the TPM is empty", || (tpm.loaded() == 0).then_some(()));
}

#[tokio::test]
async fn blobs_of_tpm2_tools_and_passwords_of_hierarchies_are_taken() {
    let Some(site) = Site::new() else { return };
    let set = Hierarchies {
        owner: "of-the-owner",
        endorsement: "of-the-maker",
    };
    let tpm = site.maker.make(set);
    site.provision(&tpm, "node", DevIdKind::Rsa, set);
    for name in ["node.priv", "node.pub"] {
        let blob = std::fs::read(site.path(name)).unwrap();
        let size = u16::try_from(blob.len()).unwrap().to_be_bytes();
        std::fs::write(site.path(name), [&size[..], &blob].concat()).unwrap();
    }
    let server = site.server().await;
    let now = SystemTime::now();
    let with = |owner: &str, endorsement: &str| {
        let mut config = site.config(&tpm, "node");
        config.owner_hierarchy_password = owner.to_owned().into();
        config.endorsement_hierarchy_password = endorsement.to_owned().into();
        TpmDevIdAgent::configure(config)
    };
    let agent = with(set.owner, set.endorsement).await.unwrap();
    attest(&agent, &server, now).await.unwrap();
    for (owner, endorsement, setting) in [
        ("", set.endorsement, "owner_hierarchy_password"),
        (set.owner, "wrong", "endorsement_hierarchy_password"),
    ] {
        let agent = with(owner, endorsement).await.unwrap();
        let outcome = attest(&agent, &server, now).await;
        assert_error!(outcome, Internal, "wrong password", setting);
    }
    eventually("the TPM is empty", || (tpm.loaded() == 0).then_some(()));
}

// A TPM counts wrong passwords and locks itself: a password that was refused is not tried again.
#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let Some(site) = Site::new() else { return };
    let tpm = site.maker.make(NONE);
    site.provision(&tpm, "node", DevIdKind::Ecdsa, NONE);
    let mut config = site.config(&tpm, "node");
    config.devid_password = "another".to_owned().into();
    let agent = TpmDevIdAgent::configure(config).await.unwrap();
    let server = site.server().await;
    for _ in 0..40 {
        let outcome = attest(&agent, &server, SystemTime::now()).await;
        assert_error!(
            outcome,
            Internal,
            "unable to certify DevID key",
            "wrong password",
            "devid_password"
        );
    }
    let right = site.agent(&tpm, "node").await;
    attest(&right, &server, SystemTime::now()).await.unwrap();
}

#[tokio::test]
async fn a_key_of_another_tpm_is_not_loaded() {
    let Some(site) = Site::new() else { return };
    let (tpm, other) = (site.maker.make(NONE), site.maker.make(NONE));
    site.provision(&other, "node", DevIdKind::Ecdsa, NONE);
    let agent = site.agent(&tpm, "node").await;
    let outcome = attest(&agent, &site.server().await, SystemTime::now()).await;
    assert_error!(
        outcome,
        Internal,
        "cannot load DevID key on TPM",
        "is not of this TPM"
    );
    let mut config = site.config(&tpm, "node");
    config.tpm_device_path = site.path("nowhere");
    let agent = TpmDevIdAgent::configure(config).await.unwrap();
    let outcome = attest(&agent, &site.server().await, SystemTime::now()).await;
    assert_error!(
        outcome,
        Internal,
        "cannot open TPM at",
        "nowhere",
        "tpm_device_path"
    );
}

#[tokio::test]
async fn only_trusted_authorities_vouch() {
    let Some(site) = Site::new() else { return };
    let strange = Maker::new().unwrap();
    let tpm = site.maker.make(NONE);
    let _first = strange.make(NONE);
    site.provision(&tpm, "node", DevIdKind::Ecdsa, NONE);
    let agent = site.agent(&tpm, "node").await;
    let now = SystemTime::now();

    let mut config = site.trusting();
    config.devid_ca_path = TestCa::new("example.org").write(site.folder.path(), "other");
    let outcome = attest(&agent, &server(config).await.unwrap(), now).await;
    assert_error!(
        outcome,
        Refused,
        "unable to verify DevID signature: verification failed: certificate signed by unknown authority",
        "devid_ca_path"
    );

    let mut config = site.trusting();
    std::fs::write(site.path("strange.pem"), strange.authorities()).unwrap();
    config.endorsement_ca_path = site.path("strange.pem");
    let outcome = attest(&agent, &server(config).await.unwrap(), now).await;
    assert_error!(
        outcome,
        Refused,
        "cannot verify EK signature",
        "endorsement_ca_path"
    );

    let later = now + Duration::from_secs(400 * 24 * 3600);
    let outcome = attest(&agent, &site.server().await, later).await;
    assert_error!(
        outcome,
        Refused,
        "unable to verify DevID signature",
        "expired"
    );
}

/// The payload of `agent`, and who answers for it.
async fn opened(agent: &TpmDevIdAgent) -> (Value, impl Conversation) {
    let (payload, conversation) = agent.begin().await.unwrap();
    (
        serde_json::from_slice(payload.expose()).unwrap(),
        conversation,
    )
}

/// Answers as an agent, and changes the challenge and the answer.
struct Changed<C, F, G> {
    conversation: C,
    challenge: F,
    answer: G,
}

impl<C: Conversation, F: FnMut(&mut Value) + Send, G: FnMut(&mut Value) + Send> Challenge
    for Changed<C, F, G>
{
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        let mut challenge = serde_json::from_slice(&challenge).unwrap();
        (self.challenge)(&mut challenge);
        let challenge = challenge.to_string().into_bytes();
        let answer = self.conversation.answer(&challenge).await?;
        let mut answer = serde_json::from_slice(&answer).unwrap();
        (self.answer)(&mut answer);
        Ok(answer.to_string().into_bytes())
    }
}

async fn judged(
    server: &TpmDevIdServer,
    payload: &Value,
    way: &mut impl Challenge,
) -> Result<AttestedAgent, AttestError> {
    let payload = payload.to_string().into_bytes();
    server.attest(claim(&payload, SystemTime::now()), way).await
}

#[tokio::test]
async fn parts_of_two_tpms_are_no_node() {
    let Some(site) = Site::new() else { return };
    let (tpm, other) = (site.maker.make(NONE), site.maker.make(NONE));
    site.provision(&tpm, "node", DevIdKind::Ecdsa, NONE);
    site.provision(&other, "thief", DevIdKind::Ecdsa, NONE);
    let server = site.server().await;
    let (own, _) = opened(&site.agent(&tpm, "node").await).await;
    let thief = site.agent(&other, "thief").await;
    let taken = |names: &[&str]| {
        let mut payload = own.clone();
        names.iter().for_each(|name| payload[*name] = Value::Null);
        payload
    };
    let from = |payload: &Value, names: &[&str]| {
        let mut mixed = own.clone();
        for name in names {
            mixed[*name] = payload[*name].clone();
        }
        mixed
    };
    for (missing, word) in [
        ("AKPub", "missing attestation key public blob"),
        ("DevIDPub", "missing DevID key public blob"),
        ("EKCert", "missing endorsement certificate"),
        ("EKPub", "missing endorsement key public blob"),
        ("DevIDCert", "no DevID certificate to attest"),
    ] {
        let outcome = judged(&server, &taken(&[missing]), &mut Unasked).await;
        assert_error!(outcome, Invalid, word);
    }
    let (theirs, _) = opened(&thief).await;
    for (names, word) in [
        (
            &["DevIDCert"][..],
            "is not the one in the DevID certificate",
        ),
        (&["DevIDPub"], "is not the one in the DevID certificate"),
        (&["DevIDCert", "DevIDPub"], "certify failed"),
        (
            &["AKPub"],
            "the signature of the attestation key does not verify",
        ),
        (&["EKPub"], "modulus or exponent mismatch"),
        (&["EKCert"], "modulus or exponent mismatch"),
        (
            &["CertificationSignature"],
            "the signature of the attestation key does not verify",
        ),
        (
            &["CertifiedDevID"],
            "the signature of the attestation key does not verify",
        ),
    ] {
        let outcome = judged(&server, &from(&theirs, names), &mut Unasked).await;
        assert_error!(outcome, Refused, word);
    }
    // All of the node, but the endorsement key of a TPM that the thief has: the secret is for that one, which has not the node's AK.
    let (theirs, conversation) = opened(&thief).await;
    let mut way = Changed {
        conversation,
        challenge: |_: &mut Value| (),
        answer: |_: &mut Value| (),
    };
    let outcome = judged(&server, &from(&theirs, &["EKPub", "EKCert"]), &mut way).await;
    assert_error!(
        outcome,
        Internal,
        "unable to solve proof of residency challenge"
    );
}

#[tokio::test]
async fn wrong_answers_are_refused() {
    let Some(site) = Site::new() else { return };
    let tpm = site.maker.make(NONE);
    site.provision(&tpm, "node", DevIdKind::Ecdsa, NONE);
    let server = site.server().await;
    let agent = site.agent(&tpm, "node").await;
    let other = STANDARD.encode([7; 32]);
    for (challenge, answer, word) in [
        (
            json!({ "DevID": other }),
            json!({}),
            "devID challenge verification failed",
        ),
        (
            json!({}),
            json!({ "DevID": "" }),
            "devID challenge verification failed",
        ),
        (
            json!({}),
            json!({ "CredActivation": other }),
            "credential activation failed: nonces are different",
        ),
        (
            json!({}),
            json!({ "CredActivation": null }),
            "credential activation failed: nonces are different",
        ),
    ] {
        let with = |changes: Value| {
            move |message: &mut Value| {
                for (name, value) in changes.as_object().unwrap() {
                    message[name] = value.clone();
                }
            }
        };
        let (payload, conversation) = opened(&agent).await;
        let mut way = Changed {
            conversation,
            challenge: with(challenge),
            answer: with(answer),
        };
        assert_error!(judged(&server, &payload, &mut way).await, Refused, word);
    }
}

#[tokio::test]
async fn a_key_that_may_leave_its_tpm_is_refused() {
    let Some(site) = Site::new() else { return };
    let tpm = site.maker.make(NONE);
    site.provision(&tpm, "node", DevIdKind::Movable, NONE);
    let agent = site.agent(&tpm, "node").await;
    let outcome = attest(&agent, &site.server().await, SystemTime::now()).await;
    assert_error!(
        outcome,
        Refused,
        "the DevID key was not made by the TPM, or may leave it",
        "fixedTPM"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let Some(site) = Site::new() else { return };
    let tpm = site.maker.make(NONE);
    site.provision(&tpm, "node", DevIdKind::Ecdsa, NONE);
    site.provision(&tpm, "other", DevIdKind::Ecdsa, NONE);
    for (change, word) in [
        (
            (|it, _| it.devid_cert_path = PathBuf::new()) as fn(&mut TpmDevIdAgentConfig, &Path),
            "devid_cert_path is required",
        ),
        (
            |it, _| it.devid_priv_path = PathBuf::new(),
            "devid_priv_path is required",
        ),
        (
            |it, _| it.devid_pub_path = PathBuf::new(),
            "devid_pub_path is required",
        ),
        (
            |it, at| it.devid_cert_path = at.join("none.pem"),
            "none.pem",
        ),
        (
            |it, at| it.devid_cert_path = at.join("node.pub"),
            "cannot load certificate(s)",
        ),
        (
            |it, at| it.devid_priv_path = at.join("none.priv"),
            "none.priv",
        ),
        (
            |it, at| it.devid_pub_path = at.join("node.pem"),
            "is not taken, but RSA and ECC alone",
        ),
        (
            |it, at| it.devid_pub_path = at.join("other.pub"),
            "it is not the key in the certificate",
        ),
    ] {
        let mut config = site.config(&tpm, "node");
        change(&mut config, site.folder.path());
        assert_error!(TpmDevIdAgent::configure(config).await, Invalid, word);
    }
    let trusting = site.trusting();
    for (devid, endorsement, word) in [
        ("", "endorsement.pem", "devid_ca_path is required"),
        ("node.pem", "", "endorsement_ca_path is required"),
        (
            "node.pub",
            "endorsement.pem",
            "unable to load DevID trust bundle",
        ),
        (
            "node.pem",
            "none.pem",
            "unable to load endorsement trust bundle",
        ),
    ] {
        let path = |name: &str| match name {
            "" => PathBuf::new(),
            name => site.path(name),
        };
        let config = TpmDevIdServerConfig {
            devid_ca_path: path(devid),
            endorsement_ca_path: path(endorsement),
        };
        assert_error!(server(config).await, Invalid, word);
    }
    server(trusting).await.unwrap();
}
