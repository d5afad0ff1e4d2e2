//! By what an agent trusts its server first, and its join token.

use ah_spire_plugin::agent::Bootstrap;

use super::{agent, bootstrap, flagged, minimum, refused, with};

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
