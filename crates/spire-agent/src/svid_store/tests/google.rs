//! SVIDStore `gcp_secretmanager`.

use ah_spire_attest::node::gcp_iit::Account;
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use super::{StoreFault, SvidStore, real};
use crate::svid_store::GoogleSecrets;

/// The SHA-1 of `example.org`.
const OURS: &str = "20116dfd6774a9e7b32eddfea3f6cb094e38fc3f";

const SECRET: &str = "/v1/projects/p-1/secrets/web";

async fn google() -> (Web, GoogleSecrets) {
    let web = Web::start().await;
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    web.answers(token, json!({"access_token": "ya29.token"}));
    let of = TrustDomain::new("example.org").unwrap();
    let account = Account::new(None, web.url(""));
    let secrets = GoogleSecrets::new(web.url(""), account, &of);
    (web, secrets)
}

fn metadata(more: &[&str]) -> Vec<String> {
    let all = ["projectid:p-1", "name:web"].iter().chain(more);
    all.map(|text| (*text).to_owned()).collect()
}

/// What was asked of the Secret Manager: how, where, and with which body.
fn asked(web: &Web) -> Vec<(Method, String, Value)> {
    let asked = web.asked().into_iter();
    let calls = asked.filter(|asked| asked.target.starts_with("/v1/"));
    calls
        .map(|asked| {
            assert_eq!(asked.header("authorization"), "Bearer ya29.token");
            let body = serde_json::from_str(&asked.body).unwrap_or_default();
            (asked.method, asked.target, body)
        })
        .collect()
}

#[tokio::test]
async fn a_secret_is_made_with_its_label_and_gets_a_version_for_each_svid() {
    let (web, secrets) = google().await;
    for path in [
        "/v1/projects/p-1/secrets",
        &format!("{SECRET}:setIamPolicy"),
        &format!("{SECRET}:addVersion"),
    ] {
        web.answers(path, "{}");
    }
    let svid = real();
    let granted = metadata(&[
        "regions:europe-west1,europe-west4",
        "role:roles/viewer",
        "serviceaccount:web@p-1.example",
    ]);
    secrets.put(&svid, &granted).await.unwrap();
    let calls = asked(&web);
    let targets: Vec<_> = calls.iter().map(|(_, target, _)| target.as_str()).collect();
    assert_eq!(
        targets,
        [
            SECRET,
            "/v1/projects/p-1/secrets?secretId=web",
            "/v1/projects/p-1/secrets/web:setIamPolicy",
            "/v1/projects/p-1/secrets/web:addVersion"
        ]
    );
    let replicas = json!([{"location": "europe-west1"}, {"location": "europe-west4"}]);
    assert_eq!(
        calls[1].2,
        json!({"labels": {"spire-svid": OURS}, "replication": {"userManaged": {"replicas": replicas}}})
    );
    let binding = json!({"role": "roles/viewer", "members": ["serviceAccount:web@p-1.example"]});
    assert_eq!(
        calls[2].2,
        json!({"policy": {"bindings": [binding.clone()]}})
    );
    let data = STANDARD
        .decode(calls[3].2["payload"]["data"].as_str().unwrap())
        .unwrap();
    let data: Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(data["spiffeID"], svid.spiffe_id);
    for part in ["x509SVID", "x509SVIDKey", "bundle"] {
        assert!(
            data[part].as_str().unwrap().starts_with("-----BEGIN "),
            "{part}"
        );
    }
    assert!(data["federatedBundles"]["other.example"].is_string());

    // The next one finds it all there.
    let found = json!({"labels": {"spire-svid": OURS}, "etag": "\"e/1\""});
    web.answers(SECRET, found);
    web.answers(
        &format!("{SECRET}:getIamPolicy"),
        json!({"bindings": [binding]}),
    );
    secrets.put(&svid, &granted).await.unwrap();
    assert_eq!(asked(&web).len(), 3);

    secrets.delete(&metadata(&[])).await.unwrap();
    let last = asked(&web).pop().unwrap();
    assert_eq!(
        (last.0, last.1),
        (Method::DELETE, format!("{SECRET}?etag=%22e%2F1%22"))
    );
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone() {
    let (web, secrets) = google().await;
    web.answers(SECRET, json!({"labels": {"spire-svid": "another"}}));
    for refused in [
        secrets.put(&real(), &metadata(&[])).await,
        secrets.delete(&metadata(&[])).await,
    ] {
        let why = "secret is not managed by this SPIRE deployment".to_owned();
        assert_eq!(refused, Err(StoreFault::Malformed(why)));
    }
    let mut refused = Response::new(json!({"error": {"message": "not you"}}).to_string().into());
    *refused.status_mut() = StatusCode::FORBIDDEN;
    web.answers_with(SECRET, refused);
    let failed = secrets.put(&real(), &metadata(&[])).await;
    let why = "failed to get secret: 403 Forbidden: not you".to_owned();
    assert_eq!(failed, Err(StoreFault::Failed(why)));
    for wrong in [
        vec!["name:web".to_owned()],
        metadata(&["role:r"]),
        metadata(&["serviceaccount:a"]),
        metadata(&["regions:,"]),
        vec!["projectid:p/1".to_owned(), "name:web".to_owned()],
    ] {
        let refused = secrets.put(&real(), &wrong).await;
        assert!(
            matches!(refused, Err(StoreFault::Malformed(_))),
            "{wrong:?}"
        );
    }
}
