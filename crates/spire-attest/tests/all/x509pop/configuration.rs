use std::path::PathBuf;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::x509pop::{X509PopAgent, X509PopAgentConfig, X509PopServerConfig};
use ah_spire_attest::node::{AgentHalf, Conversation};
use ah_testkit::ca::{KeyType, TestCa};

use super::{agent, assert_error, files, node, server, trusting};

#[tokio::test]
async fn a_servers_settings_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let good = trusting(folder.path(), &ca);
    assert!(server(good.clone()).await.is_ok());
    let missing = PathBuf::from("/nonexistent/roots.pem");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let with = |change: fn(&mut X509PopServerConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    for (config, words) in [
        (
            X509PopServerConfig::default(),
            [
                "one of ca_bundle_path or ca_bundle_paths must be configured",
                "PEM file",
            ],
        ),
        (
            with(|config| config.ca_bundle_paths = vec![config.ca_bundle_path.clone()]),
            [
                "only one of ca_bundle_path or ca_bundle_paths",
                "ca_bundle_paths",
            ],
        ),
        (
            with(|config| config.mode = "spiffe".into()),
            [
                "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode",
                "leave them out",
            ],
        ),
        (
            with(|config| config.mode = "pki".into()),
            [
                "mode can only be either spiffe or external_pki",
                "external_pki",
            ],
        ),
        (
            with(|config| config.max_intermediates = Some(0)),
            ["max_intermediates must be greater than 0", "default is 4"],
        ),
        (
            with(|config| config.max_rsa_key_size = Some(-1)),
            ["max_rsa_key_size must be greater than 0", "default is 8192"],
        ),
        (
            with(|config| config.agent_path_template = "/{{ .Nothing }}".into()),
            [
                "failed to parse agent svid template",
                ".Nothing is not known",
            ],
        ),
        (
            X509PopServerConfig {
                ca_bundle_paths: vec![good.ca_bundle_path.clone(), missing],
                ..X509PopServerConfig::default()
            },
            [
                "unable to load trust bundle \"/nonexistent/roots.pem\"",
                "ls -l /nonexistent/roots.pem",
            ],
        ),
        (
            X509PopServerConfig {
                ca_bundle_path: empty,
                ..X509PopServerConfig::default()
            },
            ["unable to load trust bundle", "empty"],
        ),
    ] {
        assert_error!(server(config).await, Invalid, words[0], words[1]);
    }
}

#[tokio::test]
async fn an_agents_settings_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let leaf = node(&ca).issue();
    let good = files(folder.path(), &leaf);
    let foreign_folder = tempfile::tempdir().unwrap();
    let foreign = files(
        foreign_folder.path(),
        &leaf.clone().with_key_of(&node(&ca).issue()),
    );
    let ed_folder = tempfile::tempdir().unwrap();
    let ed25519 = files(
        ed_folder.path(),
        &node(&ca).key_type(KeyType::Ed25519).issue(),
    );
    let with = |change: fn(&mut X509PopAgentConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    for (config, words) in [
        (
            with(|config| config.private_key_path = PathBuf::new()),
            "private_key_path is required",
        ),
        (
            with(|config| config.certificate_path = PathBuf::new()),
            "certificate_path is required",
        ),
        (
            with(|config| config.private_key_path = config.certificate_path.clone()),
            "unable to load private key",
        ),
        (
            with(|config| config.certificate_path = config.private_key_path.clone()),
            "unable to load certificate",
        ),
        (
            with(|config| config.intermediates_path = "/nonexistent".into()),
            "unable to load intermediate certificates \"/nonexistent\"",
        ),
        (
            with(|config| config.spiffe_endpoint_socket = "http://127.0.0.1".into()),
            "spiffe_endpoint_socket: ",
        ),
        (foreign, "private key does not match the first certificate"),
        (ed25519, "a key that cannot be proven"),
    ] {
        assert_error!(X509PopAgent::configure(config).await, Invalid, words);
    }
}

#[test]
fn settings_have_the_names_of_spire_and_no_others() {
    let read = |text| serde_json::from_str::<X509PopServerConfig>(text);
    let config = read(
        r#"{"mode":"spiffe","svid_prefix":"/a","agent_path_template":"/b","max_intermediates":1,
            "max_rsa_key_size":2048,"verify_client_ip":true,"ca_bundle_path":"c","ca_bundle_paths":["d"]}"#,
    );
    // The code of SPIRE reads spiffe_prefix, its documents say svid_prefix.
    assert_eq!(config.unwrap().spiffe_prefix.as_deref(), Some("/a"));
    let config = read(r#"{"spiffe_prefix":"/a"}"#).unwrap();
    assert_eq!(config.spiffe_prefix.as_deref(), Some("/a"));
    let error = read(r#"{"ca_path":"x"}"#).unwrap_err().to_string();
    assert!(error.contains("ca_path"), "{error}");

    let read = |text| serde_json::from_str::<X509PopAgentConfig>(text);
    assert_eq!(read("{}").unwrap(), X509PopAgentConfig::default());
    let all = r#"{"private_key_path":"a","certificate_path":"b","intermediates_path":"c","spiffe_endpoint_socket":"d"}"#;
    assert!(read(all).is_ok());
    assert!(read(r#"{"key_path":"x"}"#).is_err());
}

#[tokio::test]
async fn a_key_answers_one_challenge_of_one_attestation() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let agent = agent(folder.path(), &node(&ca).issue()).await;
    let nonce = format!("{}=", "A".repeat(43));
    let challenge = format!(r#"{{"rsa_signature":null,"ecdsa_signature":{{"nonce":"{nonce}"}}}}"#);
    let (_, mut conversation) = agent.begin().await.unwrap();
    assert!(conversation.answer(challenge.as_bytes()).await.is_ok());
    let again = conversation.answer(challenge.as_bytes()).await;
    assert_error!(again, Internal, "second challenge");

    for (challenge, words) in [
        (
            format!(r#"{{"rsa_signature":{{"nonce":"{nonce}"}}}}"#),
            "expecting ECDSA challenge",
        ),
        (
            r#"{"ecdsa_signature":{"nonce":"AAAA"}}"#.to_owned(),
            "invalid challenge nonce",
        ),
    ] {
        let (_, mut conversation) = agent.begin().await.unwrap();
        let outcome = conversation.answer(challenge.as_bytes()).await;
        assert_error!(outcome, Internal, words);
    }
}
