//! The fleet protocol as another implementation meets it: Python's gRPC, with code made from `fleet.proto`.

use std::path::Path;
use std::process::Command;

use ah_testkit::process::Process;
use nix::sys::signal::Signal;

use crate::kit::{Files, audit, host, json, pair};

const PROMISES: [&str; 8] = [
    "a newer protocol and unknown fields are tolerated",
    "heartbeats go both ways and are answered",
    "a duplicate is refused with code, cause and hint",
    "a message over 65,536 bytes ends its call only",
    "hello comes first and once",
    "the limits of a hello hold",
    "a call without a hello ends",
    "a drain is told, and a goodbye ends the call in order",
];

#[test]
fn a_client_of_another_language_needs_nothing_but_the_proto_file() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = workspace.join("target/venv/bin/python");
    if !python.is_file() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no target/venv, and CI is set"
        );
        println!("skipped: target/venv is missing (make setup)");
        return;
    }
    let host = host();
    let stubs = host.path("stubs");
    std::fs::create_dir(&stubs).unwrap();
    let made = Command::new(&python)
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(workspace.join("crates/fleet/proto"))
        .arg(format!("--python_out={}", stubs.display()))
        .arg("ah/fleet/v1/fleet.proto")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );

    let pair = pair(&host);
    let leaf = pair
        .ca
        .leaf()
        .spiffe("spiffe://example.org/ah/agent/py")
        .issue();
    let files = Files::write(&host, "py", &leaf, &pair.ca);
    let mut access_point = pair
        .server
        .access_point(&host, &["--heartbeat-interval", "1s"]);
    let mut client = Process::start(
        Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guides/enroll.py"))
            .arg(&stubs)
            .arg(access_point.address.port().to_string())
            .args([&files.ca, &files.cert, &files.key])
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    client.wait_for("waiting for the drain");
    let fleet = json(
        &host,
        &[
            "agent",
            "fleet",
            "list",
            "--json",
            "--label",
            "language=python",
        ],
    );
    let executor = &fleet["executors"][0];
    assert_eq!(executor["name"], "py");
    assert_eq!(executor["host"]["hostname"], "snake");
    assert_eq!(executor["version"], "0.9");
    assert!(executor["live"].is_object(), "{executor}");

    access_point.process.signal(Signal::SIGTERM);
    let ended = client.wait();
    assert!(ended.success(), "{}", client.lines().join("\n"));
    for promise in PROMISES {
        assert_eq!(client.count(&format!("kept: {promise}")), 1, "{promise}");
    }
    assert_eq!(access_point.process.wait().code(), Some(0), "AP-19");
    let stolen = audit(&host).into_iter().any(|line| {
        line["event"] == "rejected"
            && line["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with("possible stolen identity"))
    });
    assert!(stolen, "RG-2: the duplicate is audited");
}
