//! Notifier `k8sbundle`: the CA certificates in a ConfigMap, and in the webhooks and API services that have a label.

use std::sync::Arc;
use std::time::Duration;

use ah_spire_attest::node::k8s::{KubeApi, KubeError, object_name};
use ah_spire_wire::model::Bundle;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::{Newest, Notifier, certificates};

/// How often an object is read again that somebody else changed meanwhile.
const ATTEMPTS: usize = 5;

/// Between two of them, as clients of Kubernetes wait.
const BETWEEN: Duration = Duration::from_millis(10);

/// What is kept up to date in a cluster.
#[derive(Clone, Debug)]
pub struct BundleObjects {
    /// The cluster's API.
    pub api: KubeApi,
    /// `namespace`
    pub namespace: String,
    /// `config_map`
    pub config_map: String,
    /// `config_map_key`
    pub key: String,
    /// `webhook_label`
    pub webhook_label: Option<String>,
    /// `api_service_label`
    pub api_service_label: Option<String>,
}

/// Keeps objects of clusters up to date.
pub struct K8sBundle {
    clusters: Vec<BundleObjects>,
    newest: Arc<dyn Newest>,
}

/// A kind of object.
#[derive(Clone, Copy)]
enum Kind {
    ConfigMap,
    Webhooks,
    ApiService,
}

impl K8sBundle {
    /// `newest` is asked anew before each change: of two servers that change an object at a time, the one that comes second
    /// has what the first one did not know.
    pub fn new(clusters: Vec<BundleObjects>, newest: Arc<dyn Newest>) -> Self {
        Self { clusters, newest }
    }

    async fn update(&self) -> Result<(), String> {
        let mut failed = Vec::new();
        for cluster in &self.clusters {
            for (kind, collection, label) in cluster.collections() {
                let paths = match label {
                    None => Ok(vec![collection]),
                    Some(label) => cluster.labelled(&collection, label).await,
                };
                let paths = paths.unwrap_or_else(|error| {
                    failed.push(format!("unable to get list: {error}"));
                    Vec::new()
                });
                for path in paths {
                    if let Err(error) = self.update_one(cluster, kind, &path).await {
                        failed.push(format!("{path}: {error}"));
                    }
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(format!("unable to update: {}", failed.join(", ")))
    }

    async fn update_one(
        &self,
        cluster: &BundleObjects,
        kind: Kind,
        path: &str,
    ) -> Result<(), String> {
        for _ in 1..ATTEMPTS {
            match self.attempt(cluster, kind, path).await {
                Err(KubeError::Conflict(_)) => tokio::time::sleep(BETWEEN).await,
                done => return done.map_err(|error| error.to_string()),
            }
        }
        let last = self.attempt(cluster, kind, path).await;
        last.map_err(|error| error.to_string())
    }

    /// The object is read before the bundle: who changes either of them in between is found out by the object's version.
    async fn attempt(
        &self,
        cluster: &BundleObjects,
        kind: Kind,
        path: &str,
    ) -> Result<(), KubeError> {
        let found = cluster.api.send(Method::GET, path, None).await;
        let found = found.map_err(|error| match error {
            KubeError::NotFound(error) | KubeError::Other(error) => {
                KubeError::Other(format!("unable to get object: {error}"))
            }
            conflict => conflict,
        })?;
        let object = read(&found).map_err(KubeError::Other)?;
        let bundle = self.newest.bundle().await.map_err(KubeError::Other)?;
        let pem = certificates(&bundle);
        let Some(mut patch) = kind.patch(&object, &cluster.key, &pem) else {
            return Ok(());
        };
        if let Some(patch) = patch.as_object_mut() {
            let version = object.pointer("/metadata/resourceVersion");
            patch.insert("metadata".into(), json!({"resourceVersion": version}));
        }
        let body = (
            "application/strategic-merge-patch+json",
            patch.to_string().into(),
        );
        cluster.api.send(Method::PATCH, path, Some(body)).await?;
        tracing::debug!(object = path, "Bundle set for object");
        Ok(())
    }
}

impl BundleObjects {
    /// The paths of objects, or of collections and the label of those in them that are meant.
    fn collections(&self) -> Vec<(Kind, String, Option<&str>)> {
        let map = format!(
            "/api/v1/namespaces/{}/configmaps/{}",
            self.namespace, self.config_map
        );
        let mut all = vec![(Kind::ConfigMap, map, None)];
        if let Some(label) = self.webhook_label.as_deref() {
            for kind in ["mutating", "validating"] {
                let path =
                    format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations");
                all.push((Kind::Webhooks, path, Some(label)));
            }
        }
        if let Some(label) = self.api_service_label.as_deref() {
            let path = "/apis/apiregistration.k8s.io/v1/apiservices".to_owned();
            all.push((Kind::ApiService, path, Some(label)));
        }
        all
    }

    async fn labelled(&self, collection: &str, label: &str) -> Result<Vec<String>, String> {
        let label: String = url::form_urlencoded::byte_serialize(label.as_bytes()).collect();
        let path = format!("{collection}?labelSelector={label}%3Dtrue");
        let list = self.api.send(Method::GET, &path, None).await;
        let list = read(&list.map_err(|error| error.to_string())?)?;
        let items = list.get("items").and_then(Value::as_array);
        let names = items.into_iter().flatten().map(|item| {
            let name = item.pointer("/metadata/name").and_then(Value::as_str);
            Ok(format!(
                "{collection}/{}",
                object_name(name.unwrap_or_default())?
            ))
        });
        names.collect()
    }
}

impl Kind {
    /// What has to change in `object`; `None` where nothing has to.
    fn patch(self, object: &Value, key: &str, pem: &str) -> Option<Value> {
        let encoded = STANDARD.encode(pem);
        match self {
            Self::ConfigMap => {
                let old = object.get("data").and_then(|data| data.get(key));
                let same = old.and_then(Value::as_str) == Some(pem);
                (!same).then(|| json!({"data": {key: pem}}))
            }
            Self::ApiService => {
                let spec = object.get("spec")?;
                let same = spec.get("caBundle").and_then(Value::as_str) == Some(&encoded);
                (!same).then(|| {
                    json!({"spec": {
                        "caBundle": encoded,
                        "groupPriorityMinimum": spec.get("groupPriorityMinimum"),
                        "versionPriority": spec.get("versionPriority"),
                    }})
                })
            }
            Self::Webhooks => {
                let hooks = object.get("webhooks").and_then(Value::as_array)?;
                let old = |hook: &Value| hook.pointer("/clientConfig/caBundle").cloned();
                if hooks
                    .iter()
                    .all(|hook| old(hook).as_ref().and_then(Value::as_str) == Some(&encoded))
                {
                    return None;
                }
                let hooks: Vec<_> = hooks
                    .iter()
                    .map(|hook| {
                        json!({
                            "name": hook.get("name"),
                            "admissionReviewVersions": hook.get("admissionReviewVersions"),
                            "clientConfig": {"caBundle": encoded},
                            "sideEffects": hook.get("sideEffects"),
                        })
                    })
                    .collect();
                Some(json!({"webhooks": hooks}))
            }
        }
    }
}

fn read(answer: &Bytes) -> Result<Value, String> {
    serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is not what was asked for: {error}"))
}

#[tonic::async_trait]
impl Notifier for K8sBundle {
    fn name(&self) -> &str {
        "k8sbundle"
    }

    /// Upstream watches what has the labels; here it is looked at again.
    fn looks_again(&self) -> bool {
        let labelled =
            |one: &BundleObjects| one.webhook_label.is_some() || one.api_service_label.is_some();
        self.clusters.iter().any(labelled)
    }

    async fn loaded(&self, _: &Bundle) -> Result<(), String> {
        self.update().await
    }

    async fn updated(&self, _: &Bundle) -> Result<(), String> {
        self.update().await
    }
}
