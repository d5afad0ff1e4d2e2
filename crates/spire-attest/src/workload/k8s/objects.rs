//! Objects of Kubernetes, by the API of the cluster.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ah_spire_wire::broker::KubernetesObjectType;
use ah_spire_wire::sigv4::percent_encoded;
use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use spiffe::SpiffeId;

use crate::AttestError;
use crate::node::k8s::{KubeApi, KubeError, object_name};
use crate::workload::k8s::pods::{Metadata, Pod, or_default};

/// How long what the API said of kinds counts.
const KINDS_LAST: Duration = Duration::from_mins(10);

/// What is asked for of an object: its metadata, as any object has them.
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// How many objects an answer has.
const PAGE: usize = 250;

/// SPIRE's own verb, which a cluster's rules may allow brokers.
const VERB: &str = "impersonate-via-spire";

const RIGHTS: &str = "see that the Kubernetes API runs, and what it lets the agent's service account do: `get` (and, \
                      for references by UID alone, `list`) on what brokers name";

pub(super) struct Objects {
    api: KubeApi,
    kinds: Mutex<HashMap<(String, String), (Kind, Instant)>>,
}

/// What the API calls objects of a type.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
}

/// An object by name, by UID, or both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
}

/// What a broker's rights are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) of_type: &'a KubernetesObjectType,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

#[derive(Deserialize)]
struct Partial {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct PartialList {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default, deserialize_with = "or_default")]
    items: Vec<Partial>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListMetadata {
    #[serde(rename = "continue")]
    more: String,
}

impl Objects {
    pub(super) fn new(kubeconfig: PathBuf) -> Self {
        Self {
            api: KubeApi::new(kubeconfig, "spire-agent"),
            kinds: Mutex::default(),
        }
    }

    /// The kind of the objects of `of_type`.
    pub(super) async fn kind(&self, of_type: &KubernetesObjectType) -> Result<Kind, AttestError> {
        let KubernetesObjectType { plural, group } = of_type;
        let key = (group.clone(), plural.clone());
        let known = self.kinds.lock().ok().and_then(|kinds| {
            let (kind, since) = kinds.get(&key)?;
            (since.elapsed() < KINDS_LAST).then(|| kind.clone())
        });
        if let Some(kind) = known {
            return Ok(kind);
        }
        let unknown = |why: &str| {
            AttestError::invalid(
                format!("unknown Kubernetes resource {plural}.{group}: {why}"),
                "name objects by the plural and group that `kubectl api-resources` tells; the group of pods and \
                 services is \"core\"",
            )
        };
        object_name(plural).map_err(|why| unknown(&why))?;
        object_name(group).map_err(|why| unknown(&why))?;
        let found = match self.find_kind(api_group(group), plural).await {
            Ok(found) => found,
            Err(KubeError::NotFound(why)) => return Err(unknown(&why)),
            Err(error) => {
                return Err(AttestError::internal(
                    format!("unable to look up {plural}.{group}: {error}"),
                    RIGHTS,
                ));
            }
        };
        let kind = found.ok_or_else(|| unknown("the group has no such resource"))?;
        if let Ok(mut kinds) = self.kinds.lock() {
            kinds.insert(key, (kind.clone(), Instant::now()));
        }
        Ok(kind)
    }

    /// In the version that the API prefers, or else another one.
    async fn find_kind(&self, group: &str, plural: &str) -> Result<Option<Kind>, KubeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Group {
            #[serde(default)]
            preferred_version: Version,
            #[serde(default)]
            versions: Vec<Version>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Version {
            version: String,
        }
        #[derive(Deserialize)]
        struct Resources {
            #[serde(default)]
            resources: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct Resource {
            name: String,
            kind: String,
            namespaced: bool,
        }

        let versions = match group {
            "" => vec!["v1".to_owned()],
            group => {
                let path = format!("/apis/{group}");
                let found: Group = self.get(&path, "application/json").await?;
                let mut versions = vec![found.preferred_version.version];
                versions.extend(found.versions.into_iter().map(|version| version.version));
                versions
            }
        };
        let mut asked = Vec::new();
        for version in versions {
            if asked.contains(&version) || object_name(&version).is_err() {
                continue;
            }
            let found: Resources = self.get(&base(group, &version), "application/json").await?;
            let mut resources = found.resources.into_iter();
            if let Some(found) = resources.find(|resource| resource.name == plural) {
                return Ok(Some(Kind {
                    version,
                    kind: found.kind,
                    namespaced: found.namespaced,
                }));
            }
            asked.push(version);
        }
        Ok(None)
    }

    /// The metadata of the object that `key` names.
    pub(super) async fn metadata(
        &self,
        of_type: &KubernetesObjectType,
        kind: &Kind,
        key: Key<'_>,
    ) -> Result<Metadata, AttestError> {
        let Key {
            namespace,
            name,
            uid,
        } = key;
        let base = base(api_group(&of_type.group), &kind.version);
        let plural = &of_type.plural;
        let kind = &kind.kind;
        if name.is_empty() {
            let found = self.by_uid(&format!("{base}/{plural}"), uid).await;
            let found =
                found.map_err(|error| internal(format!("unable to list {kind}: {error}")))?;
            return found.ok_or_else(|| absent(format!("{kind} with UID {uid} not found")));
        }
        let path = match namespace {
            "" => format!("{base}/{plural}/{}", named(name)?),
            namespace => format!(
                "{base}/namespaces/{}/{plural}/{}",
                named(namespace)?,
                named(name)?
            ),
        };
        match self.get::<Partial>(&path, METADATA).await {
            Ok(found) => Ok(found.metadata),
            Err(KubeError::NotFound(_)) => {
                Err(absent(format!("{kind} {namespace}/{name} not found")))
            }
            Err(error) => Err(internal(format!("unable to get {kind}: {error}"))),
        }
    }

    /// The API knows no search by UID.
    async fn by_uid(&self, path: &str, uid: &str) -> Result<Option<Metadata>, KubeError> {
        let mut page = format!("{path}?limit={PAGE}");
        loop {
            let list: PartialList = self.get(&page, METADATA_LIST).await?;
            let mut found = list.items.into_iter().map(|item| item.metadata);
            if let Some(found) = found.find(|metadata| metadata.uid == uid) {
                return Ok(Some(found));
            }
            let more = list.metadata.more;
            if more.is_empty() {
                return Ok(None);
            }
            let more = percent_encoded(&more);
            page = format!("{path}?limit={PAGE}&continue={more}");
        }
    }

    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, AttestError> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}",
            named(namespace)?,
            named(name)?
        );
        let unable =
            |why: String| internal(format!("unable to get pod from Kubernetes API: {why}"));
        match self.api.read(&path, "application/json").await {
            Ok(json) => Pod::read(&json).map_err(unable),
            Err(KubeError::NotFound(_)) => Err(absent(format!("pod {namespace}/{name} not found"))),
            Err(error) => Err(unable(error.to_string())),
        }
    }

    pub(super) async fn pod_by_uid(&self, uid: &str) -> Result<Pod, AttestError> {
        let found = self.by_uid("/api/v1/pods", uid).await;
        let found = found.map_err(|error| internal(format!("unable to list Pod: {error}")))?;
        let found = found.ok_or_else(|| absent(format!("Pod with UID {uid} not found")))?;
        self.pod(&found.namespace, &found.name).await
    }

    /// Has the cluster say whether `broker` may act for `subject` (`SubjectAccessReview` of `authorization.k8s.io/v1`).
    pub(super) async fn review(
        &self,
        broker: &SpiffeId,
        subject: Subject<'_>,
    ) -> Result<(), AttestError> {
        #[derive(Deserialize)]
        struct Review {
            #[serde(default)]
            status: Status,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            allowed: bool,
            denied: bool,
        }

        let unable = |why: String| {
            AttestError::internal(
                format!("unable to check Kubernetes authorization for broker: {why}"),
                "access_policy = \"enforced\" takes `create` on subjectaccessreviews.authorization.k8s.io for the \
                 agent's service account",
            )
        };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": broker.to_string(),
                "resourceAttributes": {
                    "group": api_group(&subject.of_type.group),
                    "resource": subject.of_type.plural,
                    "namespace": subject.namespace,
                    "name": subject.name,
                    "verb": VERB,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let body = Some(("application/json", review.to_string().into()));
        let answer = self.api.send(Method::POST, path, body).await;
        let answer = answer.map_err(|error| unable(error.to_string()))?;
        let answer: Review =
            serde_json::from_slice(&answer).map_err(|error| unable(error.to_string()))?;
        if answer.status.allowed && !answer.status.denied {
            return Ok(());
        }
        Err(AttestError::refused(
            format!(
                "Kubernetes authorizer does not allow the broker to use {VERB} for the referenced object"
            ),
            format!(
                "let a role of the user {broker} have the verb {VERB} on {}",
                subject.of_type.plural
            ),
        ))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, accept: &str) -> Result<T, KubeError> {
        let json = self.api.read(path, accept).await?;
        serde_json::from_slice(&json).map_err(|error| {
            KubeError::Other(format!("the answer is not what was asked for: {error}"))
        })
    }
}

/// References say `core` where the API says nothing.
pub(super) fn api_group(group: &str) -> &str {
    match group {
        "core" => "",
        group => group,
    }
}

fn base(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

fn named(name: &str) -> Result<&str, AttestError> {
    object_name(name).map_err(|why| {
        AttestError::invalid(
            why,
            "name the object as `kubectl get` does, without slashes",
        )
    })
}

fn absent(text: String) -> AttestError {
    AttestError::not_found(text, "compare the reference with what `kubectl get` tells")
}

fn internal(text: String) -> AttestError {
    AttestError::internal(text, RIGHTS)
}
