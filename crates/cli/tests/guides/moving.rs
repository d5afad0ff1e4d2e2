//! Moving a running fleet from one provider to another, as the vault guide's migration parts say: the executor
//! is restarted with another provider and stays who it is, and both roots are trusted meanwhile (AP-3).

use std::fs;
use std::net::SocketAddr;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{Host, Process};
use nix::sys::signal::Signal;

use crate::kit::{
    EXECUTOR_ID, Files, UNKNOWN_AUTHORITY, executor_leaf, failed, history, host, json, server_leaf,
    sh, shown,
};

/// A fleet in the middle of a move: the access point has a certificate of the old authority and trusts the new one
/// besides.
struct Fleet {
    host: Host,
    old: TestCa,
    new: TestCa,
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self {
            host: host(),
            old: TestCa::new("example.org"),
            new: TestCa::new("example.org"),
        };
        fleet.old.write(&fleet.host.path(""), "old-root");
        fleet.new.write(&fleet.host.path(""), "new-root");
        fleet
    }

    fn path(&self, name: &str) -> String {
        self.host.path(name).display().to_string()
    }

    /// A command that prints what these files hold.
    fn command(&self, name: &str, files: &[&str]) -> String {
        let files: Vec<_> = files.iter().map(|file| self.path(file)).collect();
        fs::write(self.host.path(name), format!("cat {}\n", files.join(" "))).unwrap();
        format!("sh {}", self.path(name))
    }

    fn executor(&self, address: SocketAddr, flags: &[&str]) -> Process {
        let mut args = vec!["--name", "executor-1"];
        args.extend(flags);
        let executor = self.host.executor(address, &args);
        let enrolled = executor.wait_for(" enrolled executor.id=");
        assert!(enrolled.contains(EXECUTOR_ID), "{enrolled}");
        executor
    }
}

// AP-3, EN-3, RG-1: files to exec, the roots of both trusted by both sides, and back again.
#[test]
fn ap_3_an_executor_that_changes_its_provider_stays_who_it_is() {
    let fleet = Fleet::new();
    let Fleet { host, old, new } = &fleet;
    // Before the move the access point trusts the old root alone.
    let server = Files::write(host, "server", &server_leaf(old), old);
    let before = Files::write(host, "executor", &executor_leaf(old), old);
    executor_leaf(new).write(&host.path(""), "moved");
    let command = fleet.command(
        "identity.sh",
        &["moved.pem", "moved-key.pem", "new-root.pem"],
    );
    let rules = [
        "--executor-san-uri-prefix",
        "spiffe://example.org/ah/agent/",
    ];
    let flags = before.flags();
    let by_files: Vec<_> = ["--identity", "files"]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    // The executor's new bundle lacks the old root, by which the access point is still known: EN-3.
    let old_root = fleet.path("old-root.pem");
    let by_command = [
        "--identity",
        "exec",
        "--exec-command",
        &command,
        "--ca",
        &old_root,
    ];

    let access_point = server.access_point(host, &rules);
    let executor = fleet.executor(access_point.address, &by_files);
    let first = shown(host, "executor-1");
    assert_eq!(history(&first), ["files"]);
    let too_early = [&by_command[..], &["--name", "executor-1", "--once"]].concat();
    drop(executor);
    let mut refused = host.executor(access_point.address, &too_early);
    assert_eq!(refused.wait().code(), Some(1));
    refused.wait_for(UNKNOWN_AUTHORITY);

    // Both roots in one file: the running access point takes them up without a restart.
    let executor = fleet.executor(access_point.address, &by_files);
    sh(
        host,
        "cat old-root.pem new-root.pem > both.pem && mv both.pem server-ca.pem",
    );
    access_point.process.wait_for("certificate rotated");
    executor.signal(Signal::SIGTERM);
    let mut executor = executor;
    assert_eq!(executor.wait().code(), Some(0));
    let executor = fleet.executor(access_point.address, &by_command);
    let moved = shown(host, "executor-1");
    assert_eq!(moved["id"], EXECUTOR_ID);
    assert_eq!(moved["provider"], "exec");
    assert_eq!(history(&moved), ["files", "exec"], "{moved}");
    assert_eq!(moved["first_enrolled"], first["first_enrolled"]);
    let table = sh(host, "ah agent fleet show executor-1");
    let lines: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("history"))
        .collect();
    assert!(lines.len() == 2, "{table}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains(" files certificate ")),
        "{table}"
    );
    assert!(
        lines.iter().any(|line| line.contains(" exec certificate ")),
        "{table}"
    );
    let all = json(host, &["agent", "fleet", "list", "--json"]);
    assert_eq!(all["executors"].as_array().unwrap().len(), 1, "{all}");

    // A way back is a move like any other.
    drop(executor);
    let executor = fleet.executor(access_point.address, &by_files);
    assert_eq!(
        history(&shown(host, "executor-1")),
        ["files", "exec", "files"]
    );

    // The move is over: without the old root, whoever has not moved is out.
    sh(
        host,
        "cp new-root.pem next.pem && mv next.pem server-ca.pem",
    );
    access_point.process.wait_for_nth("certificate rotated", 2);
    executor.wait_for(UNKNOWN_AUTHORITY);
    drop(executor);
    let late = before.once(host, access_point.address, &["--name", "executor-1"]);
    assert_eq!(failed(&late, 1).text, UNKNOWN_AUTHORITY);
}

// AP-3: an access point whose provider brings its own roots trusts those of the fleet besides, by --ca.
#[test]
fn ap_3_the_access_point_moves_first_and_trusts_the_old_root_besides() {
    let fleet = Fleet::new();
    let Fleet { host, old, new } = &fleet;
    server_leaf(new).write(&host.path(""), "server");
    let command = fleet.command(
        "server.sh",
        &["server.pem", "server-key.pem", "new-root.pem"],
    );
    let executor = Files::write(host, "executor", &executor_leaf(old), new);
    let old_root = fleet.path("old-root.pem");
    let exec = ["--server-identity", "exec", "--exec-command", &command];
    let alone = host.access_point(&exec);
    let refused = failed(&executor.once(host, alone.address, &[]), 1);
    assert_eq!(refused.text, UNKNOWN_AUTHORITY);
    drop(alone);
    let both = host.access_point(&[&exec[..], &["--ca", &old_root]].concat());
    executor.enrolls_as(host, both.address, EXECUTOR_ID, &[]);
}
