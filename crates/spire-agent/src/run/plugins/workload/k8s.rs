//! `WorkloadAttestor "k8s"`

use std::collections::BTreeMap;

use ah_identity_provider::Explained;
use ah_spire_attest::workload::k8s::{AccessPolicy, BrokerConfig, K8sConfig, PodScope};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use spiffe::SpiffeId;

use super::sigstore::{self, SigstoreData};
use super::{data, known, refused, span, variable};

config_block! {
    /// `WorkloadAttestor "k8s"`
    struct K8sData {
        kubelet_read_only_port: i64 = "kubelet_read_only_port",
        kubelet_secure_port: i64 = "kubelet_secure_port",
        disable_kubelet_client: bool = "disable_kubelet_client",
        max_poll_attempts: i64 = "max_poll_attempts",
        poll_retry_interval: String = "poll_retry_interval",
        kubelet_ca_path: String = "kubelet_ca_path",
        skip_kubelet_verification: bool = "skip_kubelet_verification",
        token_path: String = "token_path",
        certificate_path: String = "certificate_path",
        private_key_path: String = "private_key_path",
        use_anonymous_authentication: bool = "use_anonymous_authentication",
        node_name_env: String = "node_name_env",
        node_name: String = "node_name",
        reload_interval: String = "reload_interval",
        disable_container_selectors: bool = "disable_container_selectors",
        use_new_container_locator: Option<bool> = "use_new_container_locator",
        verbose_container_locator_logs: bool = "verbose_container_locator_logs",
        enable_namespace_labels: bool = "enable_namespace_labels",
        sigstore: Option<SigstoreData> = "sigstore",
        experimental: Option<Experimental> = "experimental",
    }
}

config_block! {
    /// `experimental`
    struct Experimental {
        api_server: Option<ApiServer> = "api_server",
        broker: Option<Brokers> = "broker",
    }
}

config_block! {
    /// `experimental.api_server`
    struct ApiServer {
        cache: Option<ApiCache> = "cache",
    }
}

config_block! {
    /// `experimental.api_server.cache`
    struct ApiCache {
        enabled: bool = "enabled",
    }
}

config_block! {
    /// `experimental.broker`
    struct Brokers {
        access_policy: String = "access_policy",
        brokers: Vec<Broker> = "brokers",
    }
}

config_block! {
    /// `experimental.broker.brokers[]`
    struct Broker {
        id: String = "id",
        pod_reference_scope: String = "pod_reference_scope",
    }
}

pub(super) fn read(plugin: &PluginConfig) -> Result<K8sConfig, Explained> {
    let data: K8sData = data(plugin)?;
    known(plugin, &data.unknown)?;
    let brokers = match &data.experimental {
        Some(experimental) => self::experimental(plugin, experimental)?,
        None => None,
    };
    without_kubelet(plugin, &data)?;
    let node_name = match (data.node_name, data.node_name_env.as_str()) {
        _ if data.disable_kubelet_client => String::new(),
        (name, _) if !name.is_empty() => name,
        (_, "") => variable("MY_NODE_NAME"),
        (_, name) => variable(name),
    };
    Ok(K8sConfig {
        kubelet_read_only_port: data.kubelet_read_only_port,
        kubelet_secure_port: data.kubelet_secure_port,
        max_poll_attempts: data.max_poll_attempts,
        poll_retry_interval: span(plugin, "poll_retry_interval", &data.poll_retry_interval)?,
        kubelet_ca_path: data.kubelet_ca_path.into(),
        skip_kubelet_verification: data.skip_kubelet_verification,
        token_path: data.token_path.into(),
        certificate_path: data.certificate_path.into(),
        private_key_path: data.private_key_path.into(),
        use_anonymous_authentication: data.use_anonymous_authentication,
        node_name,
        reload_interval: span(plugin, "reload_interval", &data.reload_interval)?,
        disable_container_selectors: data.disable_container_selectors,
        use_new_container_locator: data.use_new_container_locator,
        verbose_container_locator_logs: data.verbose_container_locator_logs,
        enable_namespace_labels: data.enable_namespace_labels,
        kubeconfig: variable("KUBECONFIG").into(),
        disable_kubelet_client: data.disable_kubelet_client,
        brokers,
        sigstore: sigstore::read(plugin, data.sigstore)?,
    })
}

/// What is about the kubelet does not stand beside `disable_kubelet_client`.
fn without_kubelet(plugin: &PluginConfig, data: &K8sData) -> Result<(), Explained> {
    if !data.disable_kubelet_client {
        return Ok(());
    }
    let about_it = [
        ("kubelet_read_only_port", data.kubelet_read_only_port > 0),
        ("kubelet_secure_port", data.kubelet_secure_port > 0),
        ("kubelet_ca_path", !data.kubelet_ca_path.is_empty()),
        ("skip_kubelet_verification", data.skip_kubelet_verification),
        ("token_path", !data.token_path.is_empty()),
        ("certificate_path", !data.certificate_path.is_empty()),
        ("private_key_path", !data.private_key_path.is_empty()),
        (
            "use_anonymous_authentication",
            data.use_anonymous_authentication,
        ),
        ("node_name_env", !data.node_name_env.is_empty()),
        ("node_name", !data.node_name.is_empty()),
        ("reload_interval", !data.reload_interval.is_empty()),
    ];
    match about_it.into_iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((key, _)) => {
            let why = format!("disable_kubelet_client cannot be used with {key}");
            Err(refused(plugin, &why).hint(format!("take {key} out of its plugin_data")))
        }
    }
}

fn experimental(
    plugin: &PluginConfig,
    experimental: &Experimental,
) -> Result<Option<BrokerConfig>, Explained> {
    known(plugin, &experimental.unknown)?;
    if let Some(api_server) = &experimental.api_server {
        known(plugin, &api_server.unknown)?;
        if let Some(cache) = &api_server.cache {
            known(plugin, &cache.unknown)?;
            if cache.enabled {
                return Err(
                    refused(plugin, "experimental.api_server.cache is not supported").hint(
                        "take it out: each reference is looked up in the Kubernetes API when it comes",
                    ),
                );
            }
        }
    }
    experimental
        .broker
        .as_ref()
        .map(|config| brokers(plugin, config))
        .transpose()
}

fn brokers(plugin: &PluginConfig, config: &Brokers) -> Result<BrokerConfig, Explained> {
    const AT: &str = "experimental.broker";

    known(plugin, &config.unknown)?;
    let wrong = |why: String, hint: &str| refused(plugin, &format!("{AT}.{why}")).hint(hint);
    let one_of_them = "\"enforced\" asks the cluster what a broker may, \"permissive\" asks nobody";
    let access_policy = match config.access_policy.as_str() {
        "permissive" => AccessPolicy::Permissive,
        "enforced" => AccessPolicy::Enforced,
        "" => {
            let why = "access_policy: must be specified as one of [permissive, enforced]";
            return Err(wrong(why.into(), one_of_them));
        }
        other => {
            let why = format!(
                "access_policy: unsupported value {other:?}; must be one of [permissive, enforced]"
            );
            return Err(wrong(why, one_of_them));
        }
    };
    if config.brokers.is_empty() {
        let why = "brokers: at least one broker is required";
        return Err(wrong(
            why.into(),
            "name the SPIFFE ID of a broker, or take the block out",
        ));
    }
    let mut brokers = BTreeMap::new();
    for (index, broker) in config.brokers.iter().enumerate() {
        known(plugin, &broker.unknown)?;
        let id = broker.id.as_str();
        if id.is_empty() {
            let why = format!("brokers[{index}].id: must be specified");
            return Err(wrong(why, "write the broker's SPIFFE ID"));
        }
        let parsed = SpiffeId::new(id).map_err(|error| {
            wrong(
                format!("brokers[{id}].id: {error}"),
                "write it as in \"spiffe://example.org/broker\"",
            )
        })?;
        let scope = match broker.pod_reference_scope.as_str() {
            "agent_node" | "" => PodScope::AgentNode,
            "cluster" => PodScope::Cluster,
            other => {
                let why = format!(
                    "brokers[{id}].pod_reference_scope: unsupported value {other:?}; must be one of [agent_node, \
                     cluster]"
                );
                return Err(wrong(why, "leave it out for the pods of the agent's node"));
            }
        };
        if brokers.insert(parsed, scope).is_some() {
            let why = format!("brokers[{id}].id: duplicate broker id");
            return Err(wrong(why, "name each broker once"));
        }
    }
    Ok(BrokerConfig {
        access_policy,
        brokers,
    })
}
