//! The dev provider and its authority on disk.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::dev::{
    ACCESS_POINT_ID, DevConfig, DevProvider, DevRole, path_segment, refuse_non_loopback,
};
use ah_identity_provider::{
    CertificateFacts, Clock, Code, Identity, Provider, ProviderError, SystemClock,
};
use proptest::prelude::*;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::common::{HeldClock, Log};

fn access_point(state: &Path, clock: Arc<dyn Clock>) -> DevProvider {
    let role = DevRole::AccessPoint {
        names: vec!["machine.example".to_owned()],
        ips: vec![],
    };
    DevProvider::new(DevConfig::new(state, role), clock)
}

fn executor(state: &Path, name: &str) -> DevProvider {
    let role = DevRole::Executor {
        name: name.to_owned(),
    };
    DevProvider::new(DevConfig::new(state, role), Arc::new(SystemClock))
}

fn only_root(identity: &Identity) -> &[u8] {
    let bundles = identity.bundles();
    assert!(bundles.unscoped.is_empty(), "dev roots speak for dev alone");
    let (domain, roots) = bundles.domains.iter().next().unwrap();
    assert_eq!(domain.to_string(), "ah-dev");
    assert_eq!((bundles.domains.len(), roots.len()), (1, 1));
    roots.first().unwrap()
}

#[tokio::test]
async fn dv_1_both_sides_come_from_one_authority() {
    let state = tempfile::tempdir().unwrap();
    let server = access_point(state.path(), Arc::new(SystemClock))
        .next()
        .await
        .unwrap();
    let client = executor(state.path(), "build-1").next().await.unwrap();
    assert_eq!(only_root(&server), only_root(&client));

    let leaf = server.leaf();
    assert_eq!(leaf.uris, [ACCESS_POINT_ID]);
    assert_eq!(leaf.dns, ["localhost", "machine.example"]);
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    assert_eq!(leaf.ips, loopback);
    assert_eq!(client.leaf().uris, ["spiffe://ah-dev/ah/agent/build-1"]);
    let now = SystemTime::now();
    assert!(leaf.not_before < now && leaf.not_after <= now + Duration::from_secs(3600));
    assert!(leaf.not_after > now + Duration::from_secs(3500));
}

// DV-1: modes.
#[tokio::test]
async fn dv_1_the_authority_is_private_to_its_user() {
    let state = tempfile::tempdir().unwrap();
    executor(state.path(), "one").next().await.unwrap();
    let mode = |name: &str| {
        let found = fs::metadata(state.path().join(name)).unwrap();
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode("dev"), 0o700);
    assert_eq!(mode("dev/ca-key.pem"), 0o600);
}

// The I rows of the SPIFFE checklist, read from the certificates themselves.
#[tokio::test]
async fn dv_1_certificates_obey_the_issuer_rows_of_spiffe() {
    let state = tempfile::tempdir().unwrap();
    let identity = access_point(state.path(), Arc::new(SystemClock))
        .next()
        .await
        .unwrap();
    let (_, leaf) = X509Certificate::from_der(identity.chain().first().unwrap()).unwrap();
    let (_, root) = X509Certificate::from_der(only_root(&identity)).unwrap();

    // SV-17: the ID is a URI SAN. SV-23: the subject is not empty, so the SAN need not be critical.
    assert!(leaf.subject().iter().count() > 0 && root.subject().iter().count() > 0);
    // SV-24: the signing certificate's ID has no path.
    let root_facts = CertificateFacts::from_der(only_root(&identity)).unwrap();
    assert_eq!(root_facts.uris, ["spiffe://ah-dev"]);
    // SV-27: the signer is a CA, and says so critically.
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    // SV-28, SV-29: key usage is present and critical. SV-30, SV-31: and the right one.
    let root_usage = root.key_usage().unwrap().unwrap();
    assert!(root_usage.critical && root_usage.value.key_cert_sign());
    assert!(root_usage.value.crl_sign() && !root_usage.value.digital_signature());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    assert!(!identity.leaf().is_ca);
    // SV-34: both purposes.
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth);
    // RFC 5280 §4.1.2.2
    assert!(leaf.raw_serial().len() <= 20 && leaf.raw_serial().first().unwrap() & 0x80 == 0);
}

// DV-1: made under a lock, however many begin at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dv_1_many_first_uses_at_once_make_one_authority() {
    let state = tempfile::tempdir().unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let mut provider = executor(state.path(), &format!("e-{n}"));
            tokio::spawn(async move { provider.next().await.unwrap() })
        })
        .collect();
    let mut roots = Vec::new();
    for task in tasks {
        roots.push(only_root(&task.await.unwrap()).to_vec());
    }
    roots.dedup();
    assert_eq!(roots.len(), 1);
}

// DV-1: whatever a killed process leaves is completed.
#[tokio::test]
async fn dv_1_an_interrupted_first_use_is_completed() {
    let state = tempfile::tempdir().unwrap();
    let dev = state.path().join("dev");
    let first = executor(state.path(), "one").next().await.unwrap();
    let key = fs::read(dev.join("ca-key.pem")).unwrap();

    // Killed between key and certificate, with a temporary file half written.
    fs::remove_file(dev.join("ca.pem")).unwrap();
    fs::write(dev.join("ca.pem.new"), "-----BEGIN CERT").unwrap();
    let second = executor(state.path(), "one").next().await.unwrap();
    assert_ne!(only_root(&first), only_root(&second));
    assert_eq!(fs::read(dev.join("ca-key.pem")).unwrap(), key);
    assert!(!dev.join("ca.pem.new").exists());

    // Killed before the key was in place.
    fs::remove_dir_all(&dev).unwrap();
    fs::create_dir(&dev).unwrap();
    fs::write(dev.join("ca-key.pem.new"), "").unwrap();
    executor(state.path(), "one").next().await.unwrap();
}

// DV-1: certificates rotate like the others.
#[tokio::test(start_paused = true)]
async fn dv_1_certificates_are_renewed_at_two_thirds_of_their_life() {
    let state = tempfile::tempdir().unwrap();
    let clock = HeldClock::new();
    let mut provider = access_point(state.path(), Arc::new(clock.clone()));
    assert_eq!(provider.next_renewal(), None);
    let first = provider.next().await.unwrap();
    let renewal = provider.next_renewal().unwrap();
    let after = renewal.duration_since(clock.now()).unwrap();
    assert!(after <= Duration::from_secs(2400) && after > Duration::from_secs(2200));

    clock.advance(after - Duration::from_secs(1));
    let early = tokio::time::timeout(Duration::from_secs(90), provider.next());
    assert!(early.await.is_err(), "renewed before its time");
    clock.advance(Duration::from_secs(1));
    let second = provider.next().await.unwrap();
    assert!(!second.same_material(&first));
    assert!(second.leaf().not_after > first.leaf().not_after);

    // A clock put back makes a certificate from the future, which is renewed too.
    clock.put_back(Duration::from_secs(7200));
    let third = tokio::time::timeout(Duration::from_secs(90), provider.next());
    let third = third.await.expect("renewed").unwrap();
    assert!(third.leaf().not_after < second.leaf().not_after);
}

// DV-1: an authority near its end gets a new certificate for the same key.
#[tokio::test]
async fn dv_1_an_authority_near_its_end_is_made_anew() {
    let (log, _guard) = Log::start();
    let state = tempfile::tempdir().unwrap();
    let clock = HeldClock::new();
    let mut provider = access_point(state.path(), Arc::new(clock.clone()));
    let first = provider.next().await.unwrap();
    clock.advance(Duration::from_secs(3640 * 24 * 3600));
    let second = provider.next().await.unwrap();
    assert_ne!(only_root(&first), only_root(&second));
    assert!(second.leaf().not_after > clock.now());
    assert_eq!(log.lines_with("WARN").len(), 1);
    let roots = [&first, &second].map(|identity| {
        let (_, root) = X509Certificate::from_der(only_root(identity)).unwrap();
        (root.public_key().raw.to_vec(), root.raw_serial().to_vec())
    });
    let [(old_key, old_serial), (new_key, new_serial)] = roots;
    assert_eq!(old_key, new_key);
    assert_ne!(old_serial, new_serial);
}

// DV-1: an authority that was replaced on disk is picked up at the next issue.
#[tokio::test]
async fn dv_1_a_replaced_authority_is_picked_up() {
    let state = tempfile::tempdir().unwrap();
    let mut provider = executor(state.path(), "one");
    let first = provider.next().await.unwrap();
    fs::remove_dir_all(state.path().join("dev")).unwrap();
    provider.refresh();
    let second = provider.next().await.unwrap();
    assert_ne!(only_root(&first), only_root(&second));
}

// DV-1: what cannot be used is named, with the remedy, and never overwritten.
#[tokio::test]
async fn dv_1_a_corrupt_authority_is_named() {
    let other = tempfile::tempdir().unwrap();
    executor(other.path(), "one").next().await.unwrap();
    let foreign_key = fs::read_to_string(other.path().join("dev/ca-key.pem")).unwrap();
    for (file, content) in [
        ("ca.pem", "garbage"),
        ("ca.pem", ""),
        ("ca-key.pem", "garbage"),
        ("ca-key.pem", foreign_key.as_str()),
    ] {
        let state = tempfile::tempdir().unwrap();
        executor(state.path(), "one").next().await.unwrap();
        let path = state.path().join("dev").join(file);
        fs::write(&path, content).unwrap();
        let error = executor(state.path(), "one").next().await.err().unwrap();
        assert!(matches!(error, ProviderError::Operator(_)));
        let report = error.explained().report();
        assert!(report.contains(&path.display().to_string()), "{report}");
        assert!(report.contains("hint: remove it"), "{report}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    let state = tempfile::tempdir().unwrap();
    executor(state.path(), "one").next().await.unwrap();
    fs::remove_file(state.path().join("dev/ca-key.pem")).unwrap();
    let error = executor(state.path(), "one").next().await.err().unwrap();
    assert!(error.explained().report().contains("ca-key.pem"));
}

#[test]
fn dv_2_refusal_names_the_other_providers_and_the_way_round() {
    let refusal = refuse_non_loopback("listen on", "0.0.0.0:4433");
    assert_eq!(refusal.code, Code::Usage);
    assert!(refusal.text.contains("listen on 0.0.0.0:4433"));
    let hint = refusal.hint.unwrap();
    for word in ["files", "spiffe", "vault", "exec", "--dev-allow-remote"] {
        assert!(hint.contains(word), "{hint}");
    }
}

#[test]
fn dv_1_names_become_path_segments() {
    let segment = |name: &str| path_segment(name).unwrap();
    assert_eq!(segment("build-1.example_2"), "build-1.example_2");
    assert_eq!(segment("two words"), "x--two_20words");
    assert_eq!(segment("x--two_20words"), "x--x--two_5f20words");
    assert_eq!(segment(".."), "x--..");
    assert_eq!(segment("é"), "x--_c3_a9");
    assert_eq!(path_segment("").unwrap_err().code, Code::Usage);
    assert_eq!(
        path_segment(&"n".repeat(256)).unwrap_err().code,
        Code::Usage
    );
}

proptest! {
    // DV-1: every name gives a valid SPIFFE ID (SV-11 to SV-15), and no two the same.
    #[test]
    fn dv_1_segments_are_valid_and_distinct(a in "(x--)?[a-z_.0-9 é/]{1,12}", b in "(x--)?[a-z_.0-9 é/]{1,12}") {
        let (first, second) = (path_segment(&a).unwrap(), path_segment(&b).unwrap());
        let id = format!("spiffe://ah-dev/ah/agent/{first}");
        prop_assert!(spiffe::SpiffeId::new(&id).is_ok(), "{}", id);
        prop_assert_eq!(a == b, first == second);
    }
}
