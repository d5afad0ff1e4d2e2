//! UpstreamAuthority `spire`: a server below another one (inventory section 7; SVID `NewDownstreamX509CA`, Bundle
//! `PublishJWTAuthority`). The Workload API of the agent between them is the test's.

use std::path::Path;

use ah_identity_provider::pem;
use ah_testkit::process::eventually;
use ah_testkit::workload_api::{Answer, Svid, Svids, WorkloadApi};
use serde_json::Value;

use crate::server::Server;

const ROOT: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" }
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } }
  KeyManager "memory" { plugin_data {} }
}"#;

impl Server {
    fn bundle(&self) -> Value {
        self.json("bundle show")
    }

    fn port(&self) -> String {
        let conf = std::fs::read_to_string(self.folder.path().join("etc/server.conf")).unwrap();
        let (_, rest) = conf.split_once("bind_port = \"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    }

    /// What its agent would serve to the server below.
    fn identity(&self, name: &str) -> Svids {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let id = "spiffe://example.org/nested";
        self.command(&format!(
            "x509 mint -spiffeID {id} -write {}",
            folder.display()
        ));
        let ders = |file: &Path| {
            let found = pem::certificates(&std::fs::read(file).unwrap()).unwrap();
            found.iter().flat_map(|der| der.to_vec()).collect()
        };
        let key = std::fs::read(folder.join("key.pem")).unwrap();
        let key = pem::private_key(&key, None).unwrap();
        Svids {
            svids: vec![Svid {
                spiffe_id: id.into(),
                x509_svid: ders(&folder.join("svid.pem")),
                x509_svid_key: key.der().secret_der().to_vec(),
                bundle: ders(&folder.join("bundle.pem")),
                hint: String::new(),
            }],
            ..Svids::default()
        }
    }
}

fn names(authorities: &Value, field: &str) -> Vec<String> {
    let each = authorities.as_array().unwrap().iter();
    let mut names: Vec<_> = each
        .map(|it| it[field].as_str().unwrap().to_owned())
        .collect();
    names.sort_unstable();
    names
}

fn tainted(bundle: &Value) -> usize {
    let authorities = bundle["x509_authorities"].as_array().unwrap();
    authorities
        .iter()
        .filter(|it| it["tainted"] == true)
        .count()
}

#[test]
fn a_nested_server_is_signed_above_and_follows_the_bundle_above() {
    let root = Server::start(ROOT, &[]);
    root.command("entry create -downstream -spiffeID spiffe://example.org/nested -parentID spiffe://example.org/a -selector unix:uid:0");
    let socket = root.folder.path().join("workload.sock");
    let workload_api = WorkloadApi::unix(&socket, Answer::Set(root.identity("first")));
    let plugin = format!(
        "UpstreamAuthority \"spire\" {{ plugin_data {{ server_address = \"127.0.0.1\" server_port = \"{}\" workload_api_socket = \"{}\" }} }}\n  KeyManager",
        root.port(),
        socket.display()
    );
    let nested = Server::start(&ROOT.replacen("KeyManager", &plugin, 1), &[]);

    // One bundle for both, with the JWT keys of both.
    let above = || root.json("localauthority x509 show");
    let below = || nested.json("localauthority x509 show");
    let first = above()["active"]["authority_id"].clone();
    assert_eq!(
        below()["active"]["upstream_authority_subject_key_id"],
        first
    );
    eventually("both have one bundle", || {
        let (ours, theirs) = (nested.bundle(), root.bundle());
        let same = ours["x509_authorities"] == theirs["x509_authorities"]
            && names(&ours["jwt_authorities"], "key_id")
                == names(&theirs["jwt_authorities"], "key_id");
        same.then_some(())
    });
    let bundle = root.bundle();
    assert_eq!(bundle["x509_authorities"].as_array().unwrap().len(), 1);
    assert_eq!(bundle["jwt_authorities"].as_array().unwrap().len(), 2);
    let folder = root.folder.path().display();
    nested.command(&format!(
        "x509 mint -spiffeID spiffe://example.org/w -write {folder}"
    ));
    let told = nested.ok(&format!(
        "openssl verify -CAfile {folder}/first/bundle.pem -untrusted {folder}/svid.pem {folder}/svid.pem"
    ));
    assert!(told.contains(": OK"), "{told}");

    // Another authority above is known below before anything is of it.
    let prepared = root.json("localauthority x509 prepare");
    let second = prepared["prepared_authority"]["authority_id"].clone();
    eventually("the prepared root is below", || {
        (nested.bundle()["x509_authorities"]
            .as_array()
            .unwrap()
            .len()
            == 2)
            .then_some(())
    });
    let id = |it: &Value| format!("-authorityID {}", it.as_str().unwrap());
    root.command(&format!("localauthority x509 activate {}", id(&second)));
    workload_api.say(Answer::Set(root.identity("second")));

    // A taint above: the server below leaves the authority, and only then marks it.
    root.command(&format!("localauthority x509 taint {}", id(&first)));
    eventually("the taint is below", || {
        (tainted(&nested.bundle()) == 1).then_some(())
    });
    assert_eq!(
        below()["active"]["upstream_authority_subject_key_id"],
        second
    );
    root.command(&format!("localauthority x509 revoke {}", id(&first)));
    eventually("the revoked root is gone below", || {
        let bundle = nested.bundle();
        let left = bundle["x509_authorities"].as_array().unwrap().len();
        (left == 1 && tainted(&bundle) == 0).then_some(())
    });
    assert!(below()["active"]["authority_id"].is_string());
}
