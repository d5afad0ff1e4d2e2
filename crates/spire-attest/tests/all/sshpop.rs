//! `sshpop`, with keys and certificates that OpenSSH's `ssh-keygen` makes.

mod hostile;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::sshpop::{
    SshPopAgent, SshPopAgentConfig, SshPopServer, SshPopServerConfig,
};
use ah_spire_attest::node::{AttestedAgent, BuiltinAgent, BuiltinServer};
use ah_testkit::node_suite::{self, NodeFixture, attest};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use spiffe::TrustDomain;
use tempfile::TempDir;

use crate::x509pop::{NoTokens, Own, trust_domain};

/// A folder where `ssh-keygen` works.
struct Keys(TempDir);

impl Keys {
    /// `None` when there is no `ssh-keygen`, as [`ah_testkit::need`] tells.
    fn new() -> Option<Self> {
        ah_testkit::need("ssh-keygen").then(|| Self(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, args: &[&str]) {
        let mut command = Command::new("ssh-keygen");
        let command = command.arg("-q").args(args).current_dir(self.0.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// A key of the `kind` that `-t` and `-b` take, such as `ecdsa -b 384`.
    fn make(&self, name: &str, kind: &str) {
        let mut args = vec!["-t"];
        args.extend(kind.split(' '));
        args.extend(["-N", "", "-C", name, "-f", name]);
        self.run(&args);
    }

    /// Has `ca` certify `key` with `args`.
    fn certify(&self, ca: &str, key: &str, args: &[&str]) {
        let public = format!("{key}.pub");
        let mut all = vec!["-s", ca, "-I", "node 7", "-z", "77"];
        all.extend(args);
        all.push(&public);
        self.run(&all);
    }

    /// A host's key of `kind` that a new CA certifies for `host.example.org`.
    fn host(&self, ca: &str, key: &str, kind: &str) {
        self.make(ca, "ed25519");
        self.make(key, kind);
        self.certify(ca, key, HOST);
    }

    /// The server that trusts `ca`, with the settings that `change` makes.
    async fn server(
        &self,
        ca: &str,
        change: impl FnOnce(&mut SshPopServerConfig),
    ) -> Result<SshPopServer, AttestError> {
        let mut config = SshPopServerConfig {
            cert_authorities: vec![self.text(&format!("{ca}.pub"))],
            ..SshPopServerConfig::default()
        };
        change(&mut config);
        SshPopServer::configure(config, trust_domain()).await
    }

    async fn agent(&self, key: &str) -> Result<SshPopAgent, AttestError> {
        SshPopAgent::configure(SshPopAgentConfig {
            host_key_path: self.path(key),
            host_cert_path: self.path(&format!("{key}-cert.pub")),
        })
        .await
    }

    /// What a server that trusts `ca`, with the settings that `change` makes, says of `key` now.
    async fn outcome(
        &self,
        ca: &str,
        key: &str,
        change: impl FnOnce(&mut SshPopServerConfig),
    ) -> Result<AttestedAgent, AttestError> {
        let server = self.server(ca, change).await.unwrap();
        attest(&self.agent(key).await.unwrap(), &server, SystemTime::now()).await
    }

    /// The bytes of a certificate.
    fn certificate(&self, key: &str) -> Vec<u8> {
        let text = self.text(&format!("{key}-cert.pub"));
        STANDARD.decode(text.split(' ').nth(1).unwrap()).unwrap()
    }
}

/// How hosts are certified.
const HOST: &[&str] = &[
    "-h",
    "-n",
    "host.example.org,host",
    "-V",
    "20200101:21000101",
];

/// An error that is of this sort and says all of `words`.
macro_rules! assert_error {
    ($outcome:expr, $sort:ident, $($word:expr),+ $(,)?) => {
        let error = $outcome.map(|_| ()).unwrap_err();
        assert!(matches!(error, AttestError::$sort(_)), "{error:?}");
        crate::assert_told(&error, "sshpop", &[$($word),+]);
    };
}
use assert_error;

struct Fixture {
    keys: Keys,
    server: std::cell::RefCell<Option<SshPopServer>>,
    honest: SshPopAgent,
    impostor: SshPopAgent,
}

impl Fixture {
    async fn new(kind: &str) -> Option<Self> {
        let keys = Keys::new()?;
        keys.host("ca", "host", kind);
        keys.host("other-ca", "other", kind);
        let server = keys.server("ca", |_| ()).await.unwrap();
        Some(Self {
            server: Some(server).into(),
            honest: keys.agent("host").await.unwrap(),
            impostor: keys.agent("other").await.unwrap(),
            keys,
        })
    }
}

impl NodeFixture for Fixture {
    type Agent = BuiltinAgent;
    type Server = BuiltinServer<NoTokens, Own>;

    const NAME: &'static str = "sshpop";
    const CHALLENGES: usize = 1;
    const CAN_REATTEST: bool = true;

    fn server(&self) -> Self::Server {
        let server = self.server.take().expect("one server is enough");
        BuiltinServer::SshPop(Box::new(server))
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> BuiltinAgent {
        BuiltinAgent::SshPop(self.honest.clone())
    }

    fn impostor(&self) -> BuiltinAgent {
        BuiltinAgent::SshPop(self.impostor.clone())
    }

    fn secrets(&self) -> Vec<String> {
        let key = self.keys.text("host");
        let lines = key.lines().filter(|line| !line.starts_with('-'));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn it_conforms_with_every_kind_of_key() {
    for kind in [
        "ed25519",
        "ecdsa -b 256",
        "ecdsa -b 384",
        "ecdsa -b 521",
        "rsa -b 2048",
    ] {
        let Some(fixture) = Fixture::new(kind).await else {
            return;
        };
        node_suite::conforms(fixture).await;
    }
}

#[tokio::test]
async fn every_kind_of_ca_vouches() {
    let Some(keys) = Keys::new() else { return };
    keys.make("host", "ed25519");
    for (ca, kind) in [
        ("a", "ecdsa -b 256"),
        ("b", "ecdsa -b 521"),
        ("c", "rsa -b 2048"),
    ] {
        keys.make(ca, kind);
        keys.certify(ca, "host", HOST);
        let attested = keys.outcome(ca, "host", |_| ()).await.unwrap();
        assert!(attested.can_reattest && attested.selectors.is_empty());
    }
}

// Inventory, NodeAttestor sshpop: the agent is named by the fingerprint of the certificate, or by agent_path_template.
#[tokio::test]
async fn the_agent_is_named_after_its_certificate() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    let attested = keys.outcome("ca", "host", |_| ()).await.unwrap();
    let fingerprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, &keys.certificate("host")));
    let expected = format!("/spire/agent/sshpop/{fingerprint}");
    assert_eq!(attested.id.path(), expected);

    for (domain, template, path) in [
        (
            "",
            "/{{ .PluginName }}/{{ .Hostname }}",
            "sshpop/host.example.org",
        ),
        ("example.org", "/{{ .Hostname }}", "host"),
        ("org", "/{{ .Hostname | upper }}", "HOST.EXAMPLE"),
        (
            "",
            "/static/{{ index .ValidPrincipals 0 }}/{{ index .ValidPrincipals 1 }}",
            "static/host.example.org/host",
        ),
        (
            "",
            "/{{ .Serial }}/{{ .CertType }}/{{ .KeyId | nospace }}",
            "77/2/node7",
        ),
    ] {
        let outcome = keys.outcome("ca", "host", |config| {
            config.canonical_domain = domain.into();
            config.agent_path_template = template.into();
        });
        let id = outcome.await.unwrap().id;
        assert_eq!(id.path(), format!("/spire/agent/{path}"));
    }
    for (template, word) in [
        (
            "/{{ index .ValidPrincipals 2 }}",
            "has 2 principals, counted from 0, and none at 2",
        ),
        ("/{{ .KeyId }}", "invalid agent path suffix \"/node 7\""),
    ] {
        let outcome = keys.outcome("ca", "host", |config| {
            config.agent_path_template = template.into();
        });
        assert_error!(outcome.await, Internal, "failed to create AgentID", word);
    }
}

#[tokio::test]
async fn authorities_come_from_settings_and_file() {
    let Some(keys) = Keys::new() else { return };
    keys.host("one", "host-1", "ed25519");
    keys.host("two", "host-2", "ed25519");
    keys.host("three", "host-3", "ed25519");
    let file = keys.path("cas");
    let (two, three) = (keys.text("two.pub"), keys.text("three.pub"));
    let lines = format!("# of hosts\n\n{two}\ncert-authority,from=\"a b,\\\" c\" {three}\n");
    std::fs::write(&file, lines).unwrap();
    let server = keys.server("one", |config| config.cert_authorities_path = file);
    let server = server.await.unwrap();
    for host in ["host-1", "host-2", "host-3"] {
        let agent = keys.agent(host).await.unwrap();
        attest(&agent, &server, SystemTime::now()).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_without_usable_authorities_does_not_start() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    keys.make("dsa", "dsa");
    let with = |lines: Vec<String>, file: &str| {
        let path = match file {
            "" => PathBuf::new(),
            file => keys.path(file),
        };
        SshPopServer::configure(
            SshPopServerConfig {
                cert_authorities: lines,
                cert_authorities_path: path,
                ..SshPopServerConfig::default()
            },
            trust_domain(),
        )
    };
    assert_error!(
        with(vec![], "").await,
        Invalid,
        "missing required config value for \"cert_authorities\""
    );
    assert_error!(
        with(vec![], "none").await,
        Invalid,
        "unable to load cert authorities",
        "none"
    );
    std::fs::write(keys.path("empty"), "# nobody\n").unwrap();
    assert_error!(
        with(vec![], "empty").await,
        Invalid,
        "no data found in file"
    );
    for (line, word) in [
        ("ssh-ed25519", "no key found"),
        ("ssh-ed25519 AAAA", "no key found"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "it ends too early"),
    ] {
        assert_error!(
            with(vec![line.into()], "").await,
            Invalid,
            "failed to parse public key",
            line,
            word
        );
    }
    let mismatched = keys.text("ca.pub").replace("ssh-ed25519", "ssh-rsa");
    assert_error!(with(vec![mismatched], "").await, Invalid, "no key found");
    let certificate = keys.text("host-cert.pub");
    assert_error!(
        with(vec![certificate], "").await,
        Invalid,
        "it is a certificate, not a key"
    );
    assert_error!(
        with(vec![], "dsa.pub").await,
        Invalid,
        "a key of type \"ssh-dss\" is not taken"
    );
    let template = keys.server("ca", |config| {
        config.agent_path_template = "/{{ .Host }}".into()
    });
    assert_error!(
        template.await,
        Invalid,
        "agent svid template",
        "index .ValidPrincipals"
    );
    let template = keys.server("ca", |config| {
        config.agent_path_template = "/{{ index .KeyId 0 }}".into()
    });
    assert_error!(template.await, Invalid, "index is not served");
}

#[tokio::test]
async fn keys_in_pem_are_taken() {
    let Some(keys) = Keys::new() else { return };
    for (host, kind, format) in [
        ("a", "rsa -b 2048", "PEM"),
        ("b", "rsa -b 2048", "PKCS8"),
        ("c", "ecdsa -b 384", "PEM"),
        ("d", "ecdsa -b 256", "PKCS8"),
    ] {
        let ca = format!("ca-{host}");
        keys.host(&ca, host, &format!("{kind} -m {format}"));
        assert!(!keys.text(host).contains("OPENSSH"));
        keys.outcome(&ca, host, |_| ()).await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_says_what_is_wrong_with_its_files() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    keys.host("other-ca", "other", "rsa -b 2048");
    let config = |key: &str, cert: &str| SshPopAgentConfig {
        host_key_path: keys.path(key),
        host_cert_path: keys.path(cert),
    };
    let wrong = |key: &str, cert: &str| SshPopAgent::configure(config(key, cert));
    assert_error!(
        wrong("none", "host-cert.pub").await,
        Invalid,
        "unable to load host key",
        "ls -l"
    );
    assert_error!(
        wrong("host", "none").await,
        Invalid,
        "unable to load host cert",
        "ls -l"
    );
    assert_error!(
        wrong("host.pub", "host-cert.pub").await,
        Invalid,
        "host key",
        "host.pub"
    );
    assert_error!(
        wrong("host", "host.pub").await,
        Invalid,
        "\"ssh-ed25519\" is no type of certificate",
        "ssh-keygen -s CA -h"
    );
    assert_error!(
        wrong("other", "host-cert.pub").await,
        Invalid,
        "is not the one in the certificate",
        "ssh-keygen -l -f"
    );
    std::fs::write(keys.path("nothing"), "nothing here\n").unwrap();
    assert_error!(wrong("host", "nothing").await, Invalid, "it holds no key");
    let truncated: String = keys
        .text("other")
        .lines()
        .take(5)
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(
        keys.path("truncated"),
        truncated + "-----END OPENSSH PRIVATE KEY-----\n",
    )
    .unwrap();
    assert_error!(
        wrong("truncated", "other-cert.pub").await,
        Invalid,
        "truncated"
    );
    keys.run(&["-p", "-N", "swordfish", "-f", "host"]);
    assert_error!(
        wrong("host", "host-cert.pub").await,
        Invalid,
        "it has a passphrase (aes256-ctr)",
        "ssh-keygen -p"
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_at_the_next_attestation() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    let server = keys.server("ca", |_| ()).await.unwrap();
    let agent = keys.agent("host").await.unwrap();
    let before = attest(&agent, &server, SystemTime::now()).await.unwrap();
    keys.certify("ca", "host", HOST);
    let after = attest(&agent, &server, SystemTime::now()).await.unwrap();
    assert_ne!(before.id, after.id);
}

/// The file `name` beside the others.
fn beside(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}
