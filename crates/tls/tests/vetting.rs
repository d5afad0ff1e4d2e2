//! The vetting of our own identity says what a peer would say, before a peer does.

use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Vet};
use ah_testkit::ca::{KeyType, TestCa};
use ah_tls::{IdentityVet, Role};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn er_6_the_key_of_another_certificate() {
    // ER-6
    let ca = TestCa::new("example.org");
    let other = ca.leaf().dns("b.example.org").issue();
    let leaf = ca.leaf().dns("a.example.org").issue();
    let vet = IdentityVet::new(Role::Executor, false);
    vet.vet(&leaf.identity(&[&ca]), SystemTime::now()).unwrap();
    let crossed = leaf.with_key_of(&other).identity(&[&ca]);
    let error = vet.vet(&crossed, SystemTime::now()).unwrap_err();
    assert_eq!(error.code, Code::KeyMismatch);
    assert_eq!(error.text, "private key does not match certificate");
}

#[test]
fn er_4_dates_are_judged_by_the_given_clock() {
    // ER-4: also where the peer trusts another root.
    let ca = TestCa::new("example.org");
    let stranger = TestCa::new("other.org");
    let leaf = ca.leaf().dns("a.example.org").valid_for(2 * HOUR).issue();
    let vet = IdentityVet::new(Role::AccessPoint, false);
    for root in [&ca, &stranger] {
        let identity = leaf.identity(&[root]);
        vet.vet(&identity, SystemTime::now()).unwrap();
        for now in [SystemTime::now() + 3 * HOUR, SystemTime::now() - 3 * HOUR] {
            let error = vet.vet(&identity, now).unwrap_err();
            assert_eq!(error.code, Code::ExpiredOrNotYetValid);
            assert_eq!(error.text, "certificate has expired or is not yet valid");
            let causes = error.causes.join("\n");
            assert!(causes.contains("our certificate") && causes.contains("our clock says"));
        }
    }
}

#[test]
fn er_5_a_chain_in_the_wrong_order_under_a_foreign_root() {
    // ER-5: where our own bundle does not tell, links are still looked at.
    let ca = TestCa::new("example.org");
    let stranger = TestCa::new("other.org");
    let first = ca.intermediate().issue();
    let second = first.intermediate().issue();
    let leaf = second.leaf().dns("a.example.org").issue();
    let vet = IdentityVet::new(Role::Executor, false);
    vet.vet(&leaf.identity(&[&stranger]), SystemTime::now())
        .unwrap();
    let swapped = leaf.with_intermediates(&[first.der(), second.der()]);
    let error = vet
        .vet(&swapped.identity(&[&stranger]), SystemTime::now())
        .unwrap_err();
    assert_eq!(error.code, Code::NoLocalIssuer);
}

#[test]
fn a_role_that_the_extended_key_usage_forbids_is_refused() {
    let ca = TestCa::new("example.org");
    let identity = ca
        .leaf()
        .dns("a.example.org")
        .client_only()
        .issue()
        .identity(&[&ca]);
    let now = SystemTime::now();
    IdentityVet::new(Role::Executor, false)
        .vet(&identity, now)
        .unwrap();
    let error = IdentityVet::new(Role::AccessPoint, false)
        .vet(&identity, now)
        .unwrap_err();
    assert!(error.causes.join("").contains("extended key usage"));
}

#[test]
fn ap_8_strict_svid_refuses_what_only_the_issuer_is_told() {
    // AP-8
    let ca = TestCa::new("example.org");
    let leaf = ca
        .leaf()
        .spiffe("spiffe://example.org/a")
        .without_key_usage()
        .issue();
    let identity = leaf.svid_identity(&[&ca]);
    let now = SystemTime::now();
    IdentityVet::new(Role::Executor, false)
        .vet(&identity, now)
        .unwrap();
    let error = IdentityVet::new(Role::Executor, true)
        .vet(&identity, now)
        .unwrap_err();
    assert!(error.causes.join("").contains("SV-28"));
}

#[test]
fn fi_1_every_kind_of_key() {
    // FI-1
    let ca = TestCa::root("example.org")
        .key_type(KeyType::Rsa2048)
        .issue();
    for key in [
        KeyType::P256,
        KeyType::P384,
        KeyType::Ed25519,
        KeyType::Rsa2048,
    ] {
        let leaf = ca.leaf().dns("a.example.org").key_type(key).issue();
        IdentityVet::new(Role::Executor, false)
            .vet(&leaf.identity(&[&ca]), SystemTime::now())
            .unwrap();
    }
}
