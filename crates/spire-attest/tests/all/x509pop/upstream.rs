//! Messages, names and selectors as SPIRE 1.14.1 makes them. The fixture was written by its own packages: the payload,
//! a challenge and the answer of an agent, and what its server said of that agent.

use std::path::Path;
use std::time::SystemTime;

use ah_spire_attest::node::x509pop::{X509PopAgent, X509PopAgentConfig, X509PopServerConfig};
use ah_spire_attest::node::{AgentHalf, Claim, Conversation, ServerHalf};
use ah_testkit::node_suite::{Says, attest, claim};
use serde::Deserialize;
use serde_json::Value;

use super::server;

#[derive(Deserialize)]
struct Case {
    name: String,
    key: String,
    chain: String,
    roots: String,
    payload: String,
    challenge: String,
    response: String,
    agent_id: String,
    selectors: Vec<String>,
    #[serde(default)]
    templates: Vec<Templated>,
}

#[derive(Deserialize)]
struct Templated {
    template: String,
    path: Option<String>,
    error: Option<String>,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../fixtures/x509pop.json")).unwrap();
    assert_eq!(cases.len(), 5);
    cases
}

impl Case {
    async fn agent(&self, folder: &Path) -> X509PopAgent {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        // The leaf in one file and the rest in another, which make one chain.
        let end = self.chain.find("-----END CERTIFICATE-----\n").unwrap() + 26;
        let (leaf, rest) = self.chain.split_at(end);
        let config = X509PopAgentConfig {
            private_key_path: write("key.pem", &self.key),
            certificate_path: write("leaf.pem", leaf),
            intermediates_path: write("rest.pem", rest),
            ..X509PopAgentConfig::default()
        };
        X509PopAgent::configure(config).await.unwrap()
    }

    fn config(&self, folder: &Path) -> X509PopServerConfig {
        let path = folder.join("roots.pem");
        std::fs::write(&path, &self.roots).unwrap();
        X509PopServerConfig {
            ca_bundle_path: path,
            ..X509PopServerConfig::default()
        }
    }
}

#[tokio::test]
async fn the_payload_is_the_same_to_the_byte() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let (payload, _) = case.agent(folder.path()).await.begin().await.unwrap();
        assert_eq!(payload.expose(), case.payload.as_bytes(), "{}", case.name);
    }
}

#[tokio::test]
async fn its_challenge_is_answered_with_the_keys_of_its_answers() {
    /// The shape alone: every text is the same text.
    fn blank(value: &mut Value) {
        match value {
            Value::String(text) => text.clear(),
            Value::Object(object) => object.values_mut().for_each(blank),
            _ => {}
        }
    }
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let agent = case.agent(folder.path()).await;
        let (_, mut conversation) = agent.begin().await.unwrap();
        let answer = conversation
            .answer(case.challenge.as_bytes())
            .await
            .unwrap();
        let shapes = [answer.as_slice(), case.response.as_bytes()].map(|text| {
            let mut value: Value = serde_json::from_slice(text).unwrap();
            blank(&mut value);
            value
        });
        assert_eq!(shapes[0], shapes[1], "{}", case.name);
    }
}

#[tokio::test]
async fn its_agent_gets_the_id_and_the_selectors_that_its_server_gives() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(case.config(folder.path())).await.unwrap();
        let agent = case.agent(folder.path()).await;
        let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
        assert_eq!(attested.id.to_string(), case.agent_id, "{}", case.name);
        let mut values: Vec<_> = attested.selectors.into_iter().map(|s| s.value).collect();
        values.sort();
        // Both roots are above a cross-signed CA.
        assert_eq!(values, case.selectors, "{}", case.name);
        assert!(attested.can_reattest);
    }
}

#[tokio::test]
async fn an_answer_to_another_challenge_does_not_count() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(case.config(folder.path())).await.unwrap();
        let mut way = Says(case.response.clone().into_bytes());
        let claim: Claim<'_> = claim(case.payload.as_bytes(), SystemTime::now());
        let error = server.attest(claim, &mut way).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("signature verify failed"),
            "{}: {text}",
            case.name
        );
    }
}

#[tokio::test]
async fn a_path_template_gives_the_path_that_it_gives_there() {
    let cases = cases();
    let case = cases
        .iter()
        .find(|case| !case.templates.is_empty())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let agent = case.agent(folder.path()).await;
    for Templated {
        template,
        path,
        error,
    } in &case.templates
    {
        let mut config = case.config(folder.path());
        config.agent_path_template = template.clone();
        // What is not served is known when the template is read.
        if template.contains("index") || template.contains("printf") {
            let refused = server(config).await.err().unwrap().to_string();
            assert!(refused.contains("is not served; known are"), "{refused}");
            continue;
        }
        let outcome = match server(config).await {
            Ok(server) => attest(&agent, &server, SystemTime::now()).await,
            Err(error) => Err(error),
        };
        match (outcome, path, error) {
            (Ok(attested), Some(path), None) => assert_eq!(attested.id.path(), path, "{template}"),
            (Err(own), None, Some(theirs)) => {
                let same = ["leading slash", "missing"];
                let same = same.iter().find(|word| theirs.contains(**word)).unwrap();
                assert!(
                    own.to_string().contains(same),
                    "{template}: {own} / {theirs}"
                );
            }
            (own, path, error) => panic!("{template}: {own:?} / {path:?} {error:?}"),
        }
    }
}
