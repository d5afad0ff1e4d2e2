//! Pods as the kubelet lists them (`PodList` of `core/v1`), with what is used of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};

/// The pods of a node.
#[derive(Deserialize)]
struct PodList {
    #[serde(deserialize_with = "or_default")]
    items: Vec<Pod>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Pod {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

/// `ObjectMeta` of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) name: String,
    /// Empty for an object of the whole cluster.
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Owner {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: String,
    node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, deserialize_with = "or_default")]
    container_statuses: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_container_statuses: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    /// `runtime://ID`, empty before it was started.
    #[serde(rename = "containerID")]
    container_id: String,
}

/// What is `null` is as what is not there.
pub(super) fn or_default<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads a list. A pod without a UID is left out.
pub(super) fn read(json: &[u8]) -> Result<Vec<Pod>, String> {
    let list: PodList = serde_json::from_slice(json)
        .map_err(|error| format!("unable to parse kubelet response: {error}"))?;
    let mut pods = list.items;
    pods.retain(|pod| !pod.metadata.uid.is_empty());
    Ok(pods)
}

impl Pod {
    /// Reads one pod, as the Kubernetes API shows it.
    pub(super) fn read(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json)
            .map_err(|error| format!("the answer is not what was asked for: {error}"))
    }

    pub(super) fn uid(&self) -> &str {
        &self.metadata.uid
    }

    pub(super) fn name(&self) -> &str {
        &self.metadata.name
    }

    pub(super) fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// Its container with this ID.
    pub(super) fn container(&self, id: &str) -> Option<&Container> {
        let status = &self.status;
        let mut all = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses);
        all.find(|container| {
            let found = container.container_id.split_once("://");
            found.is_some_and(|(_, found)| found == id)
        })
    }

    /// Values of its selectors.
    pub(super) fn values(&self) -> Vec<String> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let images = &status.container_statuses;
        let init_images = &status.init_container_statuses;
        let mut values = vec![
            format!("sa:{}", spec.service_account_name),
            format!("ns:{}", metadata.namespace),
            format!("node-name:{}", spec.node_name),
            format!("pod-uid:{}", metadata.uid),
            format!("pod-name:{}", metadata.name),
            format!("pod-image-count:{}", images.len()),
            format!("pod-init-image-count:{}", init_images.len()),
        ];
        values.extend(images_of("pod-image", images));
        values.extend(images_of("pod-init-image", init_images));
        let labels = metadata.labels.iter();
        values.extend(labels.map(|(key, value)| format!("pod-label:{key}:{value}")));
        for Owner {
            kind, name, uid, ..
        } in &metadata.owner_references
        {
            values.push(format!("pod-owner:{kind}:{name}"));
            values.push(format!("pod-owner-uid:{kind}:{uid}"));
        }
        values
    }
}

impl Container {
    /// The image by its digest, which the runtime found for its name.
    pub(super) fn image_id(&self) -> &str {
        &self.image_id
    }

    /// Values of its selectors.
    pub(super) fn values(&self) -> Vec<String> {
        let mut values = vec![format!("container-name:{}", self.name)];
        values.extend(images_of("container-image", std::slice::from_ref(self)));
        values
    }
}

/// Images go by their names and by their digests.
fn images_of(key: &str, containers: &[Container]) -> Vec<String> {
    let names = containers.iter().flat_map(|it| [&it.image, &it.image_id]);
    let names: BTreeSet<&String> = names.collect();
    names
        .into_iter()
        .map(|name| format!("{key}:{name}"))
        .collect()
}
