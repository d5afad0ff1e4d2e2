//! Workloads built on clients that others wrote, and on our own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ah_identity_provider::spiffe::{Choice, SpiffeConfig, SpiffeProvider};
use ah_identity_provider::{CertificateFacts, Provider};
use ah_testkit::process::Process;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use spiffe::{JwtSource, WorkloadApiClient, X509Source};

use super::rig::{Rig, WORKLOAD};

fn sha256(der: &[u8]) -> String {
    CertificateFacts::from_der(der).unwrap().sha256
}

/// What each of them does, told by its lines.
fn follow(rig: &Rig, command: &mut Command) {
    let served = rig.identities.rotate();
    let mut workload = Process::start(command);
    workload.wait_for(&format!("svid {WORKLOAD} {}", sha256(served.der())));
    let served = rig.identities.rotate();
    workload.wait_for(&format!("rotated {WORKLOAD} {}", sha256(served.der())));
    workload.wait_for(&format!("mtls with {WORKLOAD}"));
    workload.wait_for(&format!("jwt by its bundle {WORKLOAD}"));
    workload.wait_for(&format!("jwt by the agent {WORKLOAD}"));
    workload.wait_for("done");
    assert!(workload.wait().success(), "{:?}", workload.lines());
}

/// Whether a test has what it needs; with CI set it has to.
fn there(what: &str, found: bool) -> bool {
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "{what} is missing, and CI is set"
        );
        println!("skipped: {what} is missing (make setup)");
    }
    found
}

/// The program of the folder `name` of `tests/go`, where there is Go to build it with.
pub(crate) fn built_in_go(name: &str) -> Option<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go");
    ah_testkit::go::build(&module, &format!("./{name}"), name)
}

#[test]
fn a_workload_in_go_is_served() {
    let Some(program) = built_in_go("workload") else {
        return;
    };
    let rig = Rig::new();
    follow(&rig, Command::new(program).arg(rig.socket()));
}

#[test]
fn a_workload_in_python_is_served() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let imports = Command::new(&python).args(["-c", "import spiffe"]).output();
    let found = imports.is_ok_and(|output| output.status.success());
    if !there("py-spiffe in target/venv", found) {
        return;
    }
    let rig = Rig::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workload/workload.py");
    follow(
        &rig,
        Command::new(python)
            .arg(script)
            .arg(rig.socket())
            .arg(rig.directory.path())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
}

#[test]
fn a_workload_on_the_spiffe_crate_is_served() {
    let rig = Rig::new();
    let served = rig.identities.rotate();
    let endpoint = format!("unix://{}", rig.socket().display());
    rig.run(async {
        let source = X509Source::builder()
            .endpoint(&endpoint)
            .build()
            .await
            .unwrap();
        let mut updates = source.updated();
        assert_eq!(
            source.svid().unwrap().leaf().as_ref(),
            served.der().as_ref()
        );
        let served = rig.identities.rotate();
        while source.svid().unwrap().leaf().as_ref() != served.der().as_ref() {
            updates.changed().await.unwrap();
        }
        assert_eq!(mtls(&source), WORKLOAD);

        let jwts = JwtSource::builder()
            .endpoint(&endpoint)
            .build()
            .await
            .unwrap();
        let token = jwts.fetch_jwt_svid(["rust", "more"]).await.unwrap();
        assert_eq!(token.spiffe_id().to_string(), WORKLOAD);
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
        let valid = client
            .validate_jwt_token("more", token.token())
            .await
            .unwrap();
        assert_eq!(valid.spiffe_id().to_string(), WORKLOAD);
        assert!(
            client
                .validate_jwt_token("other", token.token())
                .await
                .is_err()
        );
        jwts.shutdown().await;
        source.shutdown().await;
    });
}

/// Both ends have the identity of `source`; gives the name that the server saw.
fn mtls(source: &X509Source) -> String {
    let svid = source.svid().unwrap();
    let chain = svid.cert_chain().iter();
    let chain: Vec<_> = chain
        .map(|one| CertificateDer::from(one.as_ref().to_vec()))
        .collect();
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_ref().to_vec());
    let bundle = source
        .try_bundle_for_trust_domain(svid.spiffe_id().trust_domain())
        .unwrap();
    let mut roots = RootCertStore::empty();
    for root in bundle.authorities() {
        roots
            .add(CertificateDer::from(root.as_ref().to_vec()))
            .unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.clone().into(), Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain.clone(), PrivateKeyDer::from(key.clone_key()))
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from(key))
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    while server.is_handshaking() || client.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    let seen = server.peer_certificates().unwrap();
    CertificateFacts::from_der(&seen[0]).unwrap().uris[0].clone()
}

// SP-1, SP-2: what `ah --identity spiffe` runs.
#[test]
fn our_own_provider_is_served_rotated_and_served_by_the_next_agent() {
    let mut rig = Rig::new();
    let first = rig.identities.rotate();
    let mut provider = SpiffeProvider::new(SpiffeConfig {
        endpoint: rig.socket().to_str().unwrap().parse().unwrap(),
        choice: Choice::default(),
    });
    let identity = rig.run(provider.next()).unwrap();
    assert_eq!(identity.chain()[0], *first.der());
    let root = rig.identities.ca.der().clone();
    let domain = super::rig::domain("example.org");
    assert_eq!(identity.bundles().domains[&domain], [root]);

    let second = rig.identities.rotate();
    let identity = rig.run(provider.next()).unwrap();
    assert_eq!(identity.chain()[0], *second.der());

    rig.stop();
    let third = rig.identities.rotate();
    assert!(rig.run(provider.next()).is_err());
    rig.start();
    let identity = rig.run(provider.next()).unwrap();
    assert_eq!(identity.chain()[0], *third.der());

    rig.identities.unregister();
    let error = rig.run(provider.next()).err().unwrap();
    assert!(error.to_string().contains("no identity issued"), "{error}");
}
