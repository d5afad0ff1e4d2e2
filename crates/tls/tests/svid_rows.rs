//! One test for each row of the SPIFFE checklist, SV-1 to SV-39: a certificate made wrong in just that way
//! is refused, its correct twin is accepted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use ah_identity_provider::Code;
use ah_testkit::ca::{LeafBuilder, TestCa, TestLeaf, usage};
use ah_tls::{
    ExpectedServer, PeerIdentity, Policy, SanRules, Severity, Trust, VerifyError, svid_faults,
    verify_access_point, verify_executor,
};
use rustls::AlertDescription;
use spiffe::SpiffeId;

const ID: &str = "spiffe://example.org/ah/agent/1";

fn judge(ca: &TestCa, leaf: &TestLeaf, strict: bool) -> Result<PeerIdentity, VerifyError> {
    let policy = Policy {
        strict_svid: strict,
        ..Policy::default()
    };
    let now = SystemTime::now();
    // The Workload API's way of trusting and `--ca`'s give the same answer.
    let scoped = verify_executor(leaf.chain(), &Trust::new(&ca.svid_bundles()), &policy, now);
    let unscoped = verify_executor(leaf.chain(), &Trust::new(&ca.bundles()), &policy, now);
    assert_eq!(scoped.is_ok(), unscoped.is_ok());
    let expected = ExpectedServer::SpiffeId(SpiffeId::new(ID).unwrap());
    let trust = Trust::new(&ca.svid_bundles());
    let server = verify_access_point(leaf.chain(), &trust, &expected, strict, now);
    if scoped.is_err() {
        assert!(server.is_err(), "as a server it must be refused as well");
    }
    scoped
}

#[track_caller]
fn accepted(ca: &TestCa, leaf: &TestLeaf) -> PeerIdentity {
    judge(ca, leaf, true).unwrap()
}

/// Refused for `row` whether strict or not, with the row named in the cause and the right alert.
#[track_caller]
fn refused(row: &str, ca: &TestCa, leaf: &TestLeaf) {
    for strict in [false, true] {
        let error = judge(ca, leaf, strict).unwrap_err();
        let causes = error.explained().causes.join("\n");
        assert!(causes.contains(&format!("({row}:")), "{row}: {causes}");
        assert_eq!(error.code(), Code::VerifyFailed);
        assert_eq!(error.alert(), AlertDescription::BadCertificate);
    }
    assert!(
        svid_faults(leaf.chain())
            .iter()
            .any(|fault| fault.row == row && fault.severity == Severity::Validator),
        "{row} is told to `doctor`"
    );
}

/// Accepted with a remark, refused under `--strict-svid`.
#[track_caller]
fn lax(row: &str, ca: &TestCa, leaf: &TestLeaf) {
    let peer = judge(ca, leaf, false).unwrap();
    let named = |fault: &ah_tls::SvidFault| fault.row == row && fault.severity == Severity::Issuer;
    assert!(peer.issuer_faults().iter().any(named), "{row} is noted");
    let error = judge(ca, leaf, true).unwrap_err();
    assert!(
        error
            .explained()
            .causes
            .join("\n")
            .contains(&format!("({row}:"))
    );
    assert!(svid_faults(leaf.chain()).iter().any(named));
}

fn ca() -> TestCa {
    TestCa::new("example.org")
}

fn with_uri(uri: &str) -> (TestCa, TestLeaf) {
    let ca = ca();
    let leaf = ca.leaf().spiffe(uri).issue();
    (ca, leaf)
}

/// A leaf with `ID` and one thing changed.
fn leaf(change: impl FnOnce(LeafBuilder) -> LeafBuilder) -> (TestCa, TestLeaf) {
    let ca = ca();
    let leaf = change(ca.leaf().spiffe(ID)).issue();
    (ca, leaf)
}

macro_rules! bad_uri {
    ($($name:ident: $row:literal, $bad:expr, $good:expr;)*) => {$(
        #[test]
        fn $name() {
            let (ca, bad) = with_uri($bad);
            refused($row, &ca, &bad);
            let (ca, good) = with_uri($good);
            assert_eq!(accepted(&ca, &good).name().to_string(), $good);
        }
    )*};
}

bad_uri! {
    sv_1_scheme: "SV-1", "SPIFFE://example.org/ah/agent/1", ID;
    sv_2_host: "SV-2", "spiffe:///ah/agent/1", ID;
    sv_2_no_authority: "SV-2", "spiffe:/ah/agent/1", ID;
    sv_3_query: "SV-3", "spiffe://example.org/ah/agent/1?a=b", ID;
    sv_3_empty_query: "SV-3", "spiffe://example.org/ah/agent/1?", ID;
    sv_4_fragment: "SV-4", "spiffe://example.org/ah/agent/1#a", ID;
    sv_4_empty_fragment: "SV-4", "spiffe://example.org/ah/agent/1#", ID;
    sv_5_userinfo: "SV-5", "spiffe://root@example.org/ah/agent/1", ID;
    sv_5_empty_userinfo: "SV-5", "spiffe://@example.org/ah/agent/1", ID;
    sv_6_port: "SV-6", "spiffe://example.org:443/ah/agent/1", ID;
    sv_6_empty_port: "SV-6", "spiffe://example.org:/ah/agent/1", ID;
    sv_7_upper_case_host: "SV-7", "spiffe://Example.org/ah/agent/1", ID;
    sv_8_host_character: "SV-8", "spiffe://exa!mple.org/ah/agent/1", ID;
    sv_8_ipv6_literal: "SV-8", "spiffe://[2001:db8::1]/ah/agent/1", ID;
    sv_9_percent_in_host: "SV-9", "spiffe://ex%61mple.org/ah/agent/1", ID;
    sv_11_percent_in_path: "SV-11", "spiffe://example.org/ah/%61gent/1", ID;
    sv_12_empty_segment: "SV-12", "spiffe://example.org/ah//agent/1", ID;
    sv_13_dot: "SV-13", "spiffe://example.org/ah/./agent/1", ID;
    sv_13_dot_dot: "SV-13", "spiffe://example.org/ah/../agent/1", ID;
    sv_14_trailing_slash: "SV-14", "spiffe://example.org/ah/agent/1/", ID;
    sv_14_slash_alone: "SV-14", "spiffe://example.org/", ID;
    sv_15_segment_character: "SV-15", "spiffe://example.org/ah/agent/1+", "spiffe://example.org/ah/Agent_1.a-b";
    sv_22_root_path: "SV-22", "spiffe://example.org", ID;
}

#[test]
fn sv_10_a_trust_domain_that_looks_like_an_address_is_no_different() {
    // SV-10
    for domain in ["10.1.2.3", "a_b", "localhost", "x-1.example.org"] {
        let ca = TestCa::new(domain);
        let id = format!("spiffe://{domain}/ah/agent/1");
        let leaf = ca.leaf().spiffe(&id).issue();
        let policy = Policy::default();
        let trust = Trust::new(&ca.svid_bundles());
        let peer = verify_executor(leaf.chain(), &trust, &policy, SystemTime::now()).unwrap();
        assert_eq!(peer.name().to_string(), id);
    }
}

#[test]
fn sv_16_an_id_of_2048_bytes_is_accepted() {
    // SV-16
    let id = format!("{ID}/{}", "a".repeat(2048 - ID.len() - 1));
    assert_eq!(id.len(), 2048);
    let (ca, leaf) = with_uri(&id);
    assert_eq!(accepted(&ca, &leaf).name().to_string(), id);
}

#[test]
fn sv_17_an_id_changed_after_signing_is_refused() {
    // SV-17: the ID and the key are inside what is signed.
    let (ca, leaf) = with_uri(ID);
    let mut der = leaf.der().to_vec();
    let at = der
        .windows(ID.len())
        .position(|w| w == ID.as_bytes())
        .unwrap();
    der[at + ID.len() - 1] = b'2';
    let trust = Trust::new(&ca.svid_bundles());
    let judge = |der: Vec<u8>| {
        verify_executor(&[der.into()], &trust, &Policy::default(), SystemTime::now())
    };
    assert!(judge(der).is_err());
    judge(leaf.der().to_vec()).unwrap();
}

#[test]
fn sv_18_only_an_x509_svid_is_a_document() {
    // SV-18: a bare public key or other bytes with the ID inside are no document of the standard.
    let (ca, leaf) = with_uri(ID);
    let trust = Trust::new(&ca.svid_bundles());
    for document in [leaf.key_der().to_vec(), ID.as_bytes().to_vec(), Vec::new()] {
        let error = verify_executor(
            &[document.into()],
            &trust,
            &Policy::default(),
            SystemTime::now(),
        )
        .unwrap_err();
        assert_eq!(error.alert(), AlertDescription::BadCertificate);
    }
    accepted(&ca, &leaf);
}

#[test]
fn sv_19_two_uris_of_any_scheme_are_refused() {
    // SV-19
    for other in ["spiffe://example.org/ah/agent/2", "https://example.org/1"] {
        let (ca, bad) = leaf(|leaf| leaf.uri(other));
        refused("SV-19", &ca, &bad);
    }
}

/// What is judged where an SVID is demanded.
fn demanded(leaf: &TestLeaf, ca: &TestCa) -> (VerifyError, VerifyError) {
    let now = SystemTime::now();
    let trust = Trust::new(&ca.bundles());
    let expected = ExpectedServer::SpiffeId(SpiffeId::new(ID).unwrap());
    let policy = Policy {
        rules: SanRules::parse(&["spiffe://example.org/ah/agent".into()], &[], &[]).unwrap(),
        ..Policy::default()
    };
    (
        verify_access_point(leaf.chain(), &trust, &expected, false, now).unwrap_err(),
        verify_executor(leaf.chain(), &trust, &policy, now).unwrap_err(),
    )
}

#[test]
fn sv_20_no_uri_where_an_id_is_demanded() {
    // SV-20
    let ca = ca();
    let bare = ca.leaf().dns("example.org").issue();
    let (server, executor) = demanded(&bare, &ca);
    assert_eq!(server.code(), Code::ServerIdMismatch);
    assert!(server.explained().text.contains("(SV-20:"));
    assert_eq!(executor.code(), Code::SanMismatch);
}

#[test]
fn sv_39_a_uri_of_another_scheme_where_an_id_is_demanded() {
    // SV-39
    let ca = ca();
    let web = ca.leaf().uri("https://example.org/ah/agent/1").issue();
    let (server, executor) = demanded(&web, &ca);
    assert!(server.explained().text.contains("(SV-39:"));
    assert_eq!(executor.code(), Code::SanMismatch);
}

#[test]
fn sv_21_other_kinds_of_san_are_allowed_beside_the_id() {
    // SV-21
    let (ca, leaf) = leaf(|leaf| {
        leaf.dns("a.example.org")
            .ip("10.0.0.1")
            .email("a@example.org")
    });
    assert_eq!(accepted(&ca, &leaf).name().to_string(), ID);
}

#[test]
fn sv_23_empty_subject_asks_for_a_critical_san() {
    // SV-23
    let (ca, bad) = leaf(|leaf| leaf.subject("").san_critical(false));
    lax("SV-23", &ca, &bad);
    let (ca, good) = leaf(|leaf| leaf.subject(""));
    accepted(&ca, &good);
}

#[test]
fn sv_24_a_signer_with_a_path_in_its_id() {
    // SV-24
    let root = ca();
    let signer = root
        .intermediate()
        .without_sans()
        .uri("spiffe://example.org/ca")
        .issue();
    lax("SV-24", &root, &signer.leaf().spiffe(ID).issue());
    accepted(
        &root,
        &root.intermediate().issue().leaf().spiffe(ID).issue(),
    );
}

#[test]
fn sv_25_a_signing_certificate_never_authenticates() {
    // SV-25: presented as a leaf, a signer is caught by what makes it one.
    let (ca, signer) = leaf(|leaf| leaf.as_ca().key_usage(usage::KEY_CERT_SIGN, true));
    refused("SV-26", &ca, &signer);
    refused("SV-32", &ca, &signer);
}

#[test]
fn sv_26_ca_true_on_the_leaf() {
    // SV-26
    let (ca, bad) = leaf(LeafBuilder::as_ca);
    refused("SV-26", &ca, &bad);
}

#[test]
fn sv_27_ca_false_on_a_signer() {
    // SV-27: as the root of a bundle, and in between.
    let root = TestCa::root("example.org").not_ca().issue();
    let bad = root.leaf().spiffe(ID).issue();
    let error = judge(&root, &bad, false).unwrap_err();
    assert!(error.explained().causes.join("").contains("(SV-27:"));
    let root = ca();
    let bad = root
        .intermediate()
        .not_ca()
        .issue()
        .leaf()
        .spiffe(ID)
        .issue();
    let error = judge(&root, &bad, false).unwrap_err();
    assert_eq!(error.alert(), AlertDescription::BadCertificate);
    assert!(
        svid_faults(bad.chain())
            .iter()
            .any(|fault| fault.row == "SV-27")
    );
}

#[test]
fn sv_28_no_key_usage() {
    // SV-28
    let (ca, bad) = leaf(LeafBuilder::without_key_usage);
    lax("SV-28", &ca, &bad);
}

#[test]
fn sv_29_key_usage_not_critical() {
    // SV-29
    let (ca, bad) = leaf(|leaf| leaf.key_usage(usage::DIGITAL_SIGNATURE, false));
    lax("SV-29", &ca, &bad);
}

#[test]
fn sv_30_a_signer_without_key_cert_sign() {
    // SV-30: in between, and as the root; for every chain, not for SVIDs alone.
    let root = ca();
    let signer = root.intermediate().key_usage(usage::CRL_SIGN, true).issue();
    refused("SV-30", &root, &signer.leaf().spiffe(ID).issue());
    let plain = signer.leaf().dns("a.example.org").issue();
    assert!(judge(&root, &plain, false).is_err());

    let root = TestCa::root("example.org")
        .key_usage(usage::CRL_SIGN, true)
        .issue();
    let error = judge(&root, &root.leaf().spiffe(ID).issue(), false).unwrap_err();
    assert!(error.explained().causes.join("").contains("(SV-30:"));
}

#[test]
fn sv_31_no_digital_signature_on_the_leaf() {
    // SV-31
    let (ca, bad) = leaf(|leaf| leaf.key_usage(usage::KEY_ENCIPHERMENT, true));
    lax("SV-31", &ca, &bad);
}

#[test]
fn sv_32_key_cert_sign_on_the_leaf() {
    // SV-32
    let bits = usage::DIGITAL_SIGNATURE | usage::KEY_CERT_SIGN;
    let (ca, bad) = leaf(|leaf| leaf.key_usage(bits, true));
    refused("SV-32", &ca, &bad);
}

#[test]
fn sv_33_crl_sign_on_the_leaf() {
    // SV-33
    let bits = usage::DIGITAL_SIGNATURE | usage::CRL_SIGN;
    let (ca, bad) = leaf(|leaf| leaf.key_usage(bits, true));
    refused("SV-33", &ca, &bad);
}

#[test]
fn sv_34_one_sided_extended_key_usage() {
    // SV-34: told to the issuer; the side it does not allow is refused by RFC 5280 all the same.
    let (ca, bad) = leaf(LeafBuilder::client_only);
    lax("SV-34", &ca, &bad);
    let (ca, bad) = leaf(LeafBuilder::server_only);
    let trust = Trust::new(&ca.svid_bundles());
    let error = verify_executor(bad.chain(), &trust, &Policy::default(), SystemTime::now());
    let error = error.unwrap_err();
    assert!(error.explained().text.contains("extended key usage"));
    let (ca, good) = leaf(LeafBuilder::without_extended_usage);
    accepted(&ca, &good);
}

#[test]
fn sv_35_outside_the_uri_name_constraints() {
    // SV-35: on the root and in between, permitted and excluded.
    let root = ca();
    accepted(
        &root,
        &root.intermediate().issue().leaf().spiffe(ID).issue(),
    );
    for builder in [
        root.intermediate().permit_uri(".example.org"),
        root.intermediate().permit_uri("other.org"),
        root.intermediate().exclude_uri("example.org"),
    ] {
        refused("SV-35", &root, &builder.issue().leaf().spiffe(ID).issue());
    }
    for builder in [
        TestCa::root("example.org").permit_uri("other.org"),
        TestCa::root("example.org").exclude_uri("example.org"),
    ] {
        let root = builder.issue();
        let error = judge(&root, &root.leaf().spiffe(ID).issue(), false).unwrap_err();
        assert_eq!(error.alert(), AlertDescription::BadCertificate);
    }
}

#[test]
fn sv_36_signature_and_dates() {
    // SV-36
    let ours = ca();
    let stranger = ca();
    let error = judge(&ours, &stranger.leaf().spiffe(ID).issue(), false).unwrap_err();
    assert_eq!(error.code(), Code::ClientUnknownAuthority);
    assert_eq!(error.alert(), AlertDescription::UnknownCA);

    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    for from in [now + hour, now - 2 * hour] {
        let (ca, bad) = leaf(|leaf| leaf.valid_from(from).valid_for(hour));
        let error = judge(&ca, &bad, false).unwrap_err();
        assert_eq!(error.code(), Code::ClientExpired);
        assert_eq!(error.alert(), AlertDescription::CertificateExpired);
    }
    let root = TestCa::root("example.org")
        .valid_from(now - 2 * hour)
        .valid_for(hour)
        .issue();
    let error = judge(&root, &root.leaf().spiffe(ID).issue(), false).unwrap_err();
    assert_eq!(error.code(), Code::ClientExpired);
}

#[test]
fn sv_37_more_intermediates_than_path_len() {
    // SV-37: set by the root and in between.
    for root in [TestCa::root("example.org").path_len(1).issue(), ca()] {
        let first = root.intermediate().path_len(0).issue();
        accepted(&root, &first.leaf().spiffe(ID).issue());
        let second = first.intermediate().issue();
        let error = judge(&root, &second.leaf().spiffe(ID).issue(), false).unwrap_err();
        assert!(error.explained().text.contains("pathLen"), "{error}");
    }
    let root = TestCa::root("example.org").path_len(0).issue();
    let below = root.intermediate().issue();
    let error = judge(&root, &below.leaf().spiffe(ID).issue(), false).unwrap_err();
    assert!(error.explained().text.contains("pathLen"), "{error}");
}

#[test]
fn sv_38_an_unknown_critical_extension() {
    // SV-38: on the leaf and in between; not critical is no matter.
    let private = [1, 3, 6, 1, 4, 1, 55555, 1];
    let null = [5, 0];
    let (root, bad) = leaf(|leaf| leaf.extension(&private, true, &null));
    let error = judge(&root, &bad, false).unwrap_err();
    assert!(error.explained().text.contains("critical extension"));
    let signer = root.intermediate().extension(&private, true, &null).issue();
    assert!(judge(&root, &signer.leaf().spiffe(ID).issue(), false).is_err());
    let (ca, good) = leaf(|leaf| leaf.extension(&private, false, &null));
    accepted(&ca, &good);
}

#[test]
fn sv_52_bundles_of_other_domains_vouch_for_nobody_else() {
    // SV-52
    let ours = ca();
    let other = TestCa::new("other.org");
    let mut bundles = ours.svid_bundles();
    bundles.domains.extend(other.svid_bundles().domains);
    let trust = Trust::new(&bundles);
    let judge = |leaf: &TestLeaf| {
        verify_executor(leaf.chain(), &trust, &Policy::default(), SystemTime::now())
    };
    judge(&other.leaf().spiffe("spiffe://other.org/x").issue()).unwrap();
    let forged = other.leaf().spiffe(ID).issue();
    assert_eq!(
        judge(&forged).unwrap_err().code(),
        Code::ClientUnknownAuthority
    );
    let nameless = ours.leaf().dns("a.example.org").issue();
    assert_eq!(
        judge(&nameless).unwrap_err().code(),
        Code::ClientUnknownAuthority
    );
}

#[test]
fn sv_47_an_empty_bundle_distrusts_its_whole_domain() {
    // SV-47: also what a root for any name would vouch for; other domains are as before.
    let (ours, any) = (ca(), TestCa::new("other.org"));
    let vouched = any.leaf().spiffe(ID).issue();
    let elsewhere = any.leaf().spiffe("spiffe://third.org/x").issue();
    let judge = |leaf: &TestLeaf, own: &[&TestCa]| {
        let mut bundles = ours.svid_bundles();
        for roots in bundles.domains.values_mut() {
            *roots = own.iter().map(|ca| ca.der().clone()).collect();
        }
        bundles.unscoped = vec![any.der().clone()];
        let trust = Trust::new(&bundles);
        verify_executor(leaf.chain(), &trust, &Policy::default(), SystemTime::now())
    };
    judge(&vouched, &[&ours]).unwrap();
    judge(&elsewhere, &[]).unwrap();
    for leaf in [&vouched, &ours.leaf().spiffe(ID).issue()] {
        let error = judge(leaf, &[]).unwrap_err();
        assert_eq!(error.code(), Code::ClientUnknownAuthority);
        assert!(error.explained().report().contains("example.org"));
    }
}
