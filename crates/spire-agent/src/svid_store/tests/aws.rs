//! SVIDStore `aws_secretsmanager`.

use ah_spire_wire::aws::Caller;
use ah_testkit::aws::secrets::{Secret, Secrets, arn};
use ah_testkit::aws::{OWN, REGION, refusal, variables};
use ah_testkit::web::Web;
use http::StatusCode;
use serde_json::Value;

use super::{StoreFault, SvidStore, real};
use crate::svid_store::AwsSecrets;

async fn amazon() -> (Web, Secrets, AwsSecrets) {
    let web = Web::start().await;
    let secrets = Secrets::start(&web, OWN);
    let environment = variables(&web).into_iter().collect();
    let store = AwsSecrets::new(Caller::new(environment, REGION, None));
    (web, secrets, store)
}

fn metadata(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn operations(secrets: &Secrets) -> Vec<String> {
    let asked = secrets.asked().into_iter();
    asked.map(|(operation, _)| operation).collect()
}

#[tokio::test]
async fn a_secret_is_made_with_its_tag_and_gets_a_version_for_each_svid() {
    let (_web, secrets, store) = amazon().await;
    let svid = real();
    let named = metadata(&["secretname:web", "kmskeyid:alias/web"]);
    store.put(&svid, &named).await.unwrap();
    assert_eq!(operations(&secrets), ["DescribeSecret", "CreateSecret"]);
    let made = secrets.secret("web").unwrap();
    assert_eq!(made.tags["spire-svid"], "true");
    assert_eq!(made.kms_key.as_deref(), Some("alias/web"));
    let data: Value = serde_json::from_slice(&made.binary.unwrap()).unwrap();
    assert_eq!(data["spiffeID"], svid.spiffe_id);
    for part in ["x509SVID", "x509SVIDKey", "bundle"] {
        assert!(
            data[part].as_str().unwrap().starts_with("-----BEGIN "),
            "{part}"
        );
    }
    assert!(data["federatedBundles"]["other.example"].is_string());

    let by_arn = metadata(&[&format!("arn:{}", arn("web"))]);
    let newer = real();
    store.put(&newer, &by_arn).await.unwrap();
    assert_eq!(operations(&secrets), ["DescribeSecret", "PutSecretValue"]);
    let held = secrets.secret("web").unwrap();
    let held: Value = serde_json::from_slice(&held.binary.unwrap()).unwrap();
    assert_ne!(held["x509SVIDKey"], data["x509SVIDKey"]);

    store.delete(&named).await.unwrap();
    let asked = secrets.asked().pop().unwrap();
    assert_eq!(asked.0, "DeleteSecret");
    assert_eq!(asked.1["RecoveryWindowInDays"], 7);
    assert!(secrets.secret("web").unwrap().deleted);
    // Twice, and never there.
    store.delete(&named).await.unwrap();
    store
        .delete(&metadata(&["secretname:other"]))
        .await
        .unwrap();
    assert_eq!(operations(&secrets), ["DescribeSecret", "DescribeSecret"]);

    store.put(&svid, &named).await.unwrap();
    let restored = ["DescribeSecret", "RestoreSecret", "PutSecretValue"];
    assert_eq!(operations(&secrets), restored);
    assert!(!secrets.secret("web").unwrap().deleted);
}

#[tokio::test]
async fn a_secret_without_the_tag_is_left_alone_and_a_throttled_call_made_again() {
    let (web, secrets, store) = amazon().await;
    let theirs = Secret {
        string: Some("theirs".into()),
        ..Secret::default()
    };
    secrets.set("web", theirs);
    let named = metadata(&["secretname:web"]);
    for refused in [store.put(&real(), &named).await, store.delete(&named).await] {
        let why = "secret does not contain the 'spire-svid' tag".to_owned();
        assert_eq!(refused, Err(StoreFault::Malformed(why)));
    }
    assert_eq!(secrets.secret("web").unwrap().string.unwrap(), "theirs");

    let slow = || {
        refusal(
            StatusCode::BAD_REQUEST,
            "ThrottlingException",
            "Rate exceeded",
        )
    };
    web.answers_once(slow());
    let other = metadata(&["secretname:other"]);
    store.put(&real(), &other).await.unwrap();
    assert!(secrets.secret("other").is_some());

    let denied = refusal(StatusCode::BAD_REQUEST, "AccessDeniedException", "not you");
    web.answers_with("/secrets_manager/", denied);
    let url = web.url("/secrets_manager");
    let why = format!(
        "failed to describe secret: {url}: 400 Bad Request: AccessDeniedException: not you"
    );
    let failed = store.put(&real(), &named).await;
    assert_eq!(failed, Err(StoreFault::Failed(why)));
}

#[tokio::test]
async fn selectors_that_name_no_secret_are_told() {
    let (_web, secrets, store) = amazon().await;
    for (wrong, why) in [
        (
            metadata(&["kmskeyid:k"]),
            "either the secret name or ARN is required",
        ),
        (
            metadata(&["web"]),
            "metadata does not contain a colon: \"web\"",
        ),
        (
            metadata(&[&format!("arn:{}", arn("gone"))]),
            "failed to create secret: name selector is required",
        ),
    ] {
        let refused = store.put(&real(), &wrong).await;
        assert_eq!(refused, Err(StoreFault::Malformed(why.to_owned())));
    }
    assert_eq!(operations(&secrets), ["DescribeSecret"]);
}
