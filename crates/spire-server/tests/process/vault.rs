//! UpstreamAuthority `vault` against OpenBao (inventory section 7).

use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::openbao::{Listen, OpenBao, Realm, token_review};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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

// `cert_auth`: the client certificate of the connection logs in, by the role that is named and by any.
#[test]
fn a_ca_of_openbao_signs_by_client_certificate() {
    let folder = tempfile::TempDir::new().unwrap();
    let ca = TestCa::new("example.org");
    let leaf = ca.leaf().dns("localhost").ip("127.0.0.1").issue();
    let files = leaf.write(folder.path(), "vault");
    let root = ca.write(folder.path(), "vault-ca");
    let Some(mut bao) = OpenBao::raft(&Listen {
        tls: Some([files.cert, files.key, root.clone()]),
        ..Listen::default()
    }) else {
        return;
    };
    bao.initialise();
    bao.unseal();
    let realm = Realm::new(&bao);
    let policy = policy(&bao, &realm);
    let clients = TestCa::new("example.org");
    let named = |name: &str| {
        let leaf = clients.leaf().dns("spire.example.com").subject(name);
        let files = leaf.issue().write(folder.path(), name);
        let (cert, key) = (files.cert.display(), files.key.display());
        format!("client_cert_path = \"{cert}\" client_key_path = \"{key}\"")
    };
    bao.write("sys/auth/tls", json!({"type": "cert"}));
    let role = json!({
        "certificate": clients.pem(),
        "allowed_common_names": "spire",
        "token_policies": policy,
    });
    bao.write("auth/tls/certs/server", role);
    let trust = format!("ca_cert_path = \"{}\"", root.display());
    let login = |who: &str, role: &str| {
        let files = named(who);
        format!("{trust} cert_auth {{ cert_auth_mount_point = \"tls\" {role} {files} }}")
    };
    for role in ["", "cert_auth_role_name = \"server\""] {
        let server = Server::start(&conf(&bao, &realm, &login("spire", role)), &[]);
        signs_below(&server, &bao, &realm);
    }
    assert_eq!(bao.requests("auth/tls/login").len(), 2);
    // Another name, another role, and an authority that Vault's certificate is not of.
    let told = refused(&conf(&bao, &realm, &login("other", "")));
    assert!(told.contains("vault authentication failed"), "{told}");
    let role = "cert_auth_role_name = \"nobody\"";
    let told = refused(&conf(&bao, &realm, &login("spire", role)));
    assert!(told.contains("vault authentication failed"), "{told}");
    let files = named("spire");
    let told = refused(&conf(&bao, &realm, &format!("cert_auth {{ {files} }}")));
    assert!(told.contains("failed to connect to vault"), "{told}");
}

// `k8s_auth`: the token of a service account logs in, read anew each time.
#[test]
fn a_ca_of_openbao_signs_by_the_token_of_a_service_account() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    let realm = Realm::new(&bao);
    let policy = policy(&bao, &realm);
    let folder = tempfile::TempDir::new().unwrap();
    let account = |name: &str| {
        let claims = json!({
            "iss": "https://kubernetes.default.svc",
            "sub": format!("system:serviceaccount:spire:{name}"),
            "aud": ["https://kubernetes.default.svc"],
            "iat": 1,
            "nbf": 1,
            "exp": 4_000_000_000_u64,
            "kubernetes.io": {"namespace": "spire", "serviceaccount": {"name": name, "uid": "1"}},
        });
        // The cluster judges it, and not by a signature.
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let header = part(r#"{"alg":"RS256","typ":"JWT"}"#);
        format!(
            "{header}.{}.{}",
            part(&claims.to_string()),
            part("signature")
        )
    };
    let (right, other) = (account("spire-server"), account("somebody"));
    let accounts = folder.path().join("accounts");
    let known = format!("{right} spire spire-server\n{other} spire somebody\n");
    std::fs::write(&accounts, known).unwrap();
    let (_cluster, port) = token_review(&accounts, &[], 0, None);
    let mount = format!("k8s{}", realm.suffix);
    bao.write(&format!("sys/auth/{mount}"), json!({"type": "kubernetes"}));
    let host = format!("http://127.0.0.1:{port}");
    let config = json!({"kubernetes_host": host, "token_reviewer_jwt": right, "disable_local_ca_jwt": true, "kubernetes_ca_cert": TestCa::new("example.org").pem()});
    bao.write(&format!("auth/{mount}/config"), config);
    let role = json!({
        "bound_service_account_names": "spire-server",
        "bound_service_account_namespaces": "spire",
        "policies": policy,
        "ttl": "1h",
    });
    bao.write(&format!("auth/{mount}/role/server"), role);
    let token = folder.path().join("token");
    let path = token.display();
    let login = format!(
        "k8s_auth {{ k8s_auth_mount_point = \"{mount}\" k8s_auth_role_name = \"server\" token_path = \"{path}\" }}"
    );
    let conf = conf(&bao, &realm, &login);
    std::fs::write(&token, &other).unwrap();
    let told = refused(&conf);
    assert!(told.contains("vault authentication failed"), "{told}");
    std::fs::write(&token, &right).unwrap();
    let server = Server::start(&conf, &[]);
    signs_below(&server, &bao, &realm);
    assert!(!server.log().contains(&right));
    std::fs::remove_file(&token).unwrap();
    let told = refused(&conf);
    assert!(told.contains(&path.to_string()), "{told}");
}

/// Ends by itself.
pub(crate) fn refused(conf: &str) -> String {
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
