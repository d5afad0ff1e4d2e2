//! The real program, ended by force in the middle of things.

use std::process::Command;

use ah_testkit::process::{Process, eventually, field};

use crate::fake::Fake;
use crate::rig::Node;

fn start(node: &Node, fake: &Fake) -> Process {
    Process::start(&mut command(node, fake, "run"))
}

fn command(node: &Node, fake: &Fake, name: &str) -> Command {
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
        }}
        health_checks {{ listener_enabled = true bind_address = "127.0.0.1" bind_port = "0" }}"#
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spire-agent"));
    command.args([name, "-config"]).arg(config);
    command
}

/// Status and body of `path` at the listener whose address `line` tells.
fn get(line: &str, path: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(field(line, "address=")).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn during_attestation() {
    let fake = Fake::start().await;
    // A token that the call which is cut off cannot spend.
    fake.state().reattestable = true;
    fake.state().held.insert("AttestAgent");
    let node = Node::new(&fake);
    let mut agent = start(&node, &fake);
    fake.called_in_all("AttestAgent", 1).await;
    agent.kill();
    fake.release();
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
    let listener = agent.wait_for("Serving health checks");
    eventually("the failed check is told", || {
        let (status, body) = get(&listener, "/ready");
        assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
        body.contains("failed to connect to spire server")
            .then_some(())
    });
    let (status, body) = get(&listener, "/live");
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "{\"agent\":{}}\n")
    );
    // The server comes: the agent is ready by itself.
    fake.come_back().await;
    eventually("the agent is ready", || {
        (get(&listener, "/ready").0 == "HTTP/1.1 200 OK").then_some(())
    });
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_checked_without_starting_anything() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let checked = command(&node, &fake, "validate").output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(!node.data().exists());
    assert_eq!(fake.calls("GetBundle"), 0);

    let config = node.directory.path().join("agent.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("WorkloadAttestor \"unix\"", "WorkloadAttestor \"slurm\""),
    )
    .unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_spire-agent"))
        .args(["validate", "-config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("WorkloadAttestor \"slurm\""), "{told}");
    assert!(told.contains("built in is: unix"), "{told}");
}
