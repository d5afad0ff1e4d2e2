//! The deployment guide's own lines, word for word: manual parts 1, 2 and 4.
//!
//! Only the places change (`/etc/spire`, `/run/spire`, `/var/lib/spire` become a folder of the test, the port a free
//! one), and the agent, which is another program, attests over the API.

use std::process::Command;

use tempfile::TempDir;

use crate::server::{Server, attest, here, token};

/// Part 1, as the guide has it.
const SERVER_CONF: &str = r#"server { bind_address = "0.0.0.0" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" log_level = "INFO" } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "join_token" { plugin_data {} } KeyManager "disk" { plugin_data { keys_path = "/var/lib/spire/server/keys.json" } } }"#;

/// Part 4, as the guide has it.
const ENTRIES: &str = r#"
AGENT_ID=$(spire-server agent list -socketPath /run/spire/server.sock | grep -oP 'spiffe://[^\s]+' | head -1)
spire-server entry create \
  -socketPath /run/spire/server.sock \
  -parentID "$AGENT_ID" \
  -spiffeID "spiffe://example.org/ah/serve" \
  -selector "unix:user:agent-harbor"
spire-server entry create \
  -socketPath /run/spire/server.sock \
  -parentID "$AGENT_ID" \
  -spiffeID "spiffe://example.org/ah/agent/executor-1" \
  -selector "unix:user:executor"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_guide_run() {
    let mut server = Server::start(SERVER_CONF, &[]);
    // Part 2.
    let told = server
        .ok("spire-server token generate \\\n  -socketPath /run/spire/server.sock \\\n  -ttl 3600");
    let token = token(&told);
    attest(&server.folder.path().join("run/server.sock"), token).await;
    // Part 4.
    let told = server.ok(ENTRIES);
    let parent = format!("spiffe://example.org/spire/agent/join_token/{token}");
    assert_eq!(
        told.matches(&format!("Parent ID               : {parent}\n"))
            .count(),
        2
    );
    // Troubleshooting.
    let told = server.ok("spire-server entry show -socketPath /run/spire/server.sock");
    assert!(told.starts_with("Found 2 entries\n"), "{told}");
    let told = server.ok("spire-server agent list -socketPath /run/spire/server.sock");
    assert!(told.contains(&parent), "{told}");
    // What this server signs holds.
    let told = server.ok(
        "spire-server x509 mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w",
    );
    assert!(told.contains("-----BEGIN PRIVATE KEY-----"));
    let told = server.ok(
        "spire-server jwt mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -audience a",
    );
    assert_eq!(told.trim().split('.').count(), 3, "{told}");
    let told = server.ok("spire-server debug getinfo -socketPath /run/spire/server.sock");
    assert!(told.contains("  Registration Entries:    2\n"), "{told}");

    // TERM ends it well: exit code 0, and no socket is left behind.
    let id = nix::unistd::Pid::from_raw(server.child.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success(), "{}", server.log());
    assert!(!server.folder.path().join("run/server.sock").exists());
    assert!(
        server
            .log()
            .contains("level=info msg=\"Server stopped gracefully\"")
    );
}

#[test]
fn a_configuration_is_checked_without_being_run() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("server.conf");
    let validate = |text: &str| {
        std::fs::write(&path, here(text, folder.path())).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_spire-server"))
            .args(["validate", "-config"])
            .arg(&path)
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(told).unwrap())
    };
    let valid = "SPIRE server configuration file is valid.\n".to_owned();
    assert_eq!(validate(SERVER_CONF), (Some(0), valid));
    assert!(!folder.path().join("var").exists());
    for (from, to, text) in [
        ("trust_domain", "trust_domian", "trust_domian"),
        (
            "KeyManager \"disk\"",
            "KeyManager \"nowhere\"",
            "KeyManager \"nowhere\" cannot be used",
        ),
        (
            "keys_path",
            "keyspath",
            "KeyManager \"disk\": unknown keys: keyspath",
        ),
        ("sqlite3\" conn", "mysql\" conn", "DataStore \"sql\": "),
    ] {
        let (code, told) = validate(&SERVER_CONF.replacen(from, to, 1));
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(text), "{told}");
    }
}
