//! BundlePublisher `k8s_configmap`: a key of a ConfigMap, in one cluster or several.

use std::collections::BTreeMap;

use ah_spire_attest::node::k8s::{KubeApi, object_name};
use ah_spire_wire::model::Bundle;
use http::Method;
use serde_json::json;

use super::{Formatted, Publisher};

/// Who owns the key in the eyes of the API server, as with upstream.
const FIELD_MANAGER: &str = "spire-bundlepublisher-k8s_configmap";

/// Where in a cluster the bundle goes.
#[derive(Clone, Debug)]
pub struct ConfigMapTarget {
    /// The cluster's API.
    pub api: KubeApi,
    /// `format` and `refresh_hint`
    pub formatted: Formatted,
    /// `namespace`
    pub namespace: String,
    /// `configmap_name`
    pub name: String,
    /// `configmap_key`
    pub key: String,
}

/// Publishes to ConfigMaps.
pub struct ConfigMapPublisher {
    clusters: BTreeMap<String, ConfigMapTarget>,
}

impl ConfigMapPublisher {
    /// By the names of the clusters in the configuration.
    pub fn new(clusters: BTreeMap<String, ConfigMapTarget>) -> Self {
        Self { clusters }
    }
}

impl ConfigMapTarget {
    /// Server-side apply: keys of others stay, and a ConfigMap that is missing is made.
    async fn apply(&self, bundle: &Bundle) -> Result<(), String> {
        let text = self.formatted.of(bundle)?;
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "data": {self.key.as_str(): text},
        });
        let path = format!(
            "/api/v1/namespaces/{}/configmaps/{}?fieldManager={FIELD_MANAGER}&force=false",
            object_name(&self.namespace)?,
            object_name(&self.name)?
        );
        let body = ("application/apply-patch+yaml", map.to_string().into());
        let answer = self.api.send(Method::PATCH, &path, Some(body)).await;
        answer.map(|_| ()).map_err(|error| error.to_string())
    }
}

#[tonic::async_trait]
impl Publisher for ConfigMapPublisher {
    fn name(&self) -> &str {
        "k8s_configmap"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let mut failed = Vec::new();
        for (id, cluster) in &self.clusters {
            if let Err(error) = cluster.apply(bundle).await {
                failed.push(format!(
                    "failed to apply ConfigMap for cluster {id:?}: {error}"
                ));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(failed.join("; "))
    }
}
