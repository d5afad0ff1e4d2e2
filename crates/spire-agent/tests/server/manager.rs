//! The agent below a service manager, told by signals, and as a user without rights.

use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::mpsc;

use ah_testkit::process::{DEADLINE, Process, eventually};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::program::{Conf, fetch, serve_us, stderr, stdout};
use crate::rig::Node;

/// The messages that come to a `NOTIFY_SOCKET`.
fn hear(socket: UnixDatagram) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits for a message with `line`, and returns it.
fn heard(messages: &mpsc::Receiver<String>, line: &str) -> String {
    loop {
        let message = messages.recv_timeout(DEADLINE).expect(line);
        if message.lines().any(|found| found.starts_with(line)) {
            return message;
        }
    }
}

// Inventory section 12: SIGUSR1.
#[tokio::test(flavor = "multi_thread")]
async fn the_manager_hears_how_it_is_and_a_plugin_is_told_something_new() {
    let fake = Fake::start().await;
    let exe = std::fs::canonicalize(env!("CARGO_BIN_EXE_spire-agent")).unwrap();
    fake.set_entry("a", "/by-path", |entry| {
        entry.selectors[0].value = format!("path:{}", exe.display());
    });
    let node = Node::new(&fake);
    let file = node.directory.path().join("unix.conf");
    std::fs::write(&file, "discover_workload_path = false").unwrap();
    let mut conf = Conf::new(&node);
    conf.unix = format!("plugin_data_file = {file:?}");
    let socket = node.directory.path().join("notify");
    let messages = hear(UnixDatagram::bind(&socket).unwrap());
    let mut command = conf.command(&node, &fake, "run");
    command
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "200000");
    let mut agent = Process::start(&mut command);
    let ready = heard(&messages, "READY=1");
    assert!(ready.contains("STATUS=serving workloads as"), "{ready}");
    heard(&messages, "WATCHDOG=1");
    assert!(stderr(&fetch(&node, &[])).contains("no identity issued"));

    // What cannot be used is told, and nothing changes.
    std::fs::write(&file, "discover_workload_path = 7 7").unwrap();
    agent.signal(Signal::SIGUSR1);
    heard(&messages, "RELOADING=1");
    let told = heard(&messages, "READY=1");
    assert!(
        told.contains("0 plugins were configured anew, 1 cannot be"),
        "{told}"
    );
    agent.wait_for("it goes on as it was");
    assert!(stderr(&fetch(&node, &[])).contains("no identity issued"));

    std::fs::write(&file, "discover_workload_path = true").unwrap();
    agent.signal(Signal::SIGUSR1);
    heard(&messages, "RELOADING=1");
    heard(&messages, "READY=1");
    assert!(stdout(&fetch(&node, &[])).contains("spiffe://example.org/by-path"));

    agent.signal(Signal::SIGTERM);
    heard(&messages, "STOPPING=1");
    assert!(agent.wait().success());
}

const NOBODY: u32 = 65534;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_serves_and_says_what_it_cannot_see() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let fake = Fake::start().await;
    fake.set_entry("nobody", "/nobody", |entry| {
        entry.selectors[0].value = format!("uid:{NOBODY}");
    });
    serve_us(&fake);
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.unix = "plugin_data { discover_workload_path = true }".into();
    let config = conf.write(&node, &fake);
    for path in [
        node.directory.path(),
        &config,
        &node.directory.path().join("bundle.pem"),
    ] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_spire-agent"))
            .args(arguments);
        command
    };
    let agent = Process::start(&mut as_nobody(&[
        "run",
        "-config",
        config.to_str().unwrap(),
    ]));
    agent.wait_for("the agent may not look at processes of other users");
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    let socket = node.directory.path().join("public/api.sock");
    let own = eventually("it serves its own user", || {
        let socket = socket.to_str().unwrap();
        let told = as_nobody(&["api", "fetch", "-socketPath", socket])
            .output()
            .unwrap();
        told.status.success().then_some(told)
    });
    assert!(stdout(&own).contains("spiffe://example.org/nobody"));
    // It may not look at a process of root's: that is said to the workload, and why to the operator.
    let foreign = stderr(&fetch(&node, &[]));
    assert!(foreign.contains("workload attestation failed"), "{foreign}");
    agent.wait_for("run the agent as root or with CAP_SYS_PTRACE");
}
