//! The real program on a disk that has no room any more.

use std::process::Command;
use std::time::Duration;

use ah_spire_wire::types;
use ah_testkit::process::{Process, eventually};

use crate::fake::{Ca, Fake};
use crate::program::{Conf, command};
use crate::rig::Node;

/// Lets `process` write no file any more, or all again.
fn limit(process: &Process, bytes: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &process.pid().to_string()])
        .arg(format!("--fsize={bytes}:unlimited"))
        .status()
        .unwrap();
    assert!(status.success());
}

/// The agent, which is told of a write that fails and not ended by it, as with a full disk.
fn start(node: &Node, fake: &Fake) -> Process {
    start_with("unlimited", &command(node, fake, "run"))
}

fn start_with(bytes: &str, run: &Command) -> Process {
    let mut shell = Command::new("bash");
    shell.args([
        "-c",
        &format!(r#"trap "" XFSZ; ulimit -S -f {bytes}; exec "$0" "$@""#),
    ]);
    Process::start(shell.arg(run.get_program()).args(run.get_args()))
}

// A new bundle, the SVIDs of workloads and the agent's own, all of them past the end of those that the disk has.
#[tokio::test(flavor = "multi_thread")]
async fn everything_is_renewed_and_kept_when_there_is_room_again() {
    let fake = Fake::start().await;
    fake.state().agent_life = Duration::from_secs(10);
    let node = Node::new(&fake);
    let agent = start(&node, &fake);
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    let on_disk = || {
        ["agent-data.json", "keys.json"].map(|name| std::fs::read(node.data().join(name)).unwrap())
    };
    let before = on_disk();
    limit(&agent, "0");

    let other = Ca::new();
    fake.state().more_authorities.push(types::X509Certificate {
        asn1: other.der.to_vec().into(),
        ..types::X509Certificate::default()
    });
    fake.state().sequence += 1;
    fake.set_entry("a", "/a", |entry| {
        entry.selectors = vec![types::Selector {
            r#type: "unix".into(),
            value: format!("uid:{}", nix::unistd::getuid()),
        }];
    });
    let written = node.directory.path().join("written");
    std::fs::create_dir(&written).unwrap();
    eventually("the new bundle is served", || {
        let fetched = Command::new(env!("CARGO_BIN_EXE_spire-agent"))
            .args(["api", "fetch", "x509", "-socketPath"])
            .arg(node.directory.path().join("public/api.sock"))
            .arg("-write")
            .arg(&written)
            .output()
            .unwrap();
        let bundle = std::fs::read_to_string(written.join("bundle.0.pem")).unwrap_or_default();
        (fetched.status.success() && bundle.matches("BEGIN").count() == 2).then_some(())
    });
    agent.wait_for("the agent's new key cannot be kept");
    // The third is made with the second, after the end of the one on the disk.
    fake.called("RenewAgent", 3).await;
    let synced = fake.calls("SyncAuthorizedEntries");
    fake.called_in_all("SyncAuthorizedEntries", synced + 2)
        .await;
    assert_eq!(fake.calls("AttestAgent"), 1);
    assert_eq!(on_disk(), before);

    fake.state().agent_life = Duration::from_secs(3600);
    limit(&agent, "unlimited");
    eventually("SVID and key are on the disk", || {
        let [data, keys] = on_disk();
        (data != before[0] && keys != before[1]).then_some(())
    });
    fake.called("SyncAuthorizedEntries", 2).await;
    drop(agent);
    let agent = start(&node, &fake);
    fake.called("SyncAuthorizedEntries", 2).await;
    assert_eq!(fake.calls("AttestAgent"), 1);
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_keys_are_in_memory_attests_again_without_room() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.keys = r#""memory" { plugin_data {} }"#.into();
    let run = conf.command(&node, &fake, "run");
    let agent = start_with("unlimited", &run);
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    drop(agent);
    let file = node.data().join("agent-data.json");
    let before = std::fs::read(&file).unwrap();

    let agent = start_with("0", &run);
    agent.wait_for("used although it cannot be written");
    fake.called("SyncAuthorizedEntries", 2).await;
    assert_eq!(fake.calls("AttestAgent"), 2);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    drop(agent);
}
