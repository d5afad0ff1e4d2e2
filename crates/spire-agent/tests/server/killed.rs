//! The real program, ended by force in the middle of things.

use std::process::Command;

use ah_testkit::process::Process;

use crate::fake::Fake;
use crate::rig::Node;

fn start(node: &Node, fake: &Fake) -> Process {
    let directory = node.directory.path().display();
    let config = node.directory.path().join("agent.conf");
    let port = fake.address.port();
    let text = format!(
        r#"agent {{
            data_dir = "{directory}/data" trust_domain = "example.org" socket_path = "{directory}/public/api.sock"
            server_address = "127.0.0.1" server_port = "{port}" trust_bundle_path = "{directory}/bundle.pem"
            join_token = "token"
            experimental {{ sync_interval = "50ms" }}
        }}
        plugins {{
            NodeAttestor "join_token" {{ plugin_data {{}} }}
            KeyManager "disk" {{ plugin_data {{ directory = "{directory}/data" }} }}
            WorkloadAttestor "unix" {{ plugin_data {{}} }}
        }}"#
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spire-agent"));
    command.args(["run", "-config"]).arg(config);
    Process::start(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn during_attestation() {
    let fake = Fake::start().await;
    fake.state().held.insert("AttestAgent");
    let node = Node::new(&fake);
    let mut agent = start(&node, &fake);
    fake.called_in_all("AttestAgent", 1).await;
    agent.kill();
    // The server never said yes: the token is still good.
    fake.release();
    fake.state().tokens.insert("token".into());
    let mut agent = start(&node, &fake);
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    assert!(agent.is_running());
    agent.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn during_renewal() {
    let fake = Fake::start().await;
    fake.state().agent_life = std::time::Duration::from_secs(20);
    let node = Node::new(&fake);
    let mut agent = start(&node, &fake);
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    fake.state().held.insert("RenewAgent");
    fake.called_in_all("RenewAgent", 1).await;
    agent.kill();
    fake.release();
    // The new key is on the disk, its SVID is not: the old pair is whole.
    let synced = fake.calls("SyncAuthorizedEntries");
    let mut agent = start(&node, &fake);
    fake.called_in_all("RenewAgent", 2).await;
    fake.called_in_all("SyncAuthorizedEntries", synced + 3)
        .await;
    assert_eq!(fake.calls("AttestAgent"), 1);
    assert!(agent.is_running());
    agent.kill();
}

// ER-23: what somebody who starts it by hand reads; and an agent that is told to end before it began ends well.
#[tokio::test(flavor = "multi_thread")]
async fn asked_to_end_while_there_is_no_server() {
    let fake = Fake::start().await;
    fake.go_away();
    let node = Node::new(&fake);
    let mut agent = start(&node, &fake);
    agent.wait_for("error: failed to connect to spire server");
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.wait().success());
}
