//! What is refused or warned about, and in which words.

use super::{MINIMUM, PLUGINS, minimum, refused, seconds, server, with};
use crate::common::told;

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
            r#"experimental { auth_opa_policy_engine { local { policy_data_path = "d.json" } } }"#,
            "experimental.auth_opa_policy_engine.local needs rego_path: the file of the policy",
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
