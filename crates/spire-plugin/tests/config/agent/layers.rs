//! Flags, variables, the file and its two notations.

use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::agent::{
    AgentConfig, Bootstrap, RebootstrapMode, TrustBundleFormat, run_flags,
};
use ah_spire_plugin::settings::{LogFormat, LogLevel};

use super::{agent, flagged, minimum};
use crate::common::{agent_with, no_environment, told};

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
