//! Claims that no server may believe.

use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::{AgentHalf, Claim, ServerHalf};
use ah_testkit::ca::{KeyType, TestCa, usage};
use ah_testkit::node_suite::{Says, Sends, attest, claim};

use super::{agent, assert_error, node, outcome, server, trusting};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_chain_to_another_ca_is_refused() {
    let ca = TestCa::new("example.org");
    // Of the same name, so that only the signature tells.
    let leaf = node(&TestCa::new("example.org")).issue();
    let outcome = outcome(&ca, &leaf, SystemTime::now(), |_| ()).await;
    assert_error!(
        outcome,
        Refused,
        "certificate verification failed: certificate signed by unknown authority",
        "ca_bundle_path",
    );
}

#[tokio::test]
async fn a_chain_without_its_intermediate_is_refused() {
    let ca = TestCa::new("example.org");
    let leaf = node(&ca.intermediate().issue())
        .issue()
        .with_intermediates(&[]);
    let outcome = outcome(&ca, &leaf, SystemTime::now(), |_| ()).await;
    assert_error!(outcome, Refused, "unknown authority", "intermediates_path");
}

#[tokio::test]
async fn a_certificate_counts_within_its_dates_alone() {
    let ca = TestCa::new("example.org");
    let leaf = node(&ca).issue();
    let now = SystemTime::now();
    for (at, valid) in [(now, true), (now + 2 * DAY, false), (now - 2 * DAY, false)] {
        let outcome = outcome(&ca, &leaf, at, |_| ()).await;
        if valid {
            assert!(outcome.is_ok());
        } else {
            assert_error!(
                outcome,
                Refused,
                "certificate verification failed: ",
                "renew"
            );
        }
    }
}

#[tokio::test]
async fn a_root_that_ended_vouches_for_nobody() {
    let root = TestCa::root("example.org").valid_for(DAY).issue();
    let leaf = node(&root).valid_for(10 * DAY).issue();
    let at = |now| outcome(&root, &leaf, now, |_| ());
    assert!(at(SystemTime::now()).await.is_ok());
    assert_error!(
        at(SystemTime::now() + 2 * DAY).await,
        Refused,
        "unknown authority"
    );
}

#[tokio::test]
async fn a_leaf_that_is_a_ca_is_refused_unless_it_is_trusted_itself() {
    let ca = TestCa::new("example.org");
    let leaf = node(&ca).as_ca().issue();
    let refused = outcome(&ca, &leaf, SystemTime::now(), |_| ()).await;
    assert_error!(refused, Refused, "is that of a CA", "CA:FALSE");

    let folder = tempfile::tempdir().unwrap();
    let itself = folder.path().join("itself.pem");
    std::fs::write(&itself, leaf.chain_pem()).unwrap();
    let trusted = outcome(&ca, &leaf, SystemTime::now(), |config| {
        config.ca_bundle_path = itself;
    });
    let selectors = trusted.await.unwrap().selectors;
    assert!(
        !selectors.iter().any(|s| s.value.starts_with("ca:")),
        "{selectors:?}"
    );
}

#[tokio::test]
async fn a_name_outside_the_constraints_of_its_ca_is_refused() {
    let ca = TestCa::root("example.org")
        .exclude_uri("example.org")
        .issue();
    let leaf = node(&ca).uri("x509pop://example.org/rack/7").issue();
    let outcome = outcome(&ca, &leaf, SystemTime::now(), |_| ()).await;
    assert_error!(outcome, Refused, "NameConstraintViolation");
}

#[tokio::test]
async fn a_certificate_that_may_not_sign_is_not_challenged() {
    let ca = TestCa::new("example.org");
    for leaf in [
        node(&ca).without_key_usage().issue(),
        node(&ca).key_usage(usage::KEY_ENCIPHERMENT, true).issue(),
    ] {
        let outcome = outcome(&ca, &leaf, SystemTime::now(), |_| ()).await;
        assert_error!(
            outcome,
            Invalid,
            "certificate not intended for digital signature use",
            "keyUsage digitalSignature",
        );
    }
}

#[tokio::test]
async fn the_key_of_another_node_is_no_proof() {
    for key in [KeyType::P256, KeyType::Rsa2048] {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new("example.org");
        let victim = agent(folder.path(), &node(&ca).key_type(key).issue()).await;
        let (payload, _) = victim.begin().await.unwrap();
        let own_folder = tempfile::tempdir().unwrap();
        let own = agent(own_folder.path(), &node(&ca).key_type(key).issue()).await;
        let thief = Sends {
            payload: payload.expose().to_vec(),
            agent: &own,
        };
        let server = server(trusting(folder.path(), &ca)).await.unwrap();
        let outcome = attest(&thief, &server, SystemTime::now()).await;
        assert_error!(
            outcome,
            Refused,
            "challenge response verification failed: ",
            "signature verify failed",
        );
    }
}

#[tokio::test]
async fn numbers_that_are_no_signature_verify_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let agent = agent(folder.path(), &node(&ca).issue()).await;
    let (payload, _) = agent.begin().await.unwrap();
    let server = server(trusting(folder.path(), &ca)).await.unwrap();
    let nonce = format!("{}=", "A".repeat(43));
    let long = "/".repeat(400);
    for (r, s) in [
        ("", ""),
        ("AA==", "AA=="),
        ("AQ==", ""),
        ("AQ==", "AQ=="),
        (&long, "AQ=="),
    ] {
        let answer = format!(r#"{{"ecdsa_signature":{{"nonce":"{nonce}","r":"{r}","s":"{s}"}}}}"#);
        let claim = claim(payload.expose(), SystemTime::now());
        let outcome = server.attest(claim, &mut Says(answer.into())).await;
        assert_error!(outcome, Refused, "ECDSA signature verify failed");
    }
    for (answer, words) in [
        (
            r#"{"rsa_signature":{"nonce":"","signature":""}}"#,
            "expecting ECDSA response",
        ),
        (
            r#"{"ecdsa_signature":{"nonce":"AQ==","r":"AQ==","s":"AQ=="}}"#,
            "invalid response nonce",
        ),
        (r#"{"ecdsa_signature":{}}"#, "invalid response nonce"),
    ] {
        let claim = claim(payload.expose(), SystemTime::now());
        let outcome = server.attest(claim, &mut Says(answer.into())).await;
        assert_error!(outcome, Refused, words);
    }
}

#[tokio::test]
async fn a_long_chain_is_refused_before_it_is_read() {
    let ca = TestCa::new("example.org");
    let extra = TestCa::new("example.org");
    let extras = [extra.der(); 5];
    let leaf = node(&ca).issue().with_intermediates(&extras);
    let outcome_of = |most| {
        outcome(&ca, &leaf, SystemTime::now(), move |config| {
            config.max_intermediates = most;
        })
    };
    assert_error!(
        outcome_of(None).await,
        Invalid,
        "too many intermediate certificates",
        "5 came and 4 are allowed",
        "max_intermediates",
    );
    assert!(outcome_of(Some(5)).await.is_ok());
}

#[tokio::test]
async fn a_large_rsa_key_is_refused() {
    let ca = TestCa::new("example.org");
    let leaf = node(&ca).key_type(KeyType::Rsa2048).issue();
    let outcome_of = |most| {
        outcome(&ca, &leaf, SystemTime::now(), move |config| {
            config.max_rsa_key_size = Some(most);
        })
    };
    assert!(outcome_of(2048).await.is_ok());
    assert_error!(
        outcome_of(2047).await,
        Invalid,
        "leaf certificate key size too large",
        "max_rsa_key_size"
    );

    let large = TestCa::root("example.org")
        .key_type(KeyType::Rsa2048)
        .issue();
    let leaf = node(&ca).issue().with_intermediates(&[large.der()]);
    let outcome = outcome(&ca, &leaf, SystemTime::now(), |config| {
        config.max_rsa_key_size = Some(2047);
    });
    assert_error!(
        outcome.await,
        Invalid,
        "intermediate certificate 0 key size too large"
    );
}

#[tokio::test]
async fn what_is_no_certificate_is_named_by_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let agent = agent(folder.path(), &node(&ca).issue()).await;
    let (payload, _) = agent.begin().await.unwrap();
    let server = server(trusting(folder.path(), &ca)).await.unwrap();
    let whole = String::from_utf8(payload.expose().to_vec()).unwrap();
    let with_rubbish = whole.replace("\"]}", "\",\"AA==\"]}");
    let trailing = whole.replace("\"]}", "");
    for (payload, words) in [
        (r#"{"certificates":null}"#, "no certificate to attest"),
        (
            r#"{"certificates":["AA=="]}"#,
            "unable to parse leaf certificate",
        ),
        (
            with_rubbish.as_str(),
            "unable to parse intermediate certificate 0",
        ),
        (
            r#"{"certificates":["%%%"]}"#,
            "failed to unmarshal data: JSON of another shape",
        ),
        (
            r#"{"certificates":7}"#,
            "failed to unmarshal data: JSON of another shape",
        ),
        (
            trailing.as_str(),
            "failed to unmarshal data: it ends too early",
        ),
    ] {
        let claim = claim(payload.as_bytes(), SystemTime::now());
        let outcome = server.attest(claim, &mut Says(Vec::new())).await;
        assert_error!(outcome, Invalid, words);
    }
}

#[tokio::test]
async fn a_certificate_that_speaks_for_an_address_serves_from_there_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let leaf = node(&ca).ip("192.0.2.7").ip("2001:db8::7").issue();
    let agent = agent(folder.path(), &leaf).await;
    let mut config = trusting(folder.path(), &ca);
    config.verify_client_ip = true;
    let server = server(config).await.unwrap();
    let (payload, _) = agent.begin().await.unwrap();
    for (from, inside) in [
        (Some("192.0.2.7"), true),
        (Some("::ffff:192.0.2.7"), true),
        (Some("2001:db8::7"), true),
        (Some("192.0.2.8"), false),
        (None, false),
    ] {
        let claim = Claim {
            client_ip: from.map(|ip| ip.parse().unwrap()),
            ..claim(payload.expose(), SystemTime::now())
        };
        // The proof comes after the address: whoever gets as far as a bad proof was at the right one.
        let outcome = server.attest(claim, &mut Says(b"{}".to_vec())).await;
        match (from, inside) {
            (_, true) => {
                assert_error!(outcome, Refused, "expecting ECDSA response");
            }
            (Some(_), false) => {
                assert_error!(
                    outcome,
                    Refused,
                    "client IP 192.0.2.8 does not match any certificate IP SAN"
                );
            }
            (None, false) => {
                assert_error!(
                    outcome,
                    Internal,
                    "client IP not available for verification"
                );
            }
        }
    }
}
