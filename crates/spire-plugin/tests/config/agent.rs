//! What an agent is told: keys, defaults, flags and the rules of upstream (SR-2 to SR-6).

use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_spire_plugin::ConfigError;
use ah_spire_plugin::agent::{
    AgentConfig, Bootstrap, BrokerConfig, RebootstrapMode, ReferenceType, SdsConfig,
    TrustBundleFormat, WorkloadApiRateLimit, run_flags,
};
use ah_spire_plugin::catalog::{PluginData, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::from_object;
use ah_spire_plugin::settings::{FeatureFlag, KeyType, LogFormat, LogLevel};

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
    assert_eq!(
        tls.authorized_spiffe_ids,
        ["spiffe://example.org/prometheus"]
    );
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

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let flags = [
        "-dataDir",
        "/f",
        "-joinToken",
        "t",
        "-logFile",
        "/f.log",
        "-logFormat",
        "json",
        "-logLevel",
        "debug",
        "-logSourceLocation",
        "-serverAddress",
        "[::1]",
        "-serverPort",
        "1",
        "-trustDomain",
        "flag.org",
        "-disableWorkloadAPI",
        "-disableSDSAPI",
        "-trustBundle",
        "/f.pem",
        "-trustBundleFormat",
        "spiffe",
        "-allowUnauthenticatedVerifiers",
        "-rebootstrapMode",
        "always",
        "-rebootstrapDelay",
        "5s",
        "-socketPath",
        "/f.sock",
    ];
    let config = flagged(
        r#"data_dir = "/file" log_level = "ERROR" join_token = "file""#,
        &flags,
    );
    assert_eq!(config.data_dir, Path::new("/f"));
    assert_eq!(config.join_token.unwrap().reveal(), "t");
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Debug, LogFormat::Json)
    );
    assert_eq!(
        (config.log.file, config.log.source_location),
        (Some("/f.log".into()), true)
    );
    assert_eq!(
        (config.server_address.as_str(), config.server_port),
        ("::1", 1)
    );
    assert_eq!(config.trust_domain.as_str(), "flag.org");
    assert!(
        config.disable_workload_api && config.disable_sds_api && config.workload_socket.is_none()
    );
    assert_eq!(
        config.bootstrap,
        Bootstrap::File {
            path: "/f.pem".into(),
            format: TrustBundleFormat::Spiffe
        }
    );
    assert!(config.allow_unauthenticated_verifiers);
    assert_eq!(
        (config.rebootstrap_mode, config.rebootstrap_delay),
        (RebootstrapMode::Always, Duration::from_secs(5))
    );
    assert_eq!(
        flagged("", &["-socketPath", "/f.sock"]).workload_socket,
        Some("/f.sock".into())
    );
    // An empty flag and a false one are flags that were not given.
    let config = flagged(
        "disable_sds_api = true data_dir = \"/file\"",
        &["-disableSDSAPI=false", "-dataDir="],
    );
    assert!(config.disable_sds_api);
    assert_eq!(config.data_dir, Path::new("/file"));
}

#[test]
fn variables_are_replaced_only_when_asked() {
    let environment = |name: &str| (name == "DIR").then(|| "/from/env".to_owned());
    let text = minimum(r#"data_dir = "$DIR/${NONE}x""#);
    let expanded = agent_with(&text, &["-expandEnv"], &environment).unwrap();
    assert_eq!(expanded.data_dir, Path::new("/from/env/x"));
    assert_eq!(
        agent_with(&text, &[], &environment).unwrap().data_dir,
        Path::new("$DIR/${NONE}x")
    );
}

// SR-5
#[test]
fn without_config_flag_the_agent_s_own_path_is_read() {
    let flags = run_flags("run").parse(&[]).unwrap();
    assert_eq!(flags.string("config"), "conf/agent/agent.conf");
    let message = told(AgentConfig::load(&flags, &no_environment));
    assert!(
        message.starts_with("could not find config file /"),
        "{message}"
    );
    assert!(
        message.ends_with("/conf/agent/agent.conf: please use the -config flag"),
        "{message}"
    );
}

#[test]
fn what_is_required_is_asked_for() {
    let cases = [
        (
            r#"server_address = "spire-server""#,
            "server_address must be configured",
        ),
        ("server_port = 8081", "server_port must be configured"),
        (
            r#"trust_domain = "example.org""#,
            "trust_domain must be configured",
        ),
        (
            r#"trust_bundle_path = "/b""#,
            "trust_bundle_path, trust_bundle_url or trust_bundle_spiffe_workload_api must be configured unless \
             insecure_bootstrap is set",
        ),
        (PLUGINS, "plugins section must be configured"),
    ];
    for (missing, message) in cases {
        assert_eq!(told(agent(&minimum("").replace(missing, ""))), message);
    }
}

#[test]
fn there_is_one_way_to_trust_the_server() {
    let cases = [
        (
            "insecure_bootstrap = true",
            "only one of insecure_bootstrap, trust_bundle_path can be specified",
        ),
        (
            r#"trust_bundle_url = "https://x""#,
            "only one of trust_bundle_path, trust_bundle_url can be specified",
        ),
        (
            r#"trust_bundle_spiffe_workload_api = "unix:///x""#,
            "only one of trust_bundle_path, trust_bundle_spiffe_workload_api can be specified",
        ),
        (
            r#"trust_bundle_unix_socket = "/x""#,
            "trust_bundle_unix_socket needs trust_bundle_url",
        ),
        (
            r#"trust_bundle_format = "der""#,
            "trust_bundle_format \"der\" is unknown; use \"pem\" or \"spiffe\"",
        ),
    ];
    for (keys, message) in cases {
        assert_eq!(refused(keys), message);
    }
}

fn bootstrap(keys: &str) -> Result<Bootstrap, String> {
    let text = minimum("").replace(r#"trust_bundle_path = "/b""#, keys);
    agent(&text)
        .map(|config| config.bootstrap)
        .map_err(|why| why.to_string())
}

#[test]
fn a_bundle_s_url_is_https_or_http_over_a_unix_socket() {
    assert!(bootstrap(r#"trust_bundle_url = "https://x/y?spiffe-z=1""#).is_ok());
    assert!(bootstrap(r#"trust_bundle_url = "http://x" trust_bundle_unix_socket = "/s""#).is_ok());
    let cases = [
        (
            r#"trust_bundle_url = "http://x""#,
            "must start with https://",
        ),
        (r#"trust_bundle_url = "x""#, "is not a URL"),
        (
            r#"trust_bundle_url = "https://x" trust_bundle_unix_socket = "/s""#,
            "must start with http://",
        ),
        (
            r#"trust_bundle_url = "http://x?spiffe-a=1" trust_bundle_unix_socket = "/s""#,
            "\"spiffe-a\"",
        ),
        (
            r#"trust_bundle_url = "http://x?b=1&spire-a=1" trust_bundle_unix_socket = "/s""#,
            "\"spire-a\"",
        ),
    ];
    for (keys, message) in cases {
        assert!(
            bootstrap(keys).is_err_and(|why| why.contains(message)),
            "{keys}: {:?}",
            bootstrap(keys)
        );
    }
}

#[test]
fn a_workload_api_has_a_socket_or_a_port() {
    for address in [
        "unix:///run/a.sock",
        "unix:/run/a.sock",
        "tcp://127.0.0.1:8000",
        "tcp://[::1]:8000",
    ] {
        let keys = format!("trust_bundle_spiffe_workload_api = {address:?}");
        assert_eq!(
            bootstrap(&keys),
            Ok(Bootstrap::WorkloadApi {
                address: address.into()
            })
        );
    }
    for address in [
        "/run/a.sock",
        "unix:run/a.sock",
        "unix://",
        "unix:///a?b",
        "tcp://localhost:1",
        "tcp://127.0.0.1",
        "http://x",
        "tcp://u@127.0.0.1:1",
        "unix:///a#b",
        "tcp://127.0.0.1:1/x",
    ] {
        let keys = format!("trust_bundle_spiffe_workload_api = {address:?}");
        assert!(
            bootstrap(&keys).is_err_and(|why| why.contains("is not the address of a Workload API")),
            "{address}"
        );
    }
}

#[test]
fn a_join_token_comes_from_one_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "  from-file\n").unwrap();
    let key = format!("join_token_file = {file:?}");
    assert_eq!(with(&key).join_token.unwrap().reveal(), "from-file");
    assert_eq!(
        flagged("", &["-joinTokenFile", file.to_str().unwrap()])
            .join_token
            .unwrap()
            .reveal(),
        "from-file"
    );
    assert_eq!(
        refused(&format!("{key} join_token = \"x\"")),
        "only one of join_token and join_token_file can be specified"
    );
    std::fs::write(&file, " \n").unwrap();
    assert!(agent(&minimum(&key)).is_err_and(|why| why.to_string().ends_with("is empty")));
    std::fs::remove_file(&file).unwrap();
    assert!(
        agent(&minimum(&key))
            .is_err_and(|why| why.to_string().contains("unable to read join_token_file"))
    );
}

#[test]
fn sockets_for_the_few_lie_apart() {
    let public = r#"socket_path = "/run/spire/agent.sock" "#;
    for path in [
        "/run/spire/admin.sock",
        "/run/spire/private/admin.sock",
        "/run/x/../spire/./admin.sock",
    ] {
        let message = refused(&format!("{public} admin_socket_path = {path:?}"));
        assert!(
            message.starts_with("admin_socket_path cannot be in the directory of the Workload API"),
            "{message}"
        );
        let message = refused(&format!(
            "{public} experimental {{ broker {{ socket_path = {path:?} }} }}"
        ));
        assert!(
            message.starts_with("experimental.broker.socket_path cannot be"),
            "{message}"
        );
    }
    for path in ["/run/spire-admin/admin.sock", "/run/admin.sock"] {
        assert_eq!(
            with(&format!("{public} admin_socket_path = {path:?}")).admin_socket,
            Some(path.into())
        );
    }
    let off = "disable_workload_api = true disable_sds_api = true admin_socket_path = \"/run/spire/admin.sock\"";
    assert_eq!(
        with(&format!("{public} {off}")).admin_socket,
        Some("/run/spire/admin.sock".into())
    );
}

#[test]
fn values_out_of_bounds_are_refused() {
    let cases = [
        (
            r#"availability_target = "23h""#,
            "availability_target must be at least 24h0m0s",
        ),
        (
            "x509_svid_cache_max_size = -1",
            "x509_svid_cache_max_size must not be negative: -1",
        ),
        (
            "jwt_svid_cache_max_size = -1",
            "jwt_svid_cache_max_size must not be negative: -1",
        ),
        (
            "server_port = 65536",
            "server_port must be a port from 1 to 65535, not 65536",
        ),
        (
            r#"log_level = "loud""#,
            "log_level \"loud\" is unknown; use one of panic, fatal, error, warn, info, debug, trace",
        ),
        (
            r#"log_format = "xml""#,
            "log_format \"xml\" is unknown; use text or json",
        ),
        (
            r#"workload_x509_svid_key_type = "rsa-4096""#,
            "workload_x509_svid_key_type: key type \"rsa-4096\" is unknown; must be one of [rsa-2048, ec-p256, ec-p384]",
        ),
        (
            r#"rebootstrap_mode = "often""#,
            "rebootstrap_mode \"often\" is unknown; use never, auto or always",
        ),
        (
            r#"experimental { jwt_svid_cache_hit_timeout = "4999ms" }"#,
            "jwt_svid_cache_hit_timeout (4999ms) must be at least 5s",
        ),
        (
            r#"experimental { jwt_svid_cache_hit_timeout = "30s" }"#,
            "jwt_svid_cache_hit_timeout (30s) must be less than 30s",
        ),
        (
            "experimental { ratelimit { fetch_secrets = -1 } }",
            "experimental.ratelimit.fetch_secrets must not be negative: -1",
        ),
        (
            r#"experimental { named_pipe_name = "x" }"#,
            "named_pipe_name is not supported on this platform; use socket_path instead",
        ),
        (
            r#"experimental { admin_named_pipe_name = "x" }"#,
            "admin_named_pipe_name is not supported on this platform; use admin_socket_path instead",
        ),
        (
            r#"experimental { feature_flags = ["b", "wit-svid", "a"] }"#,
            "unknown feature flag(s): a b; known ones are wit-svid i_am_a_test_flag",
        ),
        (
            r#"authorized_delegates = ["spiffe://other.org/x"]"#,
            "authorized_delegates has \"spiffe://other.org/x\", which is not in the trust domain example.org",
        ),
    ];
    for (keys, message) in cases {
        assert_eq!(refused(keys), message);
    }
    assert!(
        refused(r#"rebootstrap_delay = "soon""#)
            .starts_with("could not parse rebootstrap_delay: invalid duration")
    );
    assert!(
        refused(r#"trust_domain = "a b""#).starts_with("could not parse trust_domain \"a b\":")
    );
    assert!(refused(&format!("trust_domain = \"{}\"", "a".repeat(256))).contains("255"));
    assert!(refused(r#"authorized_delegates = ["x"]"#).contains("is no SPIFFE ID"));
    let insecure = bootstrap(r#"insecure_bootstrap = true rebootstrap_mode = "auto""#);
    assert!(insecure.is_err_and(|why| why.contains("rebootstrap_mode other than never")));
}

#[test]
fn brokers_are_named_once_and_say_what_they_may_ask_for() {
    let broker = |block: &str| refused(&format!("experimental {{ broker {{ {block} }} }}"));
    assert_eq!(
        broker(""),
        "experimental.broker requires socket_path, bind_address, or both"
    );
    let broker = |brokers: &str| {
        broker(&format!(
            "bind_address = \"127.0.0.1:1\" brokers = [{brokers}]"
        ))
    };
    let types = r#"allowed_reference_types = [{ type_url = "*" }]"#;
    let key = "experimental.broker.brokers";
    assert_eq!(broker("{ }"), format!("{key}[0].id: must be specified"));
    assert!(broker(&format!("{{ id = \"x\" {types} }}")).starts_with(&format!("{key}[x].id: ")));
    let one = format!("{{ id = \"spiffe://a/b\" {types} }}");
    assert_eq!(broker(&one), "nothing");
    assert_eq!(
        broker(&format!("{one}, {one}")),
        format!("{key}[spiffe://a/b].id: given twice")
    );
    let key = format!("{key}[spiffe://a/b].allowed_reference_types");
    let with_types = |types: &str| {
        broker(&format!(
            "{{ id = \"spiffe://a/b\" allowed_reference_types = [{types}] }}"
        ))
    };
    assert_eq!(with_types(""), format!("{key}: must list at least one"));
    assert_eq!(
        with_types("{}"),
        format!("{key}[0].type_url: must be specified")
    );
    assert_eq!(
        with_types(r#"{ type_url = "*" }, { type_url = "a" }"#),
        format!("{key}: \"*\" must be the only one")
    );
}

#[test]
fn unknown_keys_are_refused_where_upstream_refuses_them() {
    let refusals = [
        ("oops = 1\n", "", "top level: \"oops\" (line 1, column 1)"),
        ("", "umask = 1", "agent: \"umask\""),
        ("", "enable_sds = true", "agent: \"enable_sds\""),
        (
            "",
            "experimental { ratelimit { oops = 1 } }",
            "agent.experimental.ratelimit: \"oops\"",
        ),
        (
            "",
            r#"experimental { broker { bind_address = ":1" oops = 1 } }"#,
            "agent.experimental.broker: \"oops\"",
        ),
        (
            "",
            r#"experimental { broker { bind_address = ":1" brokers = [{ oops = 1 }] } }"#,
            "agent.experimental.broker.brokers: \"oops\"",
        ),
        (
            "",
            r#"experimental { broker { brokers = [{ allowed_reference_types = [{ oops = 1 }] }] } }"#,
            "agent.experimental.broker.brokers.allowed_reference_types: \"oops\"",
        ),
        (
            "telemetry { Prometheus { oops = 1 } }",
            "",
            "telemetry.Prometheus: \"oops\"",
        ),
        (
            "telemetry { Statsd = [{ oops = 1 }] }",
            "",
            "telemetry.Statsd: \"oops\"",
        ),
        (
            "telemetry { DogStatsd = [{ oops = 1 }] }",
            "",
            "telemetry.DogStatsd: \"oops\"",
        ),
        (
            "telemetry { M3 = [{ oops = 1 }] }",
            "",
            "telemetry.M3: \"oops\"",
        ),
        (
            "telemetry { InMem { oops = 1 } }",
            "",
            "telemetry.InMem: \"oops\"",
        ),
        ("health_checks { oops = 1 }", "", "health_checks: \"oops\""),
    ];
    for (outside, keys, message) in refusals {
        let told = told(agent(&format!("{outside}{}", minimum(keys))));
        assert!(
            told.starts_with("unknown configuration detected in test.conf: "),
            "{told}"
        );
        assert!(told.contains(message), "{told}");
    }
    let passes = [
        ("telemetry { oops = 1 }", ""),
        ("telemetry { Prometheus { tls { oops = 1 } } }", ""),
        ("", "sds { oops = 1 }"),
        ("", "experimental { oops = 1 }"),
    ];
    for (outside, keys) in passes {
        assert!(
            agent(&format!("{outside}{}", minimum(keys))).is_ok(),
            "{outside}{keys}"
        );
    }
}

#[test]
fn plugins_are_of_known_types_in_the_right_number() {
    let with = |plugins: &str| {
        told(agent(&format!(
            "agent {{ {MINIMUM} }} plugins {{ {plugins} }}"
        )))
    };
    let [keys, node, workload] = [
        r#"KeyManager "a" {}"#,
        r#"NodeAttestor "a" {}"#,
        r#"WorkloadAttestor "a" {}"#,
    ];
    let constraint = |kind: &str, what: &str| {
        format!("plugin type {kind:?} constraint not satisfied: expected {what}")
    };
    assert_eq!(with(&format!("{keys} {node} {workload}")), "nothing");
    assert_eq!(
        with(&format!("{node} {workload}")),
        constraint("KeyManager", "exactly 1 but got 0")
    );
    assert_eq!(
        with(&format!("{keys} {workload}")),
        constraint("NodeAttestor", "exactly 1 but got 0")
    );
    let two = r#"NodeAttestor "b" {}"#;
    assert_eq!(
        with(&format!("{keys} {node} {two} {workload}")),
        constraint("NodeAttestor", "exactly 1 but got 2")
    );
    assert_eq!(
        with(&format!("{keys} {node}")),
        constraint("WorkloadAttestor", "at least 1 but got 0")
    );
    let more = r#"WorkloadAttestor "b" {} SVIDStore "a" {} SVIDStore "b" {}"#;
    assert_eq!(with(&format!("{keys} {node} {workload} {more}")), "nothing");
    assert!(
        with("DataStore \"sql\" {}")
            .contains("unsupported plugin type \"DataStore\"; expected one of KeyManager, ")
    );
    assert_eq!(
        with(&format!(
            r#"{keys} NodeAttestor "join_token" {{ plugin_cmd = "/x" }} {workload}"#
        )),
        "NodeAttestor \"join_token\" is built in; remove its plugin_cmd"
    );
}

// SR-6
#[test]
fn errors_name_file_line_and_column() {
    assert_eq!(
        told(agent("agent {\n  server_port = true\n}")),
        "unable to decode configuration at test.conf:2:17: agent.server_port: expected a whole number, found true or false"
    );
    assert_eq!(
        told(agent("agent {\n  server_port 8081\n}")),
        "unable to decode configuration at test.conf:2:15: expected \"=\" or \"{\" after the key \"server_port\", \
         found a number"
    );
}

#[test]
fn doubtful_values_are_told() {
    let config = with(
        r#"sds { default_bundle_name = "X" default_all_bundles_name = "X" } experimental { use_sync_authorized_entries = true }"#,
    );
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
}

#[test]
fn json_says_the_same() {
    let json = r#"{
        "agent": {
            "server_address": "spire-server", "server_port": 8081, "trust_domain": "example.org",
            "insecure_bootstrap": true, "sds": { "default_svid_name": "x" },
            "experimental": { "broker": { "bind_address": "127.0.0.1:1", "brokers": [
                { "id": "spiffe://a/b", "allowed_reference_types": [ { "type_url": "t", "allow_over_tcp": true } ] }
            ] } }
        },
        "telemetry": { "M3": [ { "address": "a", "env": "e" } ], "Prometheus": { "port": 1 } },
        "plugins": {
            "KeyManager": { "disk": { "plugin_data": { "directory": "/d" } } },
            "NodeAttestor": [ { "x509pop": { "plugin_data": { "private_key_path": "/k" }, "enabled": true } } ],
            "WorkloadAttestor": [ { "unix": { "plugin_data": {} } }, { "docker": { "plugin_data": {} } } ]
        }
    }"#;
    let config = agent(json).unwrap();
    assert_eq!(config.bootstrap, Bootstrap::Insecure);
    assert_eq!(config.sds.default_svid_name, "x");
    assert_eq!(config.telemetry.m3.len(), 1);
    let broker = &config.experimental.broker.unwrap().brokers[0];
    assert!(broker.allowed_reference_types[0].allow_over_tcp);
    let plugins: Vec<&str> = config
        .plugins
        .iter()
        .map(|plugin| plugin.name.as_str())
        .collect();
    assert_eq!(plugins, ["disk", "x509pop", "unix", "docker"]);
    assert_eq!(
        config.plugins[0].data.text().unwrap().trim(),
        "\"directory\" = \"/d\""
    );
}
