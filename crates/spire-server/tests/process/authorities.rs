//! Authorities of a server that is killed between the steps of a rotation by hand.

use serde_json::Value;

use crate::server::Server;

const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" }
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } }
  KeyManager "disk" { plugin_data { keys_path = "/var/lib/spire/server/keys.json" } }
  CredentialComposer "uniqueid" {}
}"#;

fn show(server: &Server) -> Value {
    server.json("localauthority x509 show")
}

// SV-53: the journal knows what was prepared, and what is old.
#[test]
fn a_killed_server_goes_on_where_it_was() {
    let mut server = Server::start(CONF, &[]);
    let old = show(&server)["active"].clone();
    let prepared = server.json("localauthority x509 prepare")["prepared_authority"].clone();
    server.kill_and_start_again();
    let shown = show(&server);
    assert_eq!((&shown["active"], &shown["prepared"]), (&old, &prepared));
    let id = |it: &Value| format!("-authorityID {}", it["authority_id"].as_str().unwrap());
    let command = format!("localauthority x509 activate -rehearse {}", id(&prepared));
    server.command(&command);
    server.kill_and_start_again();
    let shown = show(&server);
    assert_eq!((&shown["active"], &shown["old"]), (&prepared, &old));
    server.command(&format!("localauthority x509 taint {}", id(&old)));
    server.kill_and_start_again();
    assert_eq!(show(&server)["old"], old);
    // The server's own SVID is of the new authority: nobody minds that the old one goes.
    server.command(&format!("localauthority x509 revoke {}", id(&old)));
    let bundle = server.json("bundle show");
    assert_eq!(bundle["x509_authorities"].as_array().unwrap().len(), 1);
    assert_eq!(show(&server)["active"], prepared);
}

// CredentialComposer `uniqueid`: workloads' certificates tell their SPIFFE IDs apart by subject.
#[test]
fn unique_ids_are_in_the_subjects_of_workloads() {
    let server = Server::start(CONF, &[]);
    let subject = |id: &str| {
        server.ok(&format!(
            "spire-server x509 mint -spiffeID spiffe://example.org/{id} -socketPath /run/spire/server.sock | openssl x509 -noout -subject"
        ))
    };
    let (one, other) = (subject("one"), subject("other"));
    assert!(one.contains("x500UniqueIdentifier"), "{one}");
    assert_ne!(one, other);
    assert_eq!(one, subject("one"));
}
