//! UpstreamAuthority `vault` against OpenBao (inventory section 7).

use std::process::Command;

use ah_testkit::openbao::{OpenBao, Realm};
use serde_json::json;

use crate::server::{Server, here};

fn conf(bao: &OpenBao, realm: &Realm, login: &str) -> String {
    let (address, pki) = (bao.url(), &realm.pki);
    format!(
        r#"server {{ bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" }}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  UpstreamAuthority "vault" {{ plugin_data {{ vault_addr = "{address}" pki_mount_point = "{pki}" {login} }} }}
}}"#
    )
}

/// The mount's own authority and what signs here hold together.
fn signs_below(server: &Server, bao: &OpenBao, realm: &Realm) {
    let folder = server.folder.path().join("out");
    std::fs::create_dir(&folder).unwrap();
    let out = folder.display();
    let told = server.ok(&format!(
        "mkdir {out}/svid
         spire-server bundle show -socketPath /run/spire/server.sock > {out}/bundle.pem
         spire-server x509 mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -write {out}/svid
         openssl verify -CAfile {out}/bundle.pem -untrusted {out}/svid/svid.pem {out}/svid/svid.pem",
    ));
    assert!(told.contains("svid.pem: OK"), "{told}");
    let root = bao.read(&format!("{}/cert/ca", realm.pki))["data"]["certificate"].clone();
    let bundle = std::fs::read_to_string(folder.join("bundle.pem")).unwrap();
    assert_eq!(bundle.trim(), root.as_str().unwrap().trim());
    let shown = server.json("localauthority x509 show");
    let above = &shown["active"]["upstream_authority_subject_key_id"];
    assert_eq!(above.as_str().unwrap().len(), 40, "{shown}");
}

fn policy(bao: &OpenBao, realm: &Realm) -> String {
    let name = format!("spire{}", realm.suffix);
    let path = format!("{}/root/sign-intermediate", realm.pki);
    let policy = format!("path \"{path}\" {{ capabilities = [\"update\"] }}");
    bao.write(
        &format!("sys/policies/acl/{name}"),
        json!({"policy": policy}),
    );
    name
}

#[test]
fn a_ca_of_openbao_signs_by_token_and_by_approle() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let realm = Realm::new(&bao);
    let policy = policy(&bao, &realm);
    let made = bao.write("auth/token/create", json!({"policies": [policy]}));
    let token = made["auth"]["client_token"].as_str().unwrap();
    let login = format!("token_auth {{ token = \"{token}\" }}");
    let server = Server::start(&conf(&bao, &realm, &login), &[]);
    signs_below(&server, &bao, &realm);
    assert!(!server.log().contains(token));

    let role = json!({"token_policies": policy});
    realm.app_role(&bao, "executor", role);
    let role = realm.credentials(&bao, "executor");
    let mount = &realm.approle;
    let login = format!(
        "approle_auth {{ approle_auth_mount_point = \"{mount}\" approle_id = \"{}\" approle_secret_id = \"{}\" }}",
        role.role_id, role.secret_id
    );
    let server = Server::start(&conf(&bao, &realm, &login), &[]);
    signs_below(&server, &bao, &realm);
    assert!(!server.log().contains(&role.secret_id));
}

/// Ends by itself.
fn refused(conf: &str) -> String {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("etc")).unwrap();
    let path = folder.path().join("etc/server.conf");
    let conf = here(conf, folder.path()).replace("8081", "0");
    std::fs::write(&path, conf).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_spire-server"))
        .args(["run", "-config"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!run.status.success());
    String::from_utf8([run.stdout, run.stderr].concat()).unwrap()
}

#[test]
fn a_token_that_may_not_sign_and_a_wrong_configuration_are_told() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let realm = Realm::new(&bao);
    let made = bao.write("auth/token/create", json!({"policies": ["default"]}));
    let token = made["auth"]["client_token"].as_str().unwrap();
    let login = format!("token_auth {{ token = \"{token}\" }}");
    let told = refused(&conf(&bao, &realm, &login));
    let path = format!("{}/root/sign-intermediate", realm.pki);
    assert!(
        told.contains(&format!(
            "failed to sign intermediate: permission denied for path {path}"
        )),
        "{told}"
    );
    for (login, text) in [
        (
            "",
            "configure one of token_auth, cert_auth, approle_auth and k8s_auth",
        ),
        (
            "token_auth { token = \"t\" } cert_auth { }",
            "set client_cert_path, or VAULT_CLIENT_CERT",
        ),
        ("token_auth { } ", "set token, or VAULT_TOKEN"),
        (
            "token_auth { token = \"t\" } insecure_skip_verify = true",
            "insecure_skip_verify is not supported",
        ),
        ("token_auth { tokn = \"t\" }", "tokn"),
    ] {
        let told = refused(&conf(&bao, &realm, login));
        assert!(told.contains("UpstreamAuthority \"vault\": "), "{told}");
        assert!(told.contains(text), "{login}: {told}");
    }
}
