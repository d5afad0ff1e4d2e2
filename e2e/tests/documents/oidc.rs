//! What a client of OpenID Connect makes of the discovery provider.

use ah_testkit::ca::TestCa;
use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;

use crate::reader::Reader;

/// Verifies the token in a file, knowing nothing but the issuer; what a client says that does not.
fn verify(reader: &Reader, audience: &str, token: &str) -> Result<String, String> {
    let issuer = "https://oidc.example.org";
    let line = [
        "oidc-client",
        issuer,
        audience,
        token,
        "/etc/spire/oidc.pem",
    ];
    let ran = reader.machine.command_as("root", line).output().unwrap();
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}

fn sh(reader: &Reader, lines: &str) -> String {
    reader.machine.shell(lines).stdout.trim().to_owned()
}

const JOB: &str = "verified spiffe://example.org/job";
const KEYS: &str =
    "curl --silent --fail --cacert /etc/spire/oidc.pem https://oidc.example.org/keys";

// Inventory section 11: the page, a client that follows the document, a new key, a new certificate, and a server that
// is gone.
#[test]
fn clients_of_openid_connect_verify_tokens_by_the_issuer_alone() {
    let Some(client) = ah_testkit::go::peer("./oidc-client", "oidc-client") else {
        return;
    };
    let Some(mut reader) = Reader::on(&[("oidc-client", &client)]) else {
        return;
    };
    reader.page("docs/oidc.md");
    assert_eq!(verify(&reader, "vault", "/tmp/token"), Ok(JOB.into()));
    let other = verify(&reader, "other", "/tmp/token").unwrap_err();
    assert!(other.contains("expected audience \"other\""), "{other}");

    rotate(&reader);
    renew_certificate(&reader);
    by_the_workload_api(&mut reader);
    without_server(&mut reader);
}

const PEBBLE: &str = r#"
cd /etc/spire
cat > pebble.json << EOF
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
  "certificate": "/etc/spire/pebble.pem", "privateKey": "/etc/spire/pebble-key.pem", "httpPort": 80, "tlsPort": 443,
  "retryAfter": {"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa"}}
EOF
spire-server bundle show -format spiffe -socketPath /run/spire/server.sock > bundle.json
cat > acme.conf << EOF
domains = ["oidc.example.org"]
acme {
    directory_url = "https://localhost:14000/dir" email = "operator@example.org" tos_accepted = true
    cache_dir = "/var/lib/spire/acme"
}
file { path = "/etc/spire/bundle.json" }
health_checks {}
EOF
"#;

// Inventory section 11: `acme { }` of the provider.
#[test]
fn the_certificate_comes_from_an_acme_server() {
    let client = ah_testkit::go::peer("./oidc-client", "oidc-client");
    let pebble = ah_testkit::go::peer("github.com/letsencrypt/pebble/v2/cmd/pebble", "pebble");
    let (Some(client), Some(pebble)) = (client, pebble) else {
        return;
    };
    let further = [("oidc-client", &*client), ("pebble", &*pebble)];
    let Some(mut reader) = Reader::on(&further) else {
        return;
    };
    reader.section("docs/oidc.md", "The issuer");
    sh(&reader, PEBBLE);
    let api = TestCa::new("pebble");
    let leaf = api.leaf().dns("localhost").issue();
    for (name, text) in [
        ("pebble.pem", leaf.chain_pem()),
        ("pebble-key.pem", leaf.key_pem()),
        ("pebble-roots.pem", api.pem()),
    ] {
        sh(
            &reader,
            &format!("cat > /etc/spire/{name} << EOF\n{text}\nEOF"),
        );
    }
    sh(
        &reader,
        "spire-server jwt mint -spiffeID spiffe://example.org/job -audience vault -socketPath /run/spire/server.sock > /tmp/token",
    );
    let acme = reader.machine.start(
        "root",
        "env PEBBLE_VA_NOSLEEP=1 pebble -config /etc/spire/pebble.json",
    );
    acme.wait_for("ACME directory available at");
    sh(
        &reader,
        "curl --silent --fail --cacert /etc/spire/pebble-roots.pem https://localhost:15000/roots/0 > /etc/spire/oidc.pem",
    );
    let run = "env SSL_CERT_FILE=/etc/spire/pebble-roots.pem oidc-discovery-provider -config /etc/spire/acme.conf";
    for starts in 1..=2 {
        let mut provider = reader.machine.start("root", run);
        let ready = "curl --silent --fail http://localhost:8008/ready";
        eventually("the provider is ready", || {
            let asked = reader.machine.command_as("root", ready.split(' ')).output();
            asked.unwrap().status.success().then_some(())
        });
        assert_eq!(verify(&reader, "vault", "/tmp/token"), Ok(JOB.into()));
        assert_eq!(
            acme.count("Added order"),
            1,
            "start {starts} orders nothing"
        );
        provider.signal(Signal::SIGTERM);
        assert!(provider.wait().success(), "{:#?}", provider.lines());
    }
}

/// Tokens of the old key and of the new one are verified, once the provider has seen it.
fn rotate(reader: &Reader) {
    sh(
        reader,
        "spire-server localauthority jwt prepare -socketPath /run/spire/server.sock
         id=$(spire-server localauthority jwt show -socketPath /run/spire/server.sock -output json | jq -r .prepared.authority_id)
         spire-server localauthority jwt activate -authorityID $id -socketPath /run/spire/server.sock
         spire-server jwt mint -spiffeID spiffe://example.org/job -audience vault -socketPath /run/spire/server.sock > /tmp/newer",
    );
    eventually("the new key is served", || {
        let keys = sh(reader, &format!("{KEYS} | jq '.keys | length'"));
        (keys == "2").then_some(())
    });
    for token in ["/tmp/newer", "/tmp/token"] {
        assert_eq!(verify(reader, "vault", token), Ok(JOB.into()));
    }
}

/// A client that trusts the new certificate alone is served, and nobody restarted anything.
fn renew_certificate(reader: &Reader) {
    let provider = reader.server("root", "curl --silent --fail http://localhost:8008/ready");
    sh(reader, "echo broken > /etc/spire/oidc.pem");
    provider.wait_for(
        "The certificate of the discovery provider cannot be read again; the last one serves on",
    );
    sh(
        reader,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=oidc.example.org \
         -addext subjectAltName=DNS:oidc.example.org -keyout /etc/spire/oidc-key.pem -out /etc/spire/oidc.pem",
    );
    provider.wait_for("The discovery provider has a new certificate");
    assert_eq!(verify(reader, "vault", "/tmp/newer"), Ok(JOB.into()));
}

/// The same keys from an agent, on a unix socket.
fn by_the_workload_api(reader: &mut Reader) {
    let machine = &reader.machine;
    let agent = r#"
token=$(spire-server token generate -spiffeID spiffe://example.org/node -socketPath /run/spire/server.sock | sed -n 's/^Token: //p')
spire-server bundle show -socketPath /run/spire/server.sock > /etc/spire/bundle.pem
cat > /etc/spire/agent.conf << EOF
agent {
    data_dir = "/var/lib/spire/agent" server_address = "spire-server.example.org" server_port = "8081"
    socket_path = "/run/spire/agent.sock" trust_domain = "example.org"
    trust_bundle_path = "/etc/spire/bundle.pem" join_token = "$token"
}
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
    WorkloadAttestor "unix" { plugin_data {} }
}
EOF
cat > /etc/spire/by-agent.json << EOF
{"domains": ["oidc.example.org", "localhost"], "listen_socket_path": "/run/spire/oidc.sock", "set_key_use": true,
 "allow_insecure_scheme": true, "log_level": "debug", "log_requests": true,
 "workload_api": {"socket_path": "/run/spire/agent.sock", "trust_domain": "example.org", "poll_interval": "1s"}}
EOF
"#;
    sh(reader, agent);
    let _agent = machine.start("root", "spire-agent run -config /etc/spire/agent.conf");
    let mut provider = machine.start(
        "root",
        "oidc-discovery-provider -config /etc/spire/by-agent.json",
    );
    provider.wait_for("Failed to fetch bundle");
    let asked = |path: &str| {
        let line =
            format!("curl --silent --unix-socket /run/spire/oidc.sock http://localhost{path}");
        sh(reader, &line)
    };
    assert_eq!(asked("/keys"), "document not available");
    sh(
        reader,
        "spire-server entry create -parentID spiffe://example.org/node -spiffeID spiffe://example.org/oidc \
         -selector unix:user:root -socketPath /run/spire/server.sock",
    );
    provider.wait_for("The keys are new");
    let sorted = |keys: &str| {
        sh(
            reader,
            &format!("{keys} | jq -c '.keys | map(del(.use)) | sort_by(.kid)'"),
        )
    };
    let by_agent = "curl --silent --unix-socket /run/spire/oidc.sock http://localhost/keys";
    assert_eq!(sorted(by_agent), sorted(KEYS));
    assert_eq!(
        sh(reader, &format!("{by_agent} | jq -c '[.keys[].use]'")),
        r#"["sig","sig"]"#
    );
    let issuer = asked("/.well-known/openid-configuration");
    assert!(
        issuer.contains(r#""issuer": "http://localhost""#),
        "{issuer}"
    );
    let refused = sh(
        reader,
        "curl --silent --unix-socket /run/spire/oidc.sock http://other.test/.well-known/openid-configuration",
    );
    assert_eq!(refused, "domain \"other.test\" is not allowed");
    provider.wait_for("method=GET url=/keys");
    provider.signal(Signal::SIGTERM);
    assert!(provider.wait().success(), "{:#?}", provider.lines());
    let left = sh(reader, "ls /run/spire");
    assert!(!left.contains("oidc.sock"), "{left}");
}

/// What was known is served on, and who begins now says that there is nothing.
fn without_server(reader: &mut Reader) {
    reader.end("spire-server");
    let provider = reader.server("root", "curl --silent --fail http://localhost:8008/ready");
    let why = "Failed to fetch bundle";
    provider.wait_for_nth(why, provider.count(why) + 1);
    assert_eq!(verify(reader, "vault", "/tmp/newer"), Ok(JOB.into()));
    let ready = "curl --silent --write-out ' %{http_code}' http://localhost:8008/ready";
    let told = sh(reader, ready);
    assert!(
        told.contains("the last attempt failed: server_api: ") && told.ends_with(" 200"),
        "{told}"
    );

    sh(
        reader,
        "sed 's/:443/127.0.0.1:8443/; s/health_checks {}/health_checks { bind_port = 8009 }/' /etc/spire/oidc.conf > /etc/spire/late.conf",
    );
    let late: Process = reader.machine.start(
        "root",
        "oidc-discovery-provider -config /etc/spire/late.conf",
    );
    late.wait_for(why);
    let told = sh(reader, &ready.replace("8008", "8009"));
    assert!(
        told.starts_with("no keys could be fetched yet: server_api: /run/spire/server.sock: ")
            && told.ends_with(" 500"),
        "{told}"
    );
    let live = sh(reader, &ready.replace("8008/ready", "8009/live"));
    assert!(live.ends_with(" 200"), "{live}");
}
