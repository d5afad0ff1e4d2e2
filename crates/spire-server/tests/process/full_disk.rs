//! A disk that has no room any more.

use ah_testkit::disk::{SmallDisk, fill};
use ah_testkit::process::eventually;

use crate::server::{PROGRAM, Server, attest, place, token};

/// Keys and datastore are on the disk that fills; the socket is not.
const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "join_token" { plugin_data {} } KeyManager "disk" { plugin_data { keys_path = "/var/lib/spire/server/keys.json" } } }"#;

fn create(path: &str) -> String {
    format!(
        "spire-server entry create -socketPath /run/spire/server.sock -parentID spiffe://example.org/node -spiffeID spiffe://example.org/{path} -selector unix:uid:1"
    )
}

/// What is served without writing anything.
fn serves(server: &Server, entries: usize) {
    for (line, wanted) in [
        ("healthcheck", "Server is healthy.".to_owned()),
        ("entry count", format!("{entries} registration")),
        ("agent list", "Found 1 attested agent".to_owned()),
        ("bundle show", "BEGIN CERTIFICATE".to_owned()),
        (
            "x509 mint -spiffeID spiffe://example.org/w",
            "BEGIN PRIVATE KEY".to_owned(),
        ),
        (
            "jwt mint -spiffeID spiffe://example.org/w -audience a",
            "ey".to_owned(),
        ),
    ] {
        let told = server.ok(&format!(
            "spire-server {line} -socketPath /run/spire/server.sock"
        ));
        assert!(told.contains(&wanted), "{line}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_nothing_is_lost_and_what_is_known_is_served() {
    if !nix::unistd::geteuid().is_root() || !ah_testkit::need("nsenter") {
        return;
    }
    let folder = place(CONF);
    let disk = SmallDisk::new(&folder.path().join("var"), "4m");
    let mut server = Server::start_in(folder, disk.command(PROGRAM));
    let socket = server.folder.path().join("run/server.sock");
    let generate = "spire-server token generate -socketPath /run/spire/server.sock";
    attest(&socket, token(&server.ok(generate))).await;
    server.ok(&create("before"));

    let filler = fill(&disk.path());
    // The pages that the disk has for the datastore already may take some more.
    let mut known = 1;
    let refused = eventually("a write is refused", || {
        let output = server.sh(&create(&format!("w{known}")));
        if output.status.success() {
            known += 1;
            return None;
        }
        Some([output.stdout, output.stderr].concat())
    });
    let refused = String::from_utf8(refused).unwrap();
    assert!(refused.contains("disk is full"), "{refused}");
    assert!(server.log().contains("disk is full"), "{}", server.log());
    assert!(!server.sh(generate).status.success());
    serves(&server, known);

    std::fs::remove_file(filler).unwrap();
    server.ok(&create("after"));
    attest(&socket, token(&server.ok(generate))).await;
    // What was acknowledged is on the disk, whatever becomes of the server.
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    server.restart(disk.command(PROGRAM));
    let told = server.ok("spire-server entry show -socketPath /run/spire/server.sock");
    assert!(
        told.starts_with(&format!("Found {} entries", known + 1)),
        "{told}"
    );
    for path in ["before", "after"] {
        assert!(
            told.contains(&format!("spiffe://example.org/{path}\n")),
            "{told}"
        );
    }
}
