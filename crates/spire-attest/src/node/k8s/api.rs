//! The calls of the Kubernetes API that attestation needs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::call::{KubeApi, object_name};

/// What attestation asks of the API of one cluster.
pub(crate) struct Api(KubeApi);

/// Who holds a token (`TokenReviewStatus` of `authentication.k8s.io/v1`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenStatus {
    pub(super) authenticated: bool,
    user: UserInfo,
    audiences: Vec<String>,
    error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UserInfo {
    username: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// A pod or a node, with what is used of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    #[serde(rename = "hostIP")]
    pub(super) host_ip: String,
}

impl TokenStatus {
    /// Namespace and name of the service account, from `system:serviceaccount:<namespace>:<name>`.
    pub(super) fn names(&self) -> Result<(&str, &str), String> {
        let username = &self.user.username;
        if username.is_empty() {
            return Err("empty username".into());
        }
        let parts: Vec<_> = username.split(':').collect();
        match parts[..] {
            [_, _, "", _] => Err("missing namespace".into()),
            [_, _, _, ""] => Err("missing service account name".into()),
            [_, _, namespace, name] => Ok((namespace, name)),
            _ => Err(format!("unexpected username format: {username}")),
        }
    }

    pub(super) fn pod_name(&self) -> Result<&str, String> {
        self.extra("authentication.kubernetes.io/pod-name", "pod name", "name")
    }

    pub(super) fn pod_uid(&self) -> Result<&str, String> {
        self.extra("authentication.kubernetes.io/pod-uid", "pod UID", "UID")
    }

    fn extra(&self, key: &str, what: &str, noun: &str) -> Result<&str, String> {
        match self.user.extra.get(key).map(Vec::as_slice) {
            None => Err(format!("missing {what}")),
            Some([one]) if one.is_empty() => Err(format!("{what} is empty")),
            Some([one]) => Ok(one),
            Some(several) => Err(format!("expected 1 {noun} but got: {}", several.len())),
        }
    }
}

impl Api {
    /// The API that the file `kubeconfig` leads to, or the one of this process's own pod where it is empty,
    /// for `program`.
    pub(crate) fn new(kubeconfig: PathBuf, program: &'static str) -> Self {
        Self(KubeApi::new(kubeconfig, program))
    }

    /// Asks who holds `token`; with `audiences`, whether it is for one of them.
    pub(super) async fn review(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<TokenStatus, String> {
        #[derive(Deserialize)]
        struct Review {
            #[serde(default)]
            status: TokenStatus,
        }

        // An empty list is left out, and the API server takes its own audience.
        let audience = (!audiences.is_empty()).then_some(audiences);
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": audience},
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer: Result<Review, _> = self.call(path, Some(review.to_string().into())).await;
        let answer =
            answer.map_err(|error| format!("unable to query token review API: {error}"))?;
        let status = answer.status;
        if !status.error.is_empty() {
            return Err(format!(
                "token review API response contains an error: {}",
                status.error
            ));
        }
        // An API server that knows no audiences gives none back, and has not looked at them.
        let wanted = |found: &String| audiences.contains(found);
        if status.authenticated && !audiences.is_empty() && !status.audiences.iter().any(wanted) {
            return Err(format!(
                "token review API did not validate audience: wanted one of {audiences:?} but got {:?}",
                status.audiences
            ));
        }
        Ok(status)
    }

    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Object, String> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}",
            object_name(namespace)?,
            object_name(name)?
        );
        let pod = self.call(&path, None).await;
        pod.map_err(|error| format!("unable to query pods API: {error}"))
    }

    pub(super) async fn node(&self, name: &str) -> Result<Object, String> {
        if name.is_empty() {
            return Err("empty node name".into());
        }
        let path = format!("/api/v1/nodes/{}", object_name(name)?);
        let node = self.call(&path, None).await;
        node.map_err(|error| format!("unable to query nodes API: {error}"))
    }

    /// The labels of a namespace.
    #[cfg(target_os = "linux")]
    pub(crate) async fn namespace_labels(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let path = format!("/api/v1/namespaces/{}", object_name(name)?);
        let namespace: Object = self.call(&path, None).await?;
        Ok(namespace.metadata.labels)
    }

    /// Posts `body`, or gets where there is none.
    async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, String> {
        let answer = match body {
            Some(body) => {
                let body = Some(("application/json", body));
                self.0.send(Method::POST, path, body).await
            }
            None => self.0.send(Method::GET, path, None).await,
        };
        let answer = answer.map_err(|error| error.to_string())?;
        serde_json::from_slice(&answer)
            .map_err(|error| format!("the answer is not what was asked for: {error}"))
    }
}
