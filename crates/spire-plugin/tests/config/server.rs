//! What a server is told: keys, defaults, flags and the rules of upstream (SR-2 to SR-6).

use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::ConfigError;
use ah_spire_plugin::catalog::PluginType;
use ah_spire_plugin::server::{
    BundleEndpointProfile, CaSubject, FederationProfile, PruneAttestedNodes, RateLimit,
    ServerConfig, run_flags,
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
fn federation_arrives() {
    let config = server(include_str!("../fixtures/server-every-key.conf")).unwrap();
    let endpoint = config.federation.bundle_endpoint.unwrap();
    assert_eq!(endpoint.refresh_hint, seconds(600));
    let BundleEndpointProfile::Acme(acme) = endpoint.profile else {
        panic!("acme")
    };
    assert_eq!(
        acme.directory_url.as_deref(),
        Some("https://acme.example.org")
    );
    assert_eq!(
        (acme.domain_name.as_str(), acme.email.as_str()),
        ("example.org", "mail@example.org")
    );
    assert!(acme.tos_accepted);
    assert_eq!(acme.cache_dir, Path::new("./data/bundle-acme"));
    let relations: Vec<_> = config
        .federation
        .federates_with
        .iter()
        .map(|(name, with)| (name.as_str(), with))
        .collect();
    assert_eq!(relations[0].0, "one.org");
    assert_eq!(relations[0].1.profile, FederationProfile::HttpsWeb);
    assert_eq!(relations[1].0, "two.org");
    let FederationProfile::HttpsSpiffe(id) = &relations[1].1.profile else {
        panic!("https_spiffe")
    };
    assert_eq!(id.to_string(), "spiffe://two.org/spire/server");
    assert_eq!(relations[1].1.bundle_endpoint_url, "HTTPS://two.org/bundle");
}

fn endpoint(keys: &str) -> Result<BundleEndpointProfile, String> {
    let text = minimum(&format!(
        "federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = 1 {keys} }} }}"
    ));
    let config = server(&text).map_err(|why| why.to_string())?;
    Ok(config.federation.bundle_endpoint.unwrap().profile)
}

#[test]
fn a_bundle_endpoint_has_one_profile() {
    let acme = r#"acme { domain_name = "d" email = "e" }"#;
    assert_eq!(
        endpoint(r#"profile "https_spiffe" {}"#),
        Ok(BundleEndpointProfile::HttpsSpiffe)
    );
    assert!(matches!(endpoint(acme), Ok(BundleEndpointProfile::Acme(_))));
    assert!(matches!(
        endpoint(&format!("profile \"https_web\" {{ {acme} }}")),
        Ok(BundleEndpointProfile::Acme(_))
    ));
    let file = |interval: &str| {
        endpoint(&format!(
            r#"profile "https_web" {{ serving_cert_file {{ cert_file_path = "/c" key_file_path = "/k" {interval} }} }}"#
        ))
    };
    let expected = |interval| {
        let (cert, key) = ("/c".into(), "/k".into());
        Ok(BundleEndpointProfile::ServingCertFile {
            cert,
            key,
            sync_interval: seconds(interval),
        })
    };
    assert_eq!(file(""), expected(3600));
    assert_eq!(file(r#"file_sync_interval = "5m""#), expected(300));

    let refusals = [
        (
            format!("{acme} profile \"https_spiffe\" {{}}"),
            "only one of acme and profile",
        ),
        (
            "profile \"https_web\" {} profile \"https_spiffe\" {}".to_owned(),
            "exactly one profile is expected, not 2",
        ),
        (
            "profile \"https_web\" {}".to_owned(),
            "needs acme { } or serving_cert_file { }",
        ),
        (
            "profile \"other\" {}".to_owned(),
            "use \"https_spiffe\" or \"https_web\"",
        ),
        (
            "acme { email = \"e\" }".to_owned(),
            "domain_name of acme must be configured",
        ),
        (
            "acme { domain_name = \"d\" }".to_owned(),
            "email of acme must be configured",
        ),
        (
            "refresh_hint = \"x\"".to_owned(),
            "could not parse federation.bundle_endpoint.refresh_hint",
        ),
        ("port = 70000".to_owned(), "must be a port"),
    ];
    for (keys, message) in refusals {
        let result = endpoint(&keys);
        assert!(
            result.as_ref().is_err_and(|why| why.contains(message)),
            "{keys}: {result:?}"
        );
    }
}

#[test]
fn a_relation_needs_a_url_and_a_profile() {
    let relation = |name: &str, keys: &str| {
        refused(&format!(
            "federation {{ federates_with {name:?} {{ {keys} }} }}"
        ))
    };
    let web = r#"bundle_endpoint_profile "https_web" {}"#;
    let url = r#"bundle_endpoint_url = "https://x""#;
    let key = "federation.federates_with[\"x.org\"]";
    assert_eq!(relation("x.org", &format!("{url} {web}")), "nothing");
    assert_eq!(
        relation("x.org", web),
        format!("{key}.bundle_endpoint_url must be configured")
    );
    assert_eq!(
        relation(
            "x.org",
            &format!("bundle_endpoint_url = \"http://x\" {web}")
        ),
        format!("{key}.bundle_endpoint_url must start with https://, unlike \"http://x\"")
    );
    assert_eq!(
        relation("x.org", url),
        format!("{key}.bundle_endpoint_profile must be configured")
    );
    assert!(
        relation(
            "x.org",
            &format!("{url} bundle_endpoint_profile \"other\" {{}}")
        )
        .contains("is unknown")
    );
    let spiffe = r#"bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "x" }"#;
    assert!(
        relation("x.org", &format!("{url} {spiffe}"))
            .contains("could not parse endpoint_spiffe_id")
    );
    assert!(relation("a b", &format!("{url} {web}")).contains("is not named by a trust domain"));
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

#[test]
fn what_is_required_is_asked_for() {
    for (missing, message) in [
        (
            r#"trust_domain = "example.org""#,
            "trust_domain must be configured",
        ),
        (r#"data_dir = "/d""#, "data_dir must be configured"),
        (PLUGINS, "plugins section must be configured"),
    ] {
        assert_eq!(told(server(&minimum("").replace(missing, ""))), message);
    }
}

#[test]
fn values_out_of_bounds_are_refused() {
    let cases = [
        (
            "bind_port = 65536",
            "bind_port must be a port from 1 to 65535, not 65536",
        ),
        (
            "bind_port = -1",
            "bind_port must be a port from 1 to 65535, not -1",
        ),
        (
            r#"log_level = "loud""#,
            "log_level \"loud\" is unknown; use one of panic, fatal, error, warn, info, debug, trace",
        ),
        (
            r#"ca_key_type = "ed25519""#,
            "ca_key_type: key type \"ed25519\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]",
        ),
        (
            r#"proxy_protocol_trusted_cidrs = ["10.0.0.1"]"#,
            "invalid proxy_protocol_trusted_cidrs value: \"10.0.0.1\" is not a network; write it as in \"10.0.0.0/8\" \
             or \"2001:db8::/32\"",
        ),
        (
            "prune_attested_nodes_batch_size = -1",
            "prune_attested_nodes_batch_size must not be negative: -1",
        ),
        (
            r#"experimental { named_pipe_name = "x" }"#,
            "named_pipe_name is not supported on this platform; use socket_path instead",
        ),
        (
            r#"experimental { event_timeout = "1s" sql_transaction_timeout = "1s" }"#,
            "both experimental sql_transaction_timeout and event_timeout are set; keep event_timeout",
        ),
        (
            "experimental { auth_opa_policy_engine {} }",
            "experimental.auth_opa_policy_engine needs a local { } block",
        ),
        (
            r#"agent_ttl = "-1h""#,
            "could not parse agent_ttl: duration \"-1h\" is negative; give zero or more",
        ),
    ];
    for (keys, message) in cases {
        assert_eq!(refused(keys), message);
    }
    assert!(refused(r#"jwt_key_type = "x""#).starts_with("jwt_key_type: key type"));
    assert!(
        refused(r#"experimental { wit_key_type = "x" }"#).starts_with("wit_key_type: key type")
    );
    assert!(refused(r#"admin_ids = ["x"]"#).starts_with("could not parse admin ID \"x\":"));
    for key in [
        "ca_ttl",
        "default_x509_svid_ttl",
        "default_jwt_svid_ttl",
        "prune_attested_nodes_expired_for",
        "max_attested_node_info_staleness",
    ] {
        assert!(
            refused(&format!("{key} = \"5\""))
                .starts_with(&format!("could not parse {key}: missing unit"))
        );
    }
    for key in [
        "cache_reload_interval",
        "full_cache_reload_interval",
        "prune_events_older_than",
        "event_timeout",
        "sql_transaction_timeout",
    ] {
        let told = refused(&format!("experimental {{ {key} = \"x\" }}"));
        assert!(
            told.starts_with(&format!("could not parse {key}: ")),
            "{told}"
        );
    }
}

#[test]
fn plugins_are_of_known_types_in_the_right_number() {
    let plugins = |plugins: &str| {
        told(server(&format!(
            "server {{ {MINIMUM} }} plugins {{ {plugins} }}"
        )))
    };
    let base = r#"DataStore "sql" {} KeyManager "memory" {} "#;
    let with = |more: &str| plugins(&format!("{base}{more}"));
    let constraint = |kind: &str, what: &str| {
        format!("plugin type {kind:?} constraint not satisfied: expected {what}")
    };
    assert_eq!(with(""), "nothing");
    assert_eq!(plugins(""), constraint("DataStore", "exactly 1 but got 0"));
    assert_eq!(
        with(r#"KeyManager "disk" {}"#),
        constraint("KeyManager", "exactly 1 but got 2")
    );
    assert_eq!(with(r#"KeyManager "disk" { enabled = false }"#), "nothing");
    assert_eq!(
        with(r#"UpstreamAuthority "disk" {} UpstreamAuthority "vault" {}"#),
        constraint("UpstreamAuthority", "at most 1 but got 2")
    );
    assert_eq!(
        with(r#"NodeAttestor "a" {} NodeAttestor "b" {} Notifier "c" {} Notifier "d" {}"#),
        "nothing"
    );
    assert!(
        with("WorkloadAttestor \"unix\" {}")
            .contains("unsupported plugin type \"WorkloadAttestor\"; expected one of DataStore, ")
    );
    assert!(
        with(r#"NodeAttestor "a" {} NodeAttestor { "a" {} }"#).contains("declared more than once")
    );
    // SR-2: one plugin under its two names.
    assert!(
        with(r#"NodeAttestor "x509_pop" {} NodeAttestor "x509pop" {}"#)
            .contains("declared more than once")
    );
    assert_eq!(
        with(r#"NodeAttestor "join_token" { plugin_cmd = "/x" }"#),
        "NodeAttestor \"join_token\" is built in; remove its plugin_cmd"
    );
    assert_eq!(
        plugins(r#"DataStore "other" {} KeyManager "memory" {}"#),
        "DataStore \"other\" cannot be used: only the built-in \"sql\" is supported"
    );
    assert!(
        with(r#"NodeAttestor "a" { plugin_data {} plugin_data_file = "/x" }"#)
            .contains("only one of plugin_data and plugin_data_file can be used")
    );
    assert!(
        with(r#"NodeAttestor "a" { plugin_data = 1 }"#).contains("plugin_data: expected a block")
    );
    assert!(
        with(r#"NodeAttestor "a" { plugin_data {} plugin_data {} }"#)
            .contains("given a second time")
    );
}

#[test]
fn plugins_have_any_shape_that_hcl_has() {
    let shapes = [
        r#"DataStore "sql" { plugin_data { a = 1 } } KeyManager "memory" { }"#,
        r#"DataStore { "sql" { plugin_data { a = 1 } } } KeyManager { memory { } }"#,
        r#"DataStore "sql" plugin_data { a = 1 } KeyManager "memory" "plugin_data" { }"#,
        r#"DataStore = { sql = { plugin_data = { a = 1 } } } "KeyManager" "memory" { }"#,
    ];
    for shape in shapes {
        let config = server(&format!("server {{ {MINIMUM} }} plugins {{ {shape} }}"));
        let config = config.unwrap_or_else(|why| panic!("{shape}: {why}"));
        let names: Vec<&str> = config
            .plugins
            .iter()
            .map(|plugin| plugin.name.as_str())
            .collect();
        assert_eq!(names, ["sql", "memory"], "{shape}");
        assert_eq!(
            config.plugins[0].data.text().unwrap().trim(),
            "a = 1",
            "{shape}"
        );
    }
}

#[test]
fn plugin_data_is_read_from_its_file_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data.conf");
    let text = minimum("").replace("plugin_data {}", &format!("plugin_data_file = {file:?}"));
    let data = server(&text).unwrap().plugins.remove(0).data;
    assert!(data.load().is_err_and(|why| {
        why.to_string()
            .starts_with("unable to read plugin_data_file")
    }));
    for value in ["a = 1", "b = 2"] {
        std::fs::write(&file, value).unwrap();
        assert_eq!(*data.text().unwrap(), value);
        assert_eq!(data.load().unwrap().items.len(), 1);
    }
    std::fs::write(&file, "a\n= ]").unwrap();
    assert!(
        data.load()
            .is_err_and(|why| why.to_string().contains("data.conf:2:3: expected a value"))
    );
}

#[test]
fn unknown_keys_are_refused_where_upstream_refuses_them() {
    let refusals = [
        ("oops = 1\n", "", "top level: \"oops\" (line 1, column 1)"),
        ("", "oops = 1", "server: \"oops\""),
        (
            "",
            "default_svid_ttl = \"1h\"",
            "server: \"default_svid_ttl\"",
        ),
        ("", "ca_subject { oops = 1 }", "server.ca_subject: \"oops\""),
        ("", "ratelimit { oops = 1 }", "server.ratelimit: \"oops\""),
        (
            "",
            "federation { bundle_endpoint { oops = 1 } }",
            "server.federation.bundle_endpoint: \"oops\"",
        ),
        (
            "",
            "federation { bundle_endpoint { acme { oops = 1 } } }",
            "server.federation.bundle_endpoint.acme: \"oops\"",
        ),
        (
            "telemetry { Prometheus { oops = 1 } }",
            "",
            "telemetry.Prometheus: \"oops\"",
        ),
        ("health_checks { oops = 1 }", "", "health_checks: \"oops\""),
    ];
    for (outside, keys, message) in refusals {
        let told = told(server(&format!("{outside}{}", minimum(keys))));
        assert!(
            told.starts_with("unknown configuration detected in test.conf: "),
            "{told}"
        );
        assert!(told.contains(message), "{told}");
    }
    for keys in [
        "experimental { oops = 1 }",
        "federation { oops = 1 }",
        r#"federation { federates_with "x" { bundle_endpoint_url = "https://x" bundle_endpoint_profile "https_web" {} oops = 1 } }"#,
    ] {
        assert!(server(&minimum(keys)).is_ok(), "{keys}");
    }
}

#[test]
fn doubtful_values_are_told() {
    let told = |keys: &str| with(keys).warnings.join("\n");
    assert!(told("ca_subject {}").contains("ca_subject is empty"));
    assert!(told(r#"default_x509_svid_ttl = "5h""#).contains("default_x509_svid_ttl is too high"));
    assert!(told(r#"experimental { sql_transaction_timeout = "1s" }"#).contains("deprecated"));
    assert_eq!(
        with(r#"experimental { sql_transaction_timeout = "1s" }"#)
            .experimental
            .event_timeout,
        Some(seconds(1))
    );
    let endpoint = |keys: &str| told(&format!("federation {{ bundle_endpoint {{ {keys} }} }}"));
    assert!(endpoint("address = \"localhost\"").contains("is not an IP address"));
    assert!(endpoint("refresh_hint = \"24h\"").contains("is high"));
    assert!(endpoint("refresh_hint = \"59s\"").contains("is low"));
    assert!(endpoint("").contains("no profile"));
    let text = minimum("").replace("plugin_data {}", "plugin_dta = 1");
    assert!(server(&text).unwrap().warnings[0].contains("\"plugin_dta\""));
}
