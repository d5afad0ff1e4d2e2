//! What an agent is told: keys, defaults, flags and the rules of upstream (SR-2 to SR-6).

mod layers;
mod rules;
mod trust;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_spire_plugin::agent::{
    AgentConfig, Bootstrap, BrokerConfig, RebootstrapMode, ReferenceType, SdsConfig,
    TrustBundleFormat, WorkloadApiRateLimit,
};
use ah_spire_plugin::catalog::{PluginData, PluginType};
use ah_spire_plugin::decode::from_object;
use ah_spire_plugin::settings::{FeatureFlag, KeyType, LogFormat, LogLevel};
use ah_spire_plugin::{ConfigError, config_block};

use crate::common::{agent_with, no_environment, told};

const PLUGINS: &str =
    r#"plugins { KeyManager "memory" {} NodeAttestor "join_token" {} WorkloadAttestor "unix" {} }"#;
const MINIMUM: &str = r#"server_address = "spire-server" server_port = 8081 trust_domain = "example.org" trust_bundle_path = "/b" "#;

fn agent(text: &str) -> Result<AgentConfig, ConfigError> {
    agent_with(text, &[], &no_environment)
}

/// The least that works, and these keys of `agent` besides.
fn with(keys: &str) -> AgentConfig {
    agent(&minimum(keys)).unwrap_or_else(|why| panic!("{keys}: {why}"))
}

fn minimum(keys: &str) -> String {
    format!("agent {{ {MINIMUM} {keys} }} {PLUGINS}")
}

fn refused(keys: &str) -> String {
    told(agent(&minimum(keys)))
}

fn bootstrap(keys: &str) -> Result<Bootstrap, String> {
    let text = minimum("").replace(r#"trust_bundle_path = "/b""#, keys);
    agent(&text)
        .map(|config| config.bootstrap)
        .map_err(|why| why.to_string())
}

fn flagged(keys: &str, arguments: &[&str]) -> AgentConfig {
    agent_with(&minimum(keys), arguments, &no_environment).unwrap()
}

// SR-6: the SPIFFE guide's own file.
#[test]
fn the_guide_s_agent_is_understood() {
    let config = agent(include_str!("../fixtures/guide-agent.conf")).unwrap();
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(
        (config.server_address.as_str(), config.server_port),
        ("spire-server.example.org", 8081)
    );
    assert_eq!(config.data_dir, Path::new("/var/lib/spire/agent"));
    assert_eq!(
        config.workload_socket.as_deref(),
        Some(Path::new("/run/spire/agent.sock"))
    );
    assert_eq!(config.bootstrap, Bootstrap::Insecure);
    assert_eq!(config.join_token.unwrap().reveal(), "abc123def456...");
    assert_eq!(config.log.level, LogLevel::Info);
    let plugins: Vec<_> = config
        .plugins
        .iter()
        .map(|plugin| (plugin.plugin_type, plugin.name.as_str()))
        .collect();
    assert_eq!(
        plugins,
        [
            (PluginType::NodeAttestor, "join_token"),
            (PluginType::KeyManager, "disk"),
            (PluginType::WorkloadAttestor, "unix"),
        ]
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

config_block! {
    struct Kubelet {
        port: i64 = "kubelet_read_only_port",
    }
}

// SR-3, SR-6: the sample of the agent's reference.
#[test]
fn the_reference_s_sample_is_understood() {
    let config = agent(include_str!("../fixtures/reference-agent.conf")).unwrap();
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(
        config.workload_socket.as_deref(),
        Some(Path::new("/tmp/agent.sock"))
    );
    let format = TrustBundleFormat::Pem;
    assert_eq!(
        config.bootstrap,
        Bootstrap::File {
            path: "/opt/spire/conf/initial_bundle.crt".into(),
            format
        }
    );
    let kubelet: Kubelet = from_object(&config.plugins[2].data.load().unwrap()).unwrap();
    assert_eq!(kubelet.port, 10255);
}

// SR-4
#[test]
fn what_is_not_set_has_upstream_s_defaults() {
    let config = with("");
    assert_eq!(config.data_dir, Path::new("."));
    assert_eq!(
        config.workload_socket.as_deref(),
        Some(Path::new("/tmp/spire-agent/public/api.sock"))
    );
    assert_eq!(config.admin_socket, None);
    assert_eq!(config.rebootstrap_mode, RebootstrapMode::Never);
    assert_eq!(config.rebootstrap_delay, Duration::from_secs(600));
    assert!(config.join_token.is_none());
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Info, LogFormat::Text)
    );
    assert_eq!(config.sds.default_svid_name, "default");
    assert_eq!(config.sds.default_bundle_name, "ROOTCA");
    assert_eq!(config.sds.default_all_bundles_name, "ALL");
    assert_eq!(config.workload_key_type, KeyType::EcP256);
    assert!(config.warm_start);
    assert!(!with("warm_start = false").warm_start);
    assert_eq!(
        (
            config.x509_svid_cache_max_size,
            config.jwt_svid_cache_max_size
        ),
        (1000, 1000)
    );
    assert!(config.experimental.use_sync_authorized_entries);
    assert_eq!(
        config.experimental.rate_limit,
        WorkloadApiRateLimit::default()
    );
    assert_eq!(config.health_checks.host, "localhost");
    assert_eq!(config.health_checks.port, "80");
    assert_eq!(
        (
            config.health_checks.live_path.as_str(),
            config.health_checks.ready_path.as_str()
        ),
        ("/live", "/ready")
    );
    assert!(
        config.telemetry.hostname_label
            && !config.telemetry.trust_domain_label
            && !config.telemetry.in_memory
    );
}

#[test]
fn every_key_arrives() {
    let config = agent(include_str!("../fixtures/agent-every-key.conf")).unwrap();
    let paths = |text: &str| Some(PathBuf::from(text));
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(
        (config.server_address.as_str(), config.server_port),
        ("10.0.0.1", 8081)
    );
    assert_eq!(config.data_dir, Path::new("/d"));
    assert_eq!(config.workload_socket, paths("/run/public/agent.sock"));
    assert_eq!(config.admin_socket, paths("/run/admin/admin.sock"));
    assert!(!config.disable_workload_api && config.disable_sds_api);
    assert_eq!(
        config.bootstrap,
        Bootstrap::Url {
            url: "http://localhost/bundle?x=y".into(),
            unix_socket: paths("/run/bundle.sock"),
            format: TrustBundleFormat::Spiffe,
        }
    );
    assert_eq!(
        (config.rebootstrap_mode, config.rebootstrap_delay),
        (RebootstrapMode::Auto, Duration::from_secs(90))
    );
    assert_eq!(config.join_token.unwrap().reveal(), "token");
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Warn, LogFormat::Json)
    );
    assert_eq!(
        (config.log.file, config.log.source_location),
        (paths("/l/agent.log"), true)
    );
    assert_eq!(config.log_selectors, texts(&["unix:uid", "k8s:ns"]));
    assert_eq!(
        config.sds,
        SdsConfig {
            default_svid_name: "svid".into(),
            default_bundle_name: "bundle".into(),
            default_all_bundles_name: "bundles".into(),
            disable_spiffe_cert_validation: true,
        }
    );
    assert_eq!(config.workload_key_type, KeyType::Rsa2048);
    assert!(config.allow_unauthenticated_verifiers);
    assert_eq!(config.allowed_foreign_jwt_claims, texts(&["a", "b"]));
    assert_eq!(
        config.availability_target,
        Some(Duration::from_secs(48 * 3600))
    );
    assert_eq!(
        (
            config.x509_svid_cache_max_size,
            config.jwt_svid_cache_max_size
        ),
        (10, 20)
    );
    assert_eq!(
        config.authorized_delegates[0].to_string(),
        "spiffe://example.org/delegate"
    );
    assert_eq!(
        (
            config.profiling.enabled,
            config.profiling.port,
            config.profiling.frequency
        ),
        (true, 6060, 5)
    );
    assert_eq!(config.profiling.names, texts(&["heap", "cpu"]));

    let experimental = config.experimental;
    assert_eq!(experimental.sync_interval, Some(Duration::from_secs(10)));
    assert_eq!(
        experimental.jwt_svid_cache_hit_timeout,
        Some(Duration::from_secs(6))
    );
    assert!(!experimental.use_sync_authorized_entries && experimental.require_pq_kem);
    assert_eq!(experimental.feature_flags, [FeatureFlag::Test]);
    assert_eq!(
        experimental.rate_limit,
        WorkloadApiRateLimit {
            fetch_x509_svid: 1,
            fetch_jwt_svid: 2,
            fetch_x509_bundles: 3,
            fetch_jwt_bundles: 4,
            stream_secrets: 5,
            fetch_secrets: 6,
        }
    );
    let BrokerConfig {
        socket,
        bind_address,
        brokers,
    } = experimental.broker.unwrap();
    assert_eq!(
        (socket, bind_address),
        (
            paths("/run/broker/broker.sock"),
            "127.0.0.1:8443".parse().ok()
        )
    );
    assert_eq!(brokers[0].id.to_string(), "spiffe://other.org/broker");
    assert_eq!(
        brokers[0].allowed_reference_types,
        [
            ReferenceType {
                type_url: "type.googleapis.com/a.B".into(),
                allow_over_tcp: true
            },
            ReferenceType {
                type_url: "type.googleapis.com/a.C".into(),
                allow_over_tcp: false
            },
        ]
    );
}

#[test]
fn every_key_beside_the_agent_s_own_arrives() {
    let config = agent(include_str!("../fixtures/agent-every-key.conf")).unwrap();
    let telemetry = config.telemetry;
    let prometheus = telemetry.prometheus.unwrap();
    assert_eq!(
        (prometheus.host.as_str(), prometheus.port),
        ("0.0.0.0", 9988)
    );
    let tls = prometheus.tls.unwrap();
    assert_eq!(
        (tls.cert_file, tls.key_file),
        (Some("/t/cert.pem".into()), Some("/t/key.pem".into()))
    );
    assert_eq!(
        (tls.client_ca_file, tls.use_spire_svid),
        (Some("/t/ca.pem".into()), true)
    );
    let ids = tls.authorized_spiffe_ids.iter().map(ToString::to_string);
    assert_eq!(ids.collect::<Vec<_>>(), ["spiffe://example.org/prometheus"]);
    assert_eq!(telemetry.dog_statsd, ["localhost:8125"]);
    assert_eq!(
        telemetry.statsd,
        ["localhost:1337", "collector.example.org:8125"]
    );
    assert_eq!(
        (
            telemetry.m3[0].address.as_str(),
            telemetry.m3[0].environment.as_str()
        ),
        ("localhost:9000", "prod")
    );
    assert!(telemetry.in_memory && telemetry.trust_domain_label && !telemetry.hostname_label);
    assert_eq!(telemetry.metric_prefix.as_deref(), Some("prefix"));
    assert_eq!(
        (telemetry.allowed_prefixes, telemetry.blocked_prefixes),
        (vec!["a".into()], vec!["b".into()])
    );
    assert_eq!(
        (telemetry.allowed_labels, telemetry.blocked_labels),
        (vec!["c".into()], vec!["d".into()])
    );

    let health = config.health_checks;
    assert!(health.enabled);
    assert_eq!(
        (health.host.as_str(), health.port.as_str()),
        ("::1", "8080")
    );
    assert_eq!(
        (health.live_path.as_str(), health.ready_path.as_str()),
        ("/alive", "/prepared")
    );

    // SR-2
    let [attestor, keys, _, own, store] = config.plugins.as_slice() else {
        panic!("five plugins")
    };
    assert_eq!(attestor.name, "x509pop");
    assert!(matches!(keys.data, PluginData::None) && keys.enabled && keys.command.is_none());
    assert_eq!(own.command.as_deref(), Some(Path::new("/bin/own")));
    assert_eq!(own.arguments, ["-x", "1"]);
    assert_eq!(own.checksum.as_deref(), Some("abcd"));
    assert!(
        matches!(&own.data, PluginData::File(path) if path == Path::new("/c/own.conf"))
            && own.data.is_dynamic()
    );
    assert_eq!(
        (store.plugin_type, store.enabled),
        (PluginType::SvidStore, false)
    );
}
