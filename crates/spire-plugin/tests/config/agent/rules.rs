//! What is refused or warned about, and in which words.

use super::{MINIMUM, PLUGINS, agent, bootstrap, minimum, refused, with};
use crate::common::told;

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
