//! What a server is told: keys, defaults, flags and the rules of upstream (SR-2 to SR-6).

mod federation;
mod rules;

use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::ConfigError;
use ah_spire_plugin::catalog::PluginType;
use ah_spire_plugin::server::{
    BundleEndpointProfile, CaSubject, PruneAttestedNodes, RateLimit, ServerConfig, run_flags,
};
use ah_spire_plugin::settings::{FeatureFlag, KeyType, LogFormat, LogLevel};

use crate::common::{no_environment, server_with, told};

const PLUGINS: &str = r#"plugins { DataStore "sql" { plugin_data {} } KeyManager "memory" {} }"#;
const MINIMUM: &str = r#"trust_domain = "example.org" data_dir = "/d""#;

fn server(text: &str) -> Result<ServerConfig, ConfigError> {
    server_with(text, &[], &no_environment)
}

fn minimum(keys: &str) -> String {
    format!("server {{ {MINIMUM} {keys} }} {PLUGINS}")
}

/// The least that works, and these keys of `server` besides.
fn with(keys: &str) -> ServerConfig {
    server(&minimum(keys)).unwrap_or_else(|why| panic!("{keys}: {why}"))
}

fn refused(keys: &str) -> String {
    told(server(&minimum(keys)))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// SR-6: the SPIFFE guide's own file, all on one line.
#[test]
fn the_guide_s_server_is_understood() {
    let config = server(include_str!("../fixtures/guide-server.conf")).unwrap();
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("0.0.0.0", 8081)
    );
    assert_eq!(config.socket, Path::new("/run/spire/server.sock"));
    assert_eq!(config.data_dir, Path::new("/var/lib/spire/server"));
    assert_eq!(config.log.level, LogLevel::Info);
    let plugins: Vec<_> = config
        .plugins
        .iter()
        .map(|plugin| (plugin.plugin_type, plugin.name.as_str()))
        .collect();
    assert_eq!(
        plugins,
        [
            (PluginType::DataStore, "sql"),
            (PluginType::NodeAttestor, "join_token"),
            (PluginType::KeyManager, "disk"),
        ]
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

// SPIFFE guide: "Certificate Rotation" and "Federated SPIRE".
#[test]
fn the_guide_s_fragments_are_understood() {
    let config = with(
        r#"default_x509_svid_ttl = "4h" # Longer TTL
        federation { bundle_endpoint { address = "0.0.0.0" port = 8443 } }"#,
    );
    assert_eq!(config.x509_svid_ttl, seconds(4 * 3600));
    let endpoint = config.federation.bundle_endpoint.unwrap();
    assert_eq!(endpoint.socket_address().to_string(), "0.0.0.0:8443");
    assert_eq!(endpoint.profile, BundleEndpointProfile::HttpsSpiffe);
    assert_eq!(endpoint.refresh_hint, seconds(300));
}

// SR-4
#[test]
fn what_is_not_set_has_upstream_s_defaults() {
    let config = with("");
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("0.0.0.0", 8081)
    );
    assert_eq!(
        config.socket,
        Path::new("/tmp/spire-server/private/api.sock")
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Info, LogFormat::Text)
    );
    assert_eq!(config.agent_ttl, None);
    assert_eq!(config.x509_svid_ttl, seconds(3600));
    assert_eq!(config.jwt_svid_ttl, seconds(300));
    assert_eq!(config.ca_ttl, seconds(24 * 3600));
    assert_eq!(
        (config.ca_key_type, config.jwt_key_type),
        (KeyType::EcP256, KeyType::EcP256)
    );
    assert_eq!(config.experimental.wit_key_type, KeyType::EcP256);
    let subject = CaSubject {
        country: vec!["US".into()],
        organization: vec!["SPIFFE".into()],
        common_name: None,
    };
    assert_eq!(config.ca_subject, subject);
    assert_eq!(
        config.rate_limit,
        RateLimit {
            attestation: true,
            signing: true
        }
    );
    assert_eq!(
        (config.prune_attested_nodes, config.jwt_issuer),
        (None, None)
    );
    assert!(
        config.federation.bundle_endpoint.is_none() && config.federation.federates_with.is_empty()
    );
    assert_eq!(config.max_attested_node_info_staleness, Duration::ZERO);
    assert!(!config.audit_log_enabled && !config.disable_jwt_svids && config.admin_ids.is_empty());
}

#[test]
fn every_key_arrives() {
    let config = server(include_str!("../fixtures/server-every-key.conf")).unwrap();
    let ids: Vec<String> = config.admin_ids.iter().map(ToString::to_string).collect();
    assert_eq!(
        ids,
        ["spiffe://example.org/admin", "spiffe://other.org/admin"]
    );
    assert_eq!(config.agent_ttl, Some(seconds(7200)));
    assert!(config.audit_log_enabled && config.disable_jwt_svids);
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("127.0.0.1", 8443)
    );
    assert_eq!(
        (config.ca_key_type, config.jwt_key_type),
        (KeyType::EcP384, KeyType::Rsa4096)
    );
    assert_eq!(
        config.ca_subject,
        CaSubject {
            country: vec!["DE".into()],
            organization: vec!["Example".into(), "Other".into()],
            common_name: Some("The CA".into()),
        }
    );
    assert_eq!(config.ca_ttl, seconds(48 * 3600));
    assert_eq!(config.data_dir, Path::new("./data"));
    assert_eq!(
        (config.x509_svid_ttl, config.jwt_svid_ttl),
        (seconds(3 * 3600), seconds(600))
    );
    assert_eq!(
        config.jwt_issuer.as_deref(),
        Some("https://issuer.example.org")
    );
    assert_eq!(
        (config.log.level, config.log.source_location),
        (LogLevel::Trace, true)
    );
    assert_eq!(config.log.file.as_deref(), Some(Path::new("/l/server.log")));
    let prune = PruneAttestedNodes {
        expired_for: seconds(720 * 3600),
        batch_size: 50,
        include_tofu: true,
    };
    assert_eq!(config.prune_attested_nodes, Some(prune));
    let networks: Vec<String> = config
        .proxy_protocol_trusted_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(
        config.rate_limit,
        RateLimit {
            attestation: false,
            signing: false
        }
    );
    assert_eq!(config.socket, Path::new("/run/server.sock"));
    assert_eq!(config.max_attested_node_info_staleness, seconds(60));
    assert_eq!(
        (config.profiling.port, config.profiling.frequency),
        (6061, 60)
    );

    let experimental = config.experimental;
    assert!(
        experimental.agent_spiffe_id_as_selector
            && experimental.events_based_cache
            && experimental.require_pq_kem
    );
    let policy = experimental.auth_opa_policy_engine.unwrap();
    assert_eq!(policy.rego_path, Path::new("/p/policy.rego"));
    assert_eq!(
        policy.policy_data_path.as_deref(),
        Some(Path::new("/p/data.json"))
    );
    assert_eq!(experimental.cache_reload_interval, Some(seconds(1)));
    assert_eq!(experimental.full_cache_reload_interval, Some(seconds(3600)));
    assert_eq!(
        experimental.prune_events_older_than,
        Some(seconds(6 * 3600))
    );
    assert_eq!(experimental.event_timeout, Some(seconds(300)));
    assert_eq!(experimental.wit_key_type, KeyType::Rsa2048);
    assert_eq!(
        experimental.wit_issuer.as_deref(),
        Some("https://wit.example.org")
    );
    assert_eq!(experimental.feature_flags, [FeatureFlag::WitSvid]);
    // SR-2
    assert_eq!(config.plugins[2].name, "k8s_sat");
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let flags = [
        "-bindAddress",
        "[::1]",
        "-serverPort",
        "1",
        "-dataDir",
        "/f",
        "-logFile",
        "/f.log",
        "-logFormat",
        "json",
        "-logSourceLocation",
        "-logLevel",
        "error",
        "-trustDomain",
        "flag.org",
        "-socketPath",
        "/f.sock",
    ];
    let config = server_with(
        &minimum("bind_port = 2 log_level = \"DEBUG\""),
        &flags,
        &no_environment,
    )
    .unwrap();
    assert_eq!((config.bind_address.as_str(), config.bind_port), ("::1", 1));
    assert_eq!(
        (config.data_dir.as_path(), config.socket.as_path()),
        (Path::new("/f"), Path::new("/f.sock"))
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Error, LogFormat::Json)
    );
    assert_eq!(
        (config.log.file, config.log.source_location),
        (Some("/f.log".into()), true)
    );
    assert_eq!(config.trust_domain.as_str(), "flag.org");
    // Zero and the empty text are values that were not given.
    let config = with(r#"bind_port = 0 bind_address = "" log_level = "" ca_ttl = "0s""#);
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("0.0.0.0", 8081)
    );
    assert_eq!(config.ca_ttl, seconds(24 * 3600));
}

#[test]
fn variables_are_replaced_only_when_asked() {
    let environment = |name: &str| (name == "TD").then(|| "env.org".to_owned());
    let text = minimum("").replace("example.org", "${TD}");
    assert_eq!(
        server_with(&text, &["-expandEnv"], &environment)
            .unwrap()
            .trust_domain
            .as_str(),
        "env.org"
    );
    assert!(
        told(server_with(&text, &[], &environment))
            .starts_with("could not parse trust_domain \"${TD}\"")
    );
}

#[test]
fn without_config_flag_the_server_s_own_path_is_read() {
    let flags = run_flags("run").parse(&[]).unwrap();
    let message = told(ServerConfig::load(&flags, &no_environment));
    assert!(
        message.ends_with("/conf/server/server.conf: please use the -config flag"),
        "{message}"
    );
}
