//! Two servers that federate, one of them behind a certificate of the web (inventory section 11).

use std::fs;
use std::process::Command;
use std::time::Duration;

use ah_testkit::ca::TestCa;
use ah_testkit::pebble::Pebble;
use ah_testkit::process::eventually;
use tempfile::TempDir;

use crate::observed::scrape;
use crate::server::{PROGRAM, Server, place};

/// A server of `domain`, with `federation` in its configuration.
fn conf(domain: &str, federation: &str) -> String {
    format!(
        r#"
server {{
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "/run/spire/server.sock"
    trust_domain = "{domain}"
    data_dir = "/var/lib/spire/server"
    federation {{
{federation}
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "/var/lib/spire/server/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
}}
telemetry {{ Prometheus {{ host = "127.0.0.1" port = 9989 }} }}
"#
    )
}

/// The port that stands after `before` in the configuration of `server`.
fn port(server: &Server, before: &str) -> u16 {
    let conf = fs::read_to_string(server.folder.path().join("etc/server.conf")).unwrap();
    port_in(&conf, before)
}

fn port_in(conf: &str, before: &str) -> u16 {
    let (_, rest) = conf.split_once(before).unwrap();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap()
}

fn command(server: &Server, line: &str) -> String {
    let line = format!("spire-server {line} -socketPath /run/spire/server.sock");
    server.ok(&line)
}

// SV-54, SV-55; inventory section 11: profile "https_web" with serving_cert_file, both ways of making a relationship.
#[test]
fn two_servers_federate_over_the_web_and_by_spiffe() {
    let folder = TempDir::new().unwrap();
    let web = TestCa::new("web");
    let roots = web.write(folder.path(), "roots");
    let files = |name: &str| web.leaf().dns(name).issue().write(folder.path(), "web");
    let written = files("localhost");
    let (cert, key) = (written.cert.display(), written.key.display());
    let left = Server::start(
        &conf(
            "left.test",
            &format!(
                r#"bundle_endpoint {{ address = "127.0.0.1" port = 9988 refresh_hint = "1m"
                    profile "https_web" {{ serving_cert_file {{
                        cert_file_path = "{cert}" key_file_path = "{key}" file_sync_interval = "100ms" }} }} }}"#
            ),
        ),
        &[],
    );
    let url = format!(
        "https://localhost:{}/",
        port(&left, r#""127.0.0.1" port = "#)
    );
    let right = Server::start(
        &conf(
            "right.test",
            &format!(
                r#"bundle_endpoint {{ address = "127.0.0.1" port = 9988 }}
                    federates_with "left.test" {{
                        bundle_endpoint_url = "{url}" bundle_endpoint_profile "https_web" {{}} }}"#
            ),
        ),
        &[("SSL_CERT_FILE", &roots)],
    );

    // By configuration: at the start.
    let theirs = command(&left, "bundle show");
    eventually("the left bundle is on the right", || {
        command(&right, "bundle list")
            .contains(&theirs)
            .then_some(())
    });
    assert!(
        command(&right, "federation list").starts_with("Found 0"),
        "what is configured is not listed"
    );
    // A new certificate is taken from the same files, and a broken one is not.
    fs::write(&written.cert, "broken").unwrap();
    eventually("the broken file is told", || {
        let told = "the last one serves on";
        left.log().contains(told).then_some(())
    });
    command(&right, "federation refresh -id left.test");
    files("elsewhere.test");
    eventually("the endpoint shows another name", || {
        let line =
            "spire-server federation refresh -id left.test -socketPath /run/spire/server.sock";
        let refused = right.sh(line);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        told.contains("certificate not valid for name")
            .then_some(())
    });

    // By command, with the bundle that proves the endpoint.
    let path = left.folder.path().join("right.json");
    let document = command(&right, "bundle show -format spiffe");
    fs::write(&path, document).unwrap();
    let endpoint = format!(
        "https://127.0.0.1:{}/",
        port(&right, r#""127.0.0.1" port = "#)
    );
    let relate = |profile: &str| {
        command(
            &left,
            &format!(
                "federation create -trustDomain right.test -bundleEndpointURL {endpoint} {profile}"
            ),
        )
    };
    relate(&format!(
        "-bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://right.test/spire/server -trustDomainBundlePath {} -trustDomainBundleFormat spiffe",
        path.display()
    ));
    command(&left, "federation refresh -id right.test");
    let listed = command(&left, "bundle list -id right.test -format spiffe");
    assert!(listed.contains("\"spiffe_refresh_hint\": 300"), "{listed}");

    // Inventory section 10.1: `bundle_manager_update_federated_bundle`, `bundle_manager_fetch_federated_bundle`.
    let metrics = scrape(port(&right, r#"host = "127.0.0.1" port = "#));
    for series in ["update_federated_bundle", "fetch_federated_bundle"] {
        let series = format!("spire_server_bundle_manager_{series}{{");
        let counted = metrics.lines().any(|line| {
            line.starts_with(&series) && line.contains(r#"trust_domain_id="left_test""#)
        });
        assert!(counted, "{series}\n{metrics}");
    }

    // An endpoint with an SVID is no web server, and the reason is told.
    command(&left, "federation delete -id right.test");
    relate("-bundleEndpointProfile https_web");
    let refused = left
        .sh("spire-server federation refresh -id right.test -socketPath /run/spire/server.sock");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    let why = "the server certificate contains SPIFFE ID \"spiffe://right.test/spire/server\": maybe use https_spiffe instead of https_web";
    assert!(told.contains(why), "{told}");
}

// Inventory section 11: profile "https_web" with acme.
#[test]
fn an_endpoint_s_certificate_comes_from_an_acme_server_and_outlives_it() {
    let endpoint = r#"bundle_endpoint { address = "127.0.0.1" port = 9988
        profile "https_web" { acme { directory_url = "DIRECTORY" domain_name = "localhost"
            email = "operator@left.test" tos_accepted = true } } }"#;
    let folder = place(&conf("left.test", endpoint));
    let path = folder.path().join("etc/server.conf");
    let written = fs::read_to_string(&path).unwrap();
    let listens = port_in(&written, r#""127.0.0.1" port = "#);
    let Some(mut pebble) = Pebble::start(listens, Duration::from_secs(24 * 60 * 60)) else {
        return;
    };
    fs::write(&path, written.replace("DIRECTORY", &pebble.directory_url())).unwrap();
    let program = || {
        let mut command = Command::new(PROGRAM);
        command.env("SSL_CERT_FILE", pebble.api_roots_file());
        command
    };
    let mut left = Server::start_in(folder, program());
    eventually("there is a certificate", || {
        let told = "The ACME server has issued a certificate";
        left.log().contains(told).then_some(())
    });
    let again = program();

    let roots = left.folder.path().join("issuing.pem");
    fs::write(&roots, pebble.issuing_root_pem()).unwrap();
    let with = format!(
        r#"federates_with "left.test" {{ bundle_endpoint_url = "https://localhost:{listens}/"
            bundle_endpoint_profile "https_web" {{}} }}"#
    );
    let right = Server::start(&conf("right.test", &with), &[("SSL_CERT_FILE", &roots)]);
    let theirs = command(&left, "bundle show");
    eventually("the left bundle is on the right", || {
        command(&right, "bundle list")
            .contains(&theirs)
            .then_some(())
    });

    // What is kept serves on, and nobody is asked.
    pebble.kill();
    left.child.kill().unwrap();
    left.child.wait().unwrap();
    left.restart(again);
    command(&right, "federation refresh -id left.test");
    assert_eq!(
        left.log().matches("issued a certificate").count(),
        1,
        "{}",
        left.log()
    );
    assert!(
        left.folder
            .path()
            .join("var/server/bundle-acme/localhost")
            .exists()
    );
}

// Inventory section 11: what is not there is refused by name, and what is wrong before anything starts.
#[test]
fn what_cannot_be_served_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("server.conf");
    for (federation, why) in [
        (
            r#"bundle_endpoint { address = "127.0.0.1" port = 1 profile "https_web" { acme { domain_name = "d" email = "e" } } }"#,
            "ACME Terms of Service have not been accepted. See the `tos_accepted` configurable",
        ),
        (
            r#"bundle_endpoint { address = "127.0.0.1" port = 1 acme { domain_name = "d" email = "e" } }"#,
            "ACME Terms of Service have not been accepted. See the `tos_accepted` configurable",
        ),
        (
            r#"bundle_endpoint { address = "127.0.0.1" port = 1 profile "https_web" { serving_cert_file { cert_file_path = "/nowhere" key_file_path = "/nowhere" } } }"#,
            "failed to load certificate: /nowhere: No such file",
        ),
        (
            r#"federates_with "own.test" { bundle_endpoint_url = "https://a" bundle_endpoint_profile "https_web" {} }"#,
            "is the trust domain of this server",
        ),
        (
            r#"federates_with "a.test" { bundle_endpoint_url = "https://u@a" bundle_endpoint_profile "https_web" {} }"#,
            "bundle_endpoint_url: bundle endpoint URL must not contain user info",
        ),
    ] {
        fs::write(&file, conf("own.test", federation)).unwrap();
        for command in ["validate", "run"] {
            let ended = Command::new(env!("CARGO_BIN_EXE_spire-server"))
                .args([command, "-config"])
                .arg(&file)
                .output()
                .unwrap();
            assert!(!ended.status.success(), "{command}: {federation}");
            let told = [ended.stdout, ended.stderr].concat();
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(told.contains(why), "{why}: {told}");
        }
    }
}
