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

// Inventory sections 4, 6 and 8: `wit mint`, its key in the bundle, and the audit log.
#[test]
fn wit_svids_are_minted_with_the_feature_flag_across_a_kill() {
    let flag = r#"log_level = "DEBUG" audit_log_enabled = true experimental { feature_flags = ["wit-svid"] wit_key_type = "ec-p384" wit_issuer = "https://wit.example.org" }"#;
    let conf = CONF.replacen("server { ", &format!("server {{ {flag} "), 1);
    let mut server = Server::start(&conf, &[]);
    let minted = |server: &Server| -> Vec<Value> {
        let parts = server.ok(
            r#"d=$(mktemp -d)
            export SPIRE_SERVER_FFLAGS="i_am_a_test_flag wit-svid"
            spire-server wit mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -ttl 60s -write $d | sed "s#$d#D#" | tee -a /dev/stderr | grep -c '^WIT-SVID written to D/token$\|^Private key written to D/key$' >$d/said
            [ "$(cat $d/said)" = 2 ] && [ "$(stat -c %a $d/token $d/key | sort -u)" = 600 ]
            tr . '\n' <$d/token | head -2 | tr -- -_ +/ | while read -r part; do echo "$part===" | base64 -d 2>/dev/null || true; echo; done
            cat $d/key"#,
        );
        parts
            .lines()
            .map(|part| serde_json::from_str(part).unwrap())
            .collect()
    };
    let wit_keys = |server: &Server| server.json("bundle show")["wit_authorities"].clone();
    let [header, claims, key] = minted(&server).try_into().unwrap();
    let kid = wit_keys(&server)[0]["key_id"].clone();
    assert_eq!(
        header,
        serde_json::json!({ "alg": "ES384", "kid": kid, "typ": "wit+jwt" })
    );
    assert_eq!(claims["sub"], "spiffe://example.org/w");
    assert_eq!(claims["iss"], "https://wit.example.org");
    let seconds = |name: &str| claims[name].as_i64().unwrap();
    assert_eq!(seconds("exp") - seconds("iat"), 60);
    let jwk = &claims["cnf"]["jwk"];
    assert_eq!(jwk["alg"], "ES256");
    for name in ["kty", "crv", "x", "y"] {
        assert_eq!(jwk[name], key[name], "{name}");
    }
    assert!(key["d"].is_string());
    server.kill_and_start_again();
    let [again, ..] = <[Value; 3]>::try_from(minted(&server)).unwrap();
    assert_eq!(again, header);
    assert_eq!(wit_keys(&server).as_array().unwrap().len(), 1);
    let audited = server.log();
    let line = audited
        .lines()
        .find(|line| line.contains("MintWITSVID"))
        .unwrap();
    assert!(line.contains("spiffe://example.org/w"), "{line}");
    // Who does not ask for the feature is not told of the command.
    let unlisted = server.sh("spire-server wit mint");
    assert_eq!(unlisted.status.code(), Some(127));
    let json = server.ok(
        "SPIRE_SERVER_FFLAGS=wit-svid spire-server wit mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -keyType rsa-2048 -signingAlgorithm PS256 -output json",
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["svid"]["id"]["path"], "/w");
    assert!(json["svid"]["expires_at"].is_i64());
    let key: Value = serde_json::from_str(json["private_key"].as_str().unwrap()).unwrap();
    assert_eq!(key["kty"], "RSA");
}
