//! The admin socket, and the log.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::program::{Conf, fetch, program, serve_us, stderr, stdout};
use crate::rig::Node;

fn ask(node: &Node, arguments: &[&str]) -> Output {
    let socket = node.directory.path().join("private/admin.sock");
    let mut command = program(arguments);
    command.arg("-socketPath").arg(socket).output().unwrap()
}

fn levels(current: &str, launch: &str) -> String {
    format!("Logger Level : {current}\nLaunch Level : {launch}\n\n")
}

// Inventory section 2: logger get, set, reset; section 4: the admin socket.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_changed_while_the_agent_runs() {
    let fake = Fake::start().await;
    serve_us(&fake);
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    let socket = node.directory.path().join("private/admin.sock");
    conf.agent = format!("admin_socket_path = {socket:?}");
    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    agent.wait_for("serving the admin API");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o770);

    assert_eq!(
        stdout(&ask(&node, &["logger", "get"])),
        levels("info", "info")
    );
    let set = ask(&node, &["logger", "set", "-level", "DEBUG"]);
    assert_eq!(stdout(&set), levels("debug", "info"));
    let before = agent.count("level=debug");
    eventually("the log tells more", || {
        fetch(&node, &[]);
        (agent.count("level=debug") > before).then_some(())
    });
    let json = ask(&node, &["logger", "get", "-output", "json"]);
    assert_eq!(
        stdout(&json),
        "{\"current_level\":\"DEBUG\",\"launch_level\":\"INFO\"}\n"
    );
    let reset = ask(&node, &["logger", "reset"]);
    assert_eq!(stdout(&reset), levels("info", "info"));

    let wrong = stderr(&ask(&node, &["logger", "set", "-level", "loud"]));
    assert_eq!(wrong, "Error: the value \"loud\" is not a valid setting\n");
    let none = stderr(&ask(&node, &["logger", "set"]));
    assert_eq!(none, "Error: a value (-level) must be set\n");
}

// Inventory section 2: debug getinfo.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_what_it_holds() {
    let fake = Fake::start().await;
    serve_us(&fake);
    let node = Node::new(&fake);
    let nobody = stderr(&ask(&node, &["debug", "getinfo"]));
    assert!(nobody.contains("No such file or directory"), "{nobody}");
    assert!(nobody.contains("`admin_socket_path`"), "{nobody}");

    let mut conf = Conf::new(&node);
    let socket = node.directory.path().join("private/admin.sock");
    conf.agent = format!("admin_socket_path = {socket:?}");
    let _agent = Process::start(&mut conf.command(&node, &fake, "run"));
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    stdout(&fetch(&node, &["jwt", "-audience", "a"]));
    let told = eventually("the SVID is made", || {
        let told = stdout(&ask(&node, &["debug", "getinfo"]));
        told.contains("Cached X.509 SVIDs:              1")
            .then_some(told)
    });
    assert!(told.starts_with("Agent Debug Info:\n  Uptime:"), "{told}");
    assert!(
        told.contains("Cached JWT SVIDs:                1\n"),
        "{told}"
    );
    assert!(!told.contains("(never)"), "{told}");
    // The agent's certificate and its root.
    let id = "    [0] SPIFFE ID:  spiffe://example.org/spire/agent/join_token/token\n";
    assert!(told.contains(id), "{told}");
    assert!(
        told.contains("    [1] SPIFFE ID:  spiffe://example.org\n"),
        "{told}"
    );
    let json = stdout(&ask(&node, &["debug", "getinfo", "-output", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["cached_x509_svids_count"], 1);
    assert_eq!(json["svid_chain"][0]["id"]["trust_domain"], "example.org");
}

// Inventory section 12: SIGUSR2; 1.1: log_file, log_format, log_source_location.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_that_was_moved_away_is_opened_again() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let log = node.directory.path().join("agent.log");
    let moved = node.directory.path().join("agent.log.1");
    let mut conf = Conf::new(&node);
    conf.agent = format!("log_file = {log:?} log_format = \"json\" log_source_location = true");
    let mut agent = Process::start(&mut conf.command(&node, &fake, "run"));
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    std::fs::rename(&log, &moved).unwrap();
    agent.signal(Signal::SIGUSR2);
    let line = eventually("the file is there again", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut lines = text.lines();
        let line = lines.find(|line| line.contains("The log file was opened again"))?;
        Some(serde_json::from_str::<serde_json::Value>(line).unwrap())
    });
    assert_eq!(line["level"], "info");
    let place = line["file"].as_str().unwrap();
    assert!(place.contains(".rs:"), "{place}");
    let before = std::fs::read_to_string(&moved).unwrap();
    assert!(before.contains("starting the agent"), "{before}");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("the agent has stopped"), "{text}");
}
