//! A policy in Rego, as a server reads it (inventory section 5, `auth_opa_policy_engine`).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::server::{PROGRAM, Server, place};

const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" experimental { auth_opa_policy_engine { local { rego_path = "/etc/spire/policy.rego" policy_data_path = "/etc/spire/policy_data.json" } } } } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "join_token" { plugin_data {} } KeyManager "memory" { plugin_data {} } }"#;

#[test]
fn a_server_lets_in_whom_the_operators_policy_lets_in() {
    let folder = place(CONF);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/spire-policy");
    let here = |name: &str| folder.path().join("etc").join(name);
    for name in ["policy.rego", "policy_data.json"] {
        fs::copy(example.join(name), here(name)).unwrap();
    }
    let told = |verb| {
        let mut command = Command::new(PROGRAM);
        let conf = here("server.conf");
        command.args([verb, "-config"]).arg(conf).output().unwrap()
    };
    assert!(told("validate").status.success());

    // No administrator may be made, and nothing is deleted.
    let rego = fs::read_to_string(here("policy.rego")).unwrap();
    let stricter = rego.replace(
        "allow_if_local if input.full_method in data.operators\n",
        "allow_if_local if {\n\tinput.full_method in data.operators\n\tnot is_refused\n}\n\n\
         is_refused if {\n\tsome entry in input.req.entries\n\tentry.admin\n}\n\n\
         is_refused if endswith(input.full_method, \"/BatchDeleteEntry\")\n",
    );
    assert_ne!(rego, stricter);
    // What upstream refuses, too: told with its place, by `validate` and by `run`.
    fs::write(
        here("policy.rego"),
        rego.replace(
            "allow if input.full_method in data.anybody",
            "allow { input.full_method in data.anybody }",
        ),
    )
    .unwrap();
    let line = rego
        .lines()
        .position(|line| line == "allow if input.full_method in data.anybody");
    let place = format!("{}:{}:", here("policy.rego").display(), line.unwrap() + 1);
    for verb in ["validate", "run"] {
        let told = told(verb);
        assert!(!told.status.success());
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.contains(&place) && told.contains("`if`"), "{told}");
    }
    assert!(!folder.path().join("var/server").exists());

    fs::write(here("policy.rego"), stricter).unwrap();
    let server = Server::start_in(folder, Command::new(PROGRAM));
    let create = "entry create -parentID spiffe://example.org/node -selector unix:uid:1 -spiffeID spiffe://example.org";
    server.command(&format!("{create}/a"));
    let refused = |command: &str| {
        let output = server.sh(&format!(
            "spire-server {command} -socketPath /run/spire/server.sock"
        ));
        assert!(!output.status.success(), "{command}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = refused(&format!("{create}/b -admin"));
    let method =
        "authorization denied for method /spire.api.server.entry.v1.Entry/BatchCreateEntry";
    assert!(told.contains(method), "{told}");
    let shown = server.json("entry show");
    let id = shown["entries"][0]["id"].as_str().unwrap();
    let told = refused(&format!("entry delete -entryID {id}"));
    assert!(told.contains("authorization denied for method"), "{told}");
    assert_eq!(
        server.json("entry show")["entries"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
