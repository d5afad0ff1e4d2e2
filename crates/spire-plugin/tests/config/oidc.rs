//! What a discovery provider is told: keys, defaults and the rules of upstream (inventory section 11).

use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::oidc::{OidcAcme, OidcConfig, OidcHealth, OidcKeys, OidcListen};
use ah_spire_plugin::settings::{LogFormat, LogLevel};

use crate::common::{no_environment, oidc_with, told};

const SOURCE: &str = r#"server_api { address = "unix:///run/server.sock" }"#;
const LISTEN: &str = r#"insecure_addr = "127.0.0.1:0""#;
const DOMAINS: &str = r#"domains = ["oidc.example.org"]"#;

fn load(text: &str) -> OidcConfig {
    oidc_with(text, &[], &no_environment).unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn refused(text: &str) -> String {
    told(oidc_with(text, &[], &no_environment))
}

#[test]
fn every_key_arrives() {
    let config = load(
        r#"
        log_format = "json" log_level = "debug" log_path = "/log" log_requests = true
        domains = ["a.example.org", "b.example.org", "a.example.org"]
        set_key_use = true allow_insecure_scheme = true
        serving_cert_file {
            cert_file_path = "/c" key_file_path = "/k" addr = "127.0.0.1:8443" file_sync_interval = "3s"
        }
        workload_api { socket_path = "/run/agent.sock" trust_domain = "example.org" poll_interval = "2s" }
        health_checks { bind_port = "9000" live_path = "/l" ready_path = "/r" }
        jwt_issuer = "HTTPS://issuer.example.org/v1"
        jwks_uri = "https://keys.example.org:444/keys?x=1"
        server_path_prefix = "/instance/1"
        experimental {}
        "#,
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Debug, LogFormat::Json)
    );
    assert_eq!(config.log.file.as_deref(), Some(Path::new("/log")));
    assert!(config.log_requests && config.set_key_use && config.allow_insecure_scheme);
    assert_eq!(config.domains, ["a.example.org", "b.example.org"]);
    assert_eq!(
        config.listen,
        OidcListen::ServingCertFile {
            cert: "/c".into(),
            key: "/k".into(),
            address: "127.0.0.1:8443".into(),
            sync_interval: Duration::from_secs(3),
        }
    );
    let OidcKeys::WorkloadApi {
        socket,
        trust_domain,
    } = config.keys
    else {
        panic!("workload_api")
    };
    assert_eq!(socket, Path::new("/run/agent.sock"));
    assert_eq!(trust_domain.as_str(), "example.org");
    assert_eq!(config.poll_interval, Duration::from_secs(2));
    assert_eq!(
        config.health_checks,
        Some(OidcHealth {
            port: 9000,
            live_path: "/l".into(),
            ready_path: "/r".into(),
        })
    );
    let issuer = config.jwt_issuer.unwrap();
    assert_eq!(issuer.text, "https://issuer.example.org/v1");
    assert_eq!(
        (
            issuer.scheme.as_str(),
            issuer.host.as_str(),
            issuer.path.as_str()
        ),
        ("https", "issuer.example.org", "/v1")
    );
    let keys = config.jwks_uri.unwrap();
    assert_eq!(
        (keys.host.as_str(), keys.path.as_str()),
        ("keys.example.org:444", "/keys")
    );
    assert_eq!(config.server_path_prefix, "/instance/1");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn defaults_are_upstream_s() {
    let config = load(&format!("{DOMAINS} {LISTEN} {SOURCE} health_checks {{}}"));
    assert_eq!(config.log.level, LogLevel::Info);
    assert_eq!(config.listen, OidcListen::Insecure("127.0.0.1:0".into()));
    assert_eq!(config.keys, OidcKeys::ServerApi("/run/server.sock".into()));
    assert_eq!(config.poll_interval, Duration::from_secs(10));
    assert_eq!(config.server_path_prefix, "/");
    let health = OidcHealth {
        port: 8008,
        live_path: "/live".into(),
        ready_path: "/ready".into(),
    };
    assert_eq!(config.health_checks, Some(health));

    let files = r#"serving_cert_file { cert_file_path = "/c" key_file_path = "/k" }"#;
    let config = load(&format!(
        r#"{DOMAINS} {files} file {{ path = "bundle.json" poll_interval = "0s" }}"#
    ));
    let OidcListen::ServingCertFile {
        address,
        sync_interval,
        ..
    } = config.listen
    else {
        panic!("serving_cert_file")
    };
    assert_eq!(
        (address.as_str(), sync_interval),
        (":443", Duration::from_secs(60))
    );
    assert_eq!(config.keys, OidcKeys::File("bundle.json".into()));
    assert_eq!(config.poll_interval, Duration::from_secs(10));

    let acme = r#"acme { email = "a@b" tos_accepted = true }"#;
    let config = load(&format!("{DOMAINS} {acme} {SOURCE}"));
    let acme = OidcAcme {
        directory_url: None,
        email: "a@b".into(),
        cache_dir: Some("./.acme-cache".into()),
    };
    assert_eq!(config.listen, OidcListen::Acme(acme));
    let acme = r#"acme { email = "a@b" tos_accepted = true cache_dir = "" directory_url = "u" }"#;
    let config = load(&format!("{DOMAINS} {acme} {SOURCE}"));
    let OidcListen::Acme(acme) = config.listen else {
        panic!("acme")
    };
    assert_eq!(
        (acme.cache_dir, acme.directory_url.as_deref()),
        (None, Some("u"))
    );
}

#[test]
fn json_and_the_environment_are_read() {
    let text = r#"{"domains": ["$HOST"], "listen_socket_path": "/run/oidc.sock",
        "file": {"path": "/bundle.json"}}"#;
    let host = |name: &str| (name == "HOST").then(|| "x.example.org".to_owned());
    let config = oidc_with(text, &["-expandEnv"], &host).unwrap();
    assert_eq!(config.domains, ["x.example.org"]);
    assert_eq!(config.listen, OidcListen::Socket("/run/oidc.sock".into()));
}

#[test]
fn what_is_wrong_is_told_by_its_key() {
    let files = "serving_cert_file { cert_file_path = \"/c\" key_file_path = \"/k\" }";
    let acme = r#"acme { email = "a@b" tos_accepted = true }"#;
    for (text, why) in [
        (
            format!("{LISTEN} {SOURCE}"),
            "at least one domain must be configured",
        ),
        (
            format!("{DOMAINS} {SOURCE}"),
            "either acme, serving_cert_file, insecure_addr or listen_socket_path",
        ),
        (
            format!("{DOMAINS} {LISTEN} {acme} {SOURCE}"),
            "acme and insecure_addr are mutually exclusive",
        ),
        (
            format!("{DOMAINS} {files} {acme} {SOURCE}"),
            "acme and serving_cert_file are mutually exclusive",
        ),
        (
            format!("{DOMAINS} {files} listen_socket_path = \"/s\" {SOURCE}"),
            "serving_cert_file and listen_socket_path are mutually exclusive",
        ),
        (
            format!("{DOMAINS} {LISTEN} listen_socket_path = \"/s\" {SOURCE}"),
            "insecure_addr and listen_socket_path are mutually exclusive",
        ),
        (
            format!("{DOMAINS} {SOURCE} acme {{ email = \"a@b\" }}"),
            "tos_accepted must be set to true in the acme configuration section",
        ),
        (
            format!("{DOMAINS} {SOURCE} acme {{ tos_accepted = true }}"),
            "email must be configured in the acme configuration section",
        ),
        (
            format!("{DOMAINS} {SOURCE} serving_cert_file {{ key_file_path = \"/k\" }}"),
            "cert_file_path must be configured in the serving_cert_file",
        ),
        (
            format!("{DOMAINS} {SOURCE} serving_cert_file {{ cert_file_path = \"/c\" }}"),
            "key_file_path must be configured in the serving_cert_file",
        ),
        (
            format!("{DOMAINS} {LISTEN}"),
            "exactly one of the server_api, workload_api, or file sections",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} file {{ path = \"/f\" }}"),
            "sections are mutually exclusive",
        ),
        (
            format!("{DOMAINS} {LISTEN} server_api {{}}"),
            "address must be configured in the server_api",
        ),
        (
            format!("{DOMAINS} {LISTEN} server_api {{ address = \"localhost:8081\" }}"),
            "address must use the unix name system",
        ),
        (
            format!("{DOMAINS} {LISTEN} server_api {{ address = \"unix://run/s\" }}"),
            "address must use the unix name system",
        ),
        (
            format!("{DOMAINS} {LISTEN} workload_api {{ socket_path = \"/s\" }}"),
            "trust_domain must be configured in the workload_api",
        ),
        (
            format!("{DOMAINS} {LISTEN} workload_api {{ trust_domain = \"a.org\" }}"),
            "socket_path must be configured in the workload_api",
        ),
        (
            format!(
                "{DOMAINS} {LISTEN} workload_api {{ socket_path = \"/s\" trust_domain = \"a b\" }}"
            ),
            "could not parse trust_domain \"a b\"",
        ),
        (
            format!("{DOMAINS} {LISTEN} file {{}}"),
            "path must be configured in the file",
        ),
        (
            format!("{DOMAINS} {LISTEN} file {{ path = \"/f\" poll_interval = \"5\" }}"),
            "could not parse poll_interval: missing unit",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} jwt_issuer = \"example.org\""),
            "the jwt_issuer url must contain a scheme",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} jwt_issuer = \"https://\""),
            "the jwt_issuer url could not be parsed",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} jwks_uri = \"https://a b\""),
            "the jwks_uri url must not contain white space",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} server_path_prefix = \"a\""),
            "server_path_prefix must begin with / and be a path",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} log_level = \"loud\""),
            "log_level \"loud\" is unknown",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} health_checks {{ bind_port = 70000 }}"),
            "health_checks.bind_port must be a port",
        ),
        (
            format!("{DOMAINS} {LISTEN} {SOURCE} health_checks {{ live_path = \"live\" }}"),
            "health_checks.live_path must begin with /",
        ),
        (
            format!("{DOMAINS} {SOURCE} experimental {{ listen_named_pipe_name = \"p\" }}"),
            "experimental.listen_named_pipe_name is not supported on this platform; use listen_socket_path",
        ),
        (
            format!(
                "{DOMAINS} {LISTEN} server_api {{ experimental {{ named_pipe_name = \"p\" }} }}"
            ),
            "server_api.experimental.named_pipe_name is not supported",
        ),
        (
            format!(
                "{DOMAINS} {LISTEN} workload_api {{ experimental {{ named_pipe_name = \"p\" }} }}"
            ),
            "workload_api.experimental.named_pipe_name is not supported",
        ),
        (
            "domains = \"a\" set_key_use = \"true\"".to_owned(),
            "test.conf:1:1",
        ),
        (
            format!("{DOMAINS}\nset_key_use = \"true\""),
            "test.conf:2:15: set_key_use: expected true or false",
        ),
    ] {
        let told = refused(&text);
        assert!(told.contains(why), "{text}\n{told}");
    }
}

// Upstream passes over keys that it does not know.
#[test]
fn unknown_keys_are_warned_of_with_their_places() {
    let config = load(&format!(
        "{DOMAINS}\n{LISTEN} {SOURCE}\nset_key_used = true\nhealth_checks {{ port = 1 }}"
    ));
    let told = config.warnings.join("\n");
    for part in [
        "the top level: \"set_key_used\" (line 3, column 1; did you mean \"set_key_use\"?)",
        "health_checks: \"port\" (line 4, column 17)",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let issuer = load(&format!(
        "{DOMAINS} {LISTEN} {SOURCE} jwt_issuer = \"https://i.example.org\""
    ));
    assert!(issuer.warnings[0].contains("set jwks_uri"));
}
