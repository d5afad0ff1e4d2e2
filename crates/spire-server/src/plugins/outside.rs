//! `BundlePublisher` and `Notifier` plugins.

use std::collections::BTreeMap;
use std::sync::Arc;

use ah_spire_attest::node::gcp_iit::{Account, Google};
use ah_spire_attest::node::k8s::{KubeApi, object_name};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin_host::publish as external;
use ah_spire_wire::aws::Environment;
use ah_spire_wire::model::Bundle;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::external::Running;
use super::node::{OwnAuthorities, known_alone};
use super::{aws, data, path, required, wrong};
use crate::publish::{
    Azure, AzureBlob, AzureIdentity, BundleObjects, ConfigMapPublisher, ConfigMapTarget, Formatted,
    GcsBundle, GcsObject, GcsPublisher, K8sBundle, Newest, Notifier, Outside, Publisher,
};
use crate::store::Bundles;

config_block! {
    /// `BundlePublisher "k8s_configmap"`
    struct ConfigMapData {
        clusters: BTreeMap<String, ConfigMapCluster> = "clusters",
    }
}

config_block! {
    /// A cluster of `k8s_configmap`.
    struct ConfigMapCluster {
        format: String = "format",
        namespace: String = "namespace",
        configmap_name: String = "configmap_name",
        configmap_key: String = "configmap_key",
        kubeconfig_path: String = "kubeconfig_path",
        refresh_hint: String = "refresh_hint",
    }
}

config_block! {
    /// `Notifier "k8sbundle"`
    struct K8sBundleData {
        namespace: String = "namespace",
        config_map: String = "config_map",
        config_map_key: String = "config_map_key",
        webhook_label: String = "webhook_label",
        api_service_label: String = "api_service_label",
        kube_config_file_path: String = "kube_config_file_path",
        clusters: Vec<K8sBundleCluster> = "clusters",
    }
}

config_block! {
    /// A cluster of `k8sbundle`.
    #[derive(PartialEq, Eq)]
    struct K8sBundleCluster {
        namespace: String = "namespace",
        config_map: String = "config_map",
        config_map_key: String = "config_map_key",
        webhook_label: String = "webhook_label",
        api_service_label: String = "api_service_label",
        kube_config_file_path: String = "kube_config_file_path",
    }
}

config_block! {
    /// `BundlePublisher "gcp_cloudstorage"`
    struct GcsData {
        bucket_name: String = "bucket_name",
        object_name: String = "object_name",
        format: String = "format",
        service_account_file: String = "service_account_file",
        refresh_hint: String = "refresh_hint",
    }
}

config_block! {
    /// `Notifier "gcs_bundle"`
    struct GcsBundleData {
        bucket: String = "bucket",
        object_path: String = "object_path",
        service_account_file: String = "service_account_file",
    }
}

config_block! {
    /// `BundlePublisher "azure_blob"`
    struct AzureBlobData {
        storage_account_name: String = "storage_account_name",
        storage_account_key: String = "storage_account_key",
        service_endpoint: String = "service_endpoint",
        container_name: String = "container_name",
        blob_name: String = "blob_name",
        format: String = "format",
        tenant_id: String = "tenant_id",
        app_id: String = "app_id",
        app_secret: String = "app_secret",
        refresh_hint: String = "refresh_hint",
    }
}

/// A built-in plugin that takes the bundle out, with its settings.
pub(crate) enum OutsideWanted {
    ConfigMaps(BTreeMap<String, ConfigMapTarget>),
    Gcs(GcsObject, Formatted),
    GcsBundle(GcsObject),
    K8sBundle(Vec<BundleObjects>),
    Publisher(Arc<dyn Publisher>),
    /// Type and name of a plugin in a process of its own.
    External(PluginType, String),
}

impl OutsideWanted {
    /// `None` if there is no such plugin.
    pub(super) fn read(plugin: &PluginConfig) -> Result<Option<Self>, String> {
        Ok(Some(match (plugin.plugin_type, plugin.name.as_str()) {
            (PluginType::BundlePublisher, "k8s_configmap") => {
                Self::ConfigMaps(config_maps(plugin)?)
            }
            (PluginType::BundlePublisher, "aws_rolesanywhere_trustanchor") => {
                let anchor = aws::trust_anchor(plugin, Environment::of_process())?;
                Self::Publisher(Arc::new(anchor))
            }
            (PluginType::BundlePublisher, "aws_s3") => {
                Self::Publisher(Arc::new(aws::s3(plugin, Environment::of_process())?))
            }
            (PluginType::BundlePublisher, "azure_blob") => {
                let variable = |name: &str| std::env::var(name).ok();
                Self::Publisher(Arc::new(azure_blob(plugin, variable)?))
            }
            (PluginType::BundlePublisher, "gcp_cloudstorage") => gcs(plugin)?,
            (PluginType::Notifier, "gcs_bundle") => Self::GcsBundle(gcs_bundle(plugin)?),
            (PluginType::Notifier, "k8sbundle") => Self::K8sBundle(k8sbundle(plugin)?),
            _ => return Ok(None),
        }))
    }

    /// Puts what `wanted` names together. Nobody is asked anything yet.
    pub(crate) fn open(
        wanted: Vec<Self>,
        own: &OwnAuthorities,
        running: &Running,
    ) -> Result<Outside, String> {
        let mut outside = Outside::default();
        let newest: Arc<dyn Newest> = Arc::new(own.clone());
        for wanted in wanted {
            match wanted {
                Self::Publisher(publisher) => outside.publishers.push(publisher),
                Self::Gcs(object, formatted) => outside
                    .publishers
                    .push(Arc::new(GcsPublisher::new(object, formatted))),
                Self::GcsBundle(object) => outside
                    .notifiers
                    .push(Arc::new(GcsBundle::new(object, newest.clone()))),
                Self::ConfigMaps(clusters) => outside
                    .publishers
                    .push(Arc::new(ConfigMapPublisher::new(clusters))),
                Self::K8sBundle(clusters) => outside
                    .notifiers
                    .push(Arc::new(K8sBundle::new(clusters, newest.clone()))),
                Self::External(kind, name) => {
                    let plugin = running.named(kind, &name)?;
                    match kind {
                        PluginType::Notifier => outside
                            .notifiers
                            .push(Arc::new(external::Notifier::new(plugin))),
                        _ => outside
                            .publishers
                            .push(Arc::new(external::Publisher::new(plugin))),
                    }
                }
            }
        }
        Ok(outside)
    }
}

#[tonic::async_trait]
impl Publisher for external::Publisher {
    fn name(&self) -> &str {
        self.name()
    }

    /// As with upstream: the plugin remembers what it has published.
    fn wants_again(&self) -> bool {
        true
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let told = self.publish(bundle).await;
        told.map_err(|status| status.message().to_owned())
    }
}

#[tonic::async_trait]
impl Notifier for external::Notifier {
    fn name(&self) -> &str {
        self.name()
    }

    async fn loaded(&self, bundle: &Bundle) -> Result<(), String> {
        let told = self.loaded(bundle).await;
        told.map_err(|status| status.message().to_owned())
    }

    async fn updated(&self, bundle: &Bundle) -> Result<(), String> {
        let told = self.updated(bundle).await;
        told.map_err(|status| status.message().to_owned())
    }
}

#[tonic::async_trait]
impl Newest for OwnAuthorities {
    async fn bundle(&self) -> Result<Bundle, String> {
        let bundle = self.store.bundle(&self.trust_domain).await;
        let bundle = bundle.map_err(|error| format!("unable to fetch bundle: {error}"))?;
        bundle.ok_or_else(|| "the server's bundle is missing".into())
    }
}

fn config_maps(plugin: &PluginConfig) -> Result<BTreeMap<String, ConfigMapTarget>, String> {
    let data = data(plugin, |it: &ConfigMapData| &it.unknown)?;
    if data.clusters.is_empty() {
        tracing::warn!("No clusters configured, bundle will not be published");
    }
    let clusters = data.clusters.into_iter().map(|(id, cluster)| {
        known_alone(plugin, &format!("cluster \"{id}\""), &cluster.unknown)?;
        let told = |why: String| wrong(plugin, format!("cluster \"{id}\": {why}"));
        let name = |key: &str, value: String| match value.as_str() {
            "" => Err(told(format!("{key} is required"))),
            name => object_name(name)
                .map(str::to_owned)
                .map_err(|why| told(format!("{key}: {why}"))),
        };
        let formatted = Formatted::read(&cluster.format, &cluster.refresh_hint);
        let target = ConfigMapTarget {
            api: KubeApi::new(cluster.kubeconfig_path.into(), "spire-server"),
            formatted: formatted.map_err(told)?,
            namespace: name("namespace", cluster.namespace)?,
            name: name("configmap_name", cluster.configmap_name)?,
            key: name("configmap_key", cluster.configmap_key)?,
        };
        Ok((id.clone(), target))
    });
    clusters.collect()
}

fn gcs(plugin: &PluginConfig) -> Result<OutsideWanted, String> {
    let data = data(plugin, |it: &GcsData| &it.unknown)?;
    let formatted = Formatted::read(&data.format, &data.refresh_hint);
    let formatted = formatted.map_err(|why| wrong(plugin, why))?;
    let bucket = ("bucket_name", data.bucket_name);
    let object = ("object_name", data.object_name);
    let object = gcs_object(plugin, bucket, object, &data.service_account_file)?;
    Ok(OutsideWanted::Gcs(object, formatted))
}

fn gcs_bundle(plugin: &PluginConfig) -> Result<GcsObject, String> {
    let data = data(plugin, |it: &GcsBundleData| &it.unknown)?;
    let bucket = ("bucket", data.bucket);
    let object = ("object_path", data.object_path);
    gcs_object(plugin, bucket, object, &data.service_account_file)
}

fn gcs_object(
    plugin: &PluginConfig,
    bucket: (&str, String),
    object: (&str, String),
    account: &str,
) -> Result<GcsObject, String> {
    required(plugin, bucket.0, &bucket.1)?;
    required(plugin, object.0, &object.1)?;
    Ok(GcsObject {
        api: "https://storage.googleapis.com".into(),
        account: Account::new(path(account), Google::default().metadata),
        bucket: bucket.1,
        object: object.1,
    })
}

fn azure_blob(
    plugin: &PluginConfig,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<AzureBlob, String> {
    let data = data(plugin, |it: &AzureBlobData| &it.unknown)?;
    let formatted = Formatted::read(&data.format, &data.refresh_hint);
    let formatted = formatted.map_err(|why| wrong(plugin, why))?;
    let account = data.storage_account_name;
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    required(plugin, "storage_account_name", &account)?;
    if !account.bytes().all(is_name) {
        let why = format!("storage_account_name {account:?} has to be of small letters and digits");
        return Err(wrong(plugin, why));
    }
    required(plugin, "container_name", &data.container_name)?;
    required(plugin, "blob_name", &data.blob_name)?;
    let application = [
        ("tenant_id", &data.tenant_id),
        ("app_id", &data.app_id),
        ("app_secret", &data.app_secret),
    ];
    let is_application = application.iter().any(|(_, value)| !value.is_empty());
    let identity = match (data.storage_account_key.as_str(), is_application) {
        ("", false) => AzureIdentity::found(variable),
        ("", true) => {
            for (key, value) in application {
                required(plugin, key, value)?;
            }
            AzureIdentity::Secret {
                tenant: data.tenant_id,
                app: data.app_id,
                secret: Zeroizing::new(data.app_secret),
            }
        }
        (_, true) => {
            return Err(wrong(
                plugin,
                "storage_account_key and tenant_id, app_id, app_secret exclude each other: keep one",
            ));
        }
        (key, false) => {
            let key = STANDARD.decode(key).map(Zeroizing::new);
            let key = key.map_err(|_| wrong(plugin, "storage_account_key is not base64"))?;
            AzureIdentity::SharedKey(key)
        }
    };
    let endpoint = match data.service_endpoint.as_str() {
        "" => "blob.core.windows.net",
        endpoint => endpoint,
    };
    let url = format!("https://{account}.{endpoint}");
    if url.parse::<http::Uri>().is_err() || endpoint.contains('/') {
        let why = format!("service_endpoint {endpoint:?} has to be the name of a host");
        return Err(wrong(plugin, why));
    }
    let place = (data.container_name, data.blob_name);
    Ok(AzureBlob::new(
        Azure::default(),
        (url, account),
        place,
        identity,
        formatted,
    ))
}

/// As upstream: the cluster that stands outside the list is left out where the list alone is given.
fn k8sbundle(plugin: &PluginConfig) -> Result<Vec<BundleObjects>, String> {
    let data = data(plugin, |it: &K8sBundleData| &it.unknown)?;
    let outer = K8sBundleCluster {
        namespace: data.namespace,
        config_map: data.config_map,
        config_map_key: data.config_map_key,
        webhook_label: data.webhook_label,
        api_service_label: data.api_service_label,
        kube_config_file_path: data.kube_config_file_path,
        ..K8sBundleCluster::default()
    };
    let is_given = outer != K8sBundleCluster::default() || data.clusters.is_empty();
    let mut all = Vec::new();
    if is_given {
        all.push(objects(plugin, outer)?);
    }
    for (at, cluster) in data.clusters.into_iter().enumerate() {
        known_alone(plugin, &format!("cluster \"{at}\""), &cluster.unknown)?;
        let path = &cluster.kube_config_file_path;
        required(plugin, "kube_config_file_path of each of clusters", path)?;
        all.push(objects(plugin, cluster)?);
    }
    Ok(all)
}

fn objects(plugin: &PluginConfig, cluster: K8sBundleCluster) -> Result<BundleObjects, String> {
    let name = |key: &str, value: &str, default: &str| {
        let name = object_name(if value.is_empty() { default } else { value });
        name.map(str::to_owned)
            .map_err(|why| wrong(plugin, format!("{key}: {why}")))
    };
    let label = |value: String| Some(value).filter(|value| !value.is_empty());
    Ok(BundleObjects {
        namespace: name("namespace", &cluster.namespace, "spire")?,
        config_map: name("config_map", &cluster.config_map, "spire-bundle")?,
        key: name("config_map_key", &cluster.config_map_key, "bundle.crt")?,
        api: KubeApi::new(cluster.kube_config_file_path.into(), "spire-server"),
        webhook_label: label(cluster.webhook_label),
        api_service_label: label(cluster.api_service_label),
    })
}
