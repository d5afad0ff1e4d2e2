use std::sync::{Arc, Mutex};

use ah_spire_attest::node::k8s::KubeApi;
use ah_testkit::web::{Asked, Web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const MAP: &str = "/api/v1/namespaces/spire/configmaps/spire-bundle";

/// A kubeconfig that leads to `web`, with a token.
fn api(web: &Web, folder: &TempDir) -> KubeApi {
    let path = folder.path().join("kubeconfig");
    let text = format!(
        "{{current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}], clusters: [{{name: k, cluster: {{server: '{}'}}}}], users: [{{name: u, user: {{token: secret}}}}]}}",
        web.url("")
    );
    std::fs::write(&path, text).unwrap();
    KubeApi::new(path, "spire-server")
}

fn refusal(status: StatusCode, message: &str) -> Response<Bytes> {
    let body = json!({"kind": "Status", "message": message}).to_string();
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

fn json(asked: &Asked) -> Value {
    serde_json::from_str(&asked.body).unwrap()
}

// BundlePublisher `k8s_configmap`
#[tokio::test]
async fn a_config_map_is_applied_in_each_cluster() {
    let (here, there, folders) = (
        Web::start().await,
        Web::start().await,
        [(); 2].map(|()| TempDir::new().unwrap()),
    );
    let target = |web, folder| ConfigMapTarget {
        api: api(web, folder),
        formatted: Formatted::read("pem", "").unwrap(),
        namespace: "spire".into(),
        name: "spire-bundle".into(),
        key: "bundle.pem".into(),
    };
    let clusters = [
        ("here".to_owned(), target(&here, &folders[0])),
        ("there".to_owned(), target(&there, &folders[1])),
    ];
    let publisher = ConfigMapPublisher::new(clusters.into());
    here.answers_with(MAP, refusal(StatusCode::FORBIDDEN, "not for you"));
    there.answers(MAP, "{}");
    let bundle = bundle(1);
    let error = publisher.publish(&bundle).await.unwrap_err();
    assert_eq!(
        error,
        "failed to apply ConfigMap for cluster \"here\": not for you"
    );
    here.answers(MAP, "{}");
    publisher.publish(&bundle).await.unwrap();

    let asked = there.asked().remove(0);
    assert_eq!(asked.method, Method::PATCH);
    assert_eq!(
        asked.target,
        format!("{MAP}?fieldManager=spire-bundlepublisher-k8s_configmap&force=false")
    );
    assert_eq!(asked.header("content-type"), "application/apply-patch+yaml");
    assert_eq!(asked.header("authorization"), "Bearer secret");
    let map = json(&asked);
    assert_eq!(
        (&map["kind"], &map["apiVersion"]),
        (&"ConfigMap".into(), &"v1".into())
    );
    assert_eq!(
        map["metadata"],
        json!({"name": "spire-bundle", "namespace": "spire"})
    );
    assert_eq!(map["data"]["bundle.pem"], certificates(&bundle));
}

fn objects(api: KubeApi, label: Option<&str>) -> BundleObjects {
    BundleObjects {
        api,
        namespace: "spire".into(),
        config_map: "spire-bundle".into(),
        key: "bundle.crt".into(),
        webhook_label: label.map(Into::into),
        api_service_label: label.map(Into::into),
    }
}

// Notifier `k8sbundle`: two servers may change the map at a time.
#[tokio::test]
async fn a_config_map_is_read_again_after_a_conflict() {
    let (web, folder) = (Web::start().await, TempDir::new().unwrap());
    let stored = Arc::new(Stored(Mutex::new(bundle(1))));
    let notifier = K8sBundle::new(vec![objects(api(&web, &folder), None)], stored.clone());
    assert!(!notifier.looks_again());
    // Another server is in between once, and the bundle changes with it.
    let newer = bundle(2);
    let (expected, version) = (certificates(&newer), Mutex::new(41));
    let between = stored.clone();
    web.answers_by(MAP, move |asked| {
        let mut version = version.lock().unwrap();
        if asked.method == Method::GET {
            *version += 1;
            let map = json!({"metadata": {"resourceVersion": version.to_string()}, "data": {"bundle.crt": "old"}});
            return Response::new(map.to_string().into());
        }
        if *version == 42 {
            *between.0.lock().unwrap() = newer.clone();
            return refusal(StatusCode::CONFLICT, "the object has been modified");
        }
        Response::new("{}".into())
    });
    notifier.loaded(&bundle(1)).await.unwrap();
    let asked = web.asked();
    let methods: Vec<_> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["GET", "PATCH", "GET", "PATCH"]);
    assert_eq!(
        asked[3].header("content-type"),
        "application/strategic-merge-patch+json"
    );
    assert_eq!(
        json(&asked[3]),
        json!({"metadata": {"resourceVersion": "43"}, "data": {"bundle.crt": expected}})
    );
}

#[tokio::test]
async fn labelled_webhooks_and_api_services_get_the_bundle() {
    let (web, folder) = (Web::start().await, TempDir::new().unwrap());
    let bundle = bundle(1);
    let encoded = STANDARD.encode(certificates(&bundle));
    let stored = Arc::new(Stored(Mutex::new(bundle.clone())));
    let notifier = K8sBundle::new(vec![objects(api(&web, &folder), Some("spire"))], stored);
    assert!(notifier.looks_again());
    let map = json!({"metadata": {"resourceVersion": "1"}, "data": {"bundle.crt": certificates(&bundle)}});
    web.answers(MAP, map);
    let hooks = "/apis/admissionregistration.k8s.io/v1";
    let list = |name: &str| json!({"items": [{"metadata": {"name": name}}]});
    let hook = |ca: &str| json!({"metadata": {"resourceVersion": "7"}, "webhooks": [{"name": "w.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"caBundle": ca, "url": "https://w.example.org"}}]});
    web.answers(
        &format!("{hooks}/mutatingwebhookconfigurations"),
        list("one"),
    );
    web.answers(
        &format!("{hooks}/mutatingwebhookconfigurations/one"),
        hook("b2xk"),
    );
    web.answers(
        &format!("{hooks}/validatingwebhookconfigurations"),
        list("two"),
    );
    web.answers(
        &format!("{hooks}/validatingwebhookconfigurations/two"),
        hook(&encoded),
    );
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    web.answers(services, list("v1.example.org"));
    let service = json!({"metadata": {"resourceVersion": "9"}, "spec": {"groupPriorityMinimum": 100, "versionPriority": 15}});
    web.answers(&format!("{services}/v1.example.org"), service);
    notifier.updated(&bundle).await.unwrap();

    let asked = web.asked();
    assert!(asked.iter().any(|asked| {
        asked
            .target
            .ends_with("/apiservices?labelSelector=spire%3Dtrue")
    }));
    // What has the bundle already is left alone.
    let patched: Vec<_> = asked
        .iter()
        .filter(|asked| asked.method == Method::PATCH)
        .collect();
    assert_eq!(patched.len(), 2, "{patched:?}");
    assert_eq!(
        json(patched[0]),
        json!({"metadata": {"resourceVersion": "7"}, "webhooks": [{"name": "w.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"caBundle": encoded}}]})
    );
    assert_eq!(
        json(patched[1]),
        json!({"metadata": {"resourceVersion": "9"}, "spec": {"caBundle": encoded, "groupPriorityMinimum": 100, "versionPriority": 15}})
    );
}

#[tokio::test]
async fn an_object_that_is_missing_is_told() {
    let (web, folder) = (Web::start().await, TempDir::new().unwrap());
    let stored = Arc::new(Stored(Mutex::new(bundle(1))));
    let notifier = K8sBundle::new(vec![objects(api(&web, &folder), None)], stored);
    web.answers_with(
        MAP,
        refusal(
            StatusCode::NOT_FOUND,
            "configmaps \"spire-bundle\" not found",
        ),
    );
    let error = notifier.loaded(&bundle(1)).await.unwrap_err();
    assert_eq!(
        error,
        format!(
            "unable to update: {MAP}: unable to get object: configmaps \"spire-bundle\" not found"
        )
    );
}
