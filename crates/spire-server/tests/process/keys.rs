//! A server whose keys are elsewhere (inventory section 6): its authorities rotate, and come back after a kill.

use std::path::Path;
use std::process::Command;

use ah_testkit::openbao::OpenBao;
use ah_testkit::process::eventually;
use ah_testkit::softhsm::SoftHsm;
use serde_json::{Value, json};

use crate::server::{PROGRAM, Server};
use crate::vault::refused;

fn conf(keys: &str) -> String {
    format!(
        r#"server {{ bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" ca_key_type = "ec-p384" jwt_key_type = "rsa-2048" }}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" }} }}
  KeyManager {keys}
}}"#
    )
}

pub(crate) fn shown(server: &Server) -> Value {
    server.json("localauthority x509 show")
}

/// Signs, is killed, is there again with the same authorities, rotates, and signs with the next.
pub(crate) fn lives(server: &mut Server, environment: &[(&str, &Path)]) {
    let minted = |server: &Server| {
        server.ok(
            "d=$(mktemp -d)
             spire-server x509 mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -write $d
             spire-server bundle show -socketPath /run/spire/server.sock > $d/roots.pem
             openssl verify -CAfile $d/roots.pem $d/svid.pem
             spire-server jwt mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -audience a",
        )
    };
    assert!(minted(server).contains("svid.pem: OK"));
    let first = shown(server)["active"].clone();
    let jwt = server.json("localauthority jwt show")["active"].clone();
    let again = |server: &mut Server| {
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let mut command = Command::new(PROGRAM);
        command.envs(environment.iter().copied());
        server.restart(command);
    };
    again(server);
    assert_eq!(shown(server)["active"], first);
    assert_eq!(server.json("localauthority jwt show")["active"], jwt);
    for _ in 0..2 {
        let prepared = server.json("localauthority x509 prepare")["prepared_authority"].clone();
        let id = prepared["authority_id"].as_str().unwrap();
        server.command(&format!("localauthority x509 activate -authorityID {id}"));
        again(server);
        assert_eq!(shown(server)["active"], prepared);
        assert!(minted(server).contains("svid.pem: OK"));
    }
    // No private key is on the disk.
    let found = server.sh("grep -rlE 'PRIVATE KEY|\"keys\"' /var/lib/spire /etc/spire");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn a_server_with_its_keys_in_openbao() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    bao.write("sys/mounts/transit", json!({"type": "transit"}));
    bao.write("sys/auth/transit-role", json!({"type": "approle"}));
    let policy = "path \"transit/keys/*\" { capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"] }
        path \"transit/keys\" { capabilities = [\"list\"] }
        path \"transit/sign/*\" { capabilities = [\"update\"] }";
    bao.write("sys/policies/acl/transit", json!({"policy": policy}));
    let role = json!({"token_policies": "transit", "token_ttl": "1h"});
    bao.write("auth/transit-role/role/spire", role);
    let role_id = bao.read("auth/transit-role/role/spire/role-id")["data"]["role_id"].clone();
    let secret = bao.write("auth/transit-role/role/spire/secret-id", json!({}));
    let secret = secret["data"]["secret_id"].as_str().unwrap();
    let keys = conf(&format!(
        r#""hashicorp_vault" {{ plugin_data {{ vault_addr = "{}" key_identifier_file = "/var/lib/spire/server-id" approle_auth {{ approle_auth_mount_point = "transit-role" approle_id = {role_id} approle_secret_id = "{secret}" }} }} }}"#,
        bao.url()
    ));
    let mut server = Server::start(&keys, &[]);
    lives(&mut server, &[]);
    assert!(!server.log().contains(secret));
    // Two slots of either kind, of which the second of the JWT keys was never needed.
    eventually("what was replaced is deleted", || {
        let listed = bao.read("transit/keys?list=true");
        (listed["data"]["keys"].as_array().unwrap().len() == 3).then_some(())
    });
}

#[test]
fn a_server_with_its_keys_on_a_token() {
    let Some(hsm) = SoftHsm::new() else {
        return;
    };
    hsm.token("ah", "4711-0815");
    let module = SoftHsm::module().display();
    let keys = conf(&format!(
        r#""pkcs11" {{ plugin_data {{ module_path = "{module}" token_label = "ah" pin_env = "TOKEN_PIN" key_identifier_file = "/var/lib/spire/server-id" }} }}"#
    ));
    let at = hsm.conf();
    let environment = [
        ("SOFTHSM2_CONF", at.as_path()),
        ("TOKEN_PIN", Path::new("4711-0815")),
    ];
    let mut server = Server::start(&keys, &environment);
    lives(&mut server, &environment);
    assert!(!server.log().contains("4711-0815"));
    // Another server on the same token.
    let other = Server::start(&keys, &environment);
    assert_ne!(shown(&other)["active"], shown(&server)["active"]);
    server.command("x509 mint -spiffeID spiffe://example.org/w");
}

#[test]
fn keys_that_cannot_be_had_keep_a_server_from_starting() {
    for (keys, text) in [
        (
            "\"hashicorp_vault\" { plugin_data { vault_addr = \"http://127.0.0.1:1\" key_identifier_value = \"a\" token_auth { token = \"t\" } } }",
            "KeyManager \"hashicorp_vault\": transit engine list keys call failed: failed to connect to vault: connection refused",
        ),
        (
            "\"hashicorp_vault\" { plugin_data { vault_addr = \"http://127.0.0.1:1\" token_auth { token = \"t\" } } }",
            "one of 'key_identifier_file' or 'key_identifier_value' must be provided",
        ),
        (
            "\"hashicorp_vault\" { plugin_data { key_identifier_value = \"a/b\" token_auth { token = \"t\" } } }",
            "key_identifier_value \"a/b\" cannot be part of a key's name",
        ),
        (
            "\"hashicorp_vault\" { plugin_data { key_identifier_value = \"a\" pki_mount_point = \"pki\" token_auth { token = \"t\" } } }",
            "unknown keys: pki_mount_point",
        ),
        (
            "\"pkcs11\" { plugin_data { module_path = \"/no/module.so\" token_label = \"a\" pin_env = \"P\" key_identifier_value = \"a\" } }",
            "KeyManager \"pkcs11\": cannot load PKCS #11 module /no/module.so: ",
        ),
        (
            "\"pkcs11\" { plugin_data { module_path = \"/no/module.so\" token_label = \"a\" pin = \"1\" key_identifier_value = \"a\" } }",
            "unknown keys: pin",
        ),
        (
            "\"pkcs11\" { plugin_data { module_path = \"/no/module.so\" token_label = \"a\" slot = 1 pin_env = \"P\" key_identifier_value = \"a\" } }",
            "set one of token_label and slot",
        ),
        (
            "\"pkcs11\" { plugin_data { module_path = \"/no/module.so\" slot = 1 key_identifier_value = \"a\" } }",
            "set one of pin_file",
        ),
        (
            "\"gcp_kms\" { plugin_data { key_ring = \"projects/p/locations/l/keyRings/r\" key_identifier_value = \"a\" service_account_file = \"/no/account.json\" } }",
            "KeyManager \"gcp_kms\": failed to list keys in Cloud KMS: no access token: /no/account.json: No such file",
        ),
        (
            "\"gcp_kms\" { plugin_data { key_ring = \"p/l/r\" key_identifier_value = \"a\" } }",
            "key_ring \"p/l/r\" is none; write projects/PROJECT/locations/LOCATION/keyRings/RING",
        ),
        (
            "\"gcp_kms\" { plugin_data { key_ring = \"projects/p/locations/l/keyRings/r\" key_identifier_value = \"A\" } }",
            "cannot be part of a key's name; use at most 40 small letters",
        ),
        (
            "\"gcp_kms\" { plugin_data { key_ring = \"projects/p/locations/l/keyRings/r\" key_identifier_value = \"a\" key_policy_file = \"/no/policy.json\" } }",
            "KeyManager \"gcp_kms\": key_policy_file /no/policy.json: No such file",
        ),
        (
            "\"azure_key_vault\" { plugin_data { key_vault_uri = \"my-vault\" key_identifier_value = \"a\" } }",
            "key_vault_uri \"my-vault\" is none; write https://NAME.vault.azure.net",
        ),
        (
            "\"azure_key_vault\" { plugin_data { key_vault_uri = \"https://v.vault.azure.net/\" key_identifier_value = \"a\" tenant_id = \"t\" app_id = \"a\" subscription_id = \"s\" } }",
            "KeyManager \"azure_key_vault\": app_secret is required",
        ),
    ] {
        let told = refused(&conf(keys));
        assert!(told.contains(text), "{keys}: {told}");
    }
}
