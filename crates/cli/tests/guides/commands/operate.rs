//! `ah agent fleet` and `ah agent audit` (FL-1, AU-1, AU-2).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{Host, Process, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kit::{
    EXECUTOR_ID, Files, Told, audit, audited, executor_leaf, failed, host, json, pair, server_leaf,
    sh, try_sh,
};

/// A server that answers whatever is asked with an error page of its own.
fn stranger(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
        while asked.next().unwrap().unwrap() != "" {}
        let page = "no such page\n";
        let length = page.len();
        write!(
            stream,
            "HTTP/1.1 404 Not Found\r\ncontent-length: {length}\r\n\r\n{page}"
        )
        .unwrap();
    });
}

#[test]
fn fl_1_watch_takes_no_refusal_for_an_event() {
    let host = host();
    let socket = host.path("stranger.sock");
    stranger(&socket);
    let at = socket.display().to_string();
    let done = host.run(["agent", "fleet", "watch", "--admin-socket", &at]);
    assert_eq!(done.stdout, "");
    failed(&done, 1).says(
        "the access point answered 404 Not Found",
        &["no such page"],
        "check that the socket is an access point's",
    );
}

#[test]
fn fl_1_who_is_shown_revoked_reinstated_and_disconnected() {
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let enroll = || {
        let process = Process::start(&mut pair.executor.enroll(
            &host,
            access_point.address,
            &["--name", "worker-1"],
        ));
        process.wait_for(" enrolled executor.id=");
        process
    };
    let watch = Process::start(&mut host.command(["agent", "fleet", "watch"]));
    let watch_json = Process::start(&mut host.command(["agent", "fleet", "watch", "--json"]));
    let mut executor = enroll();
    let table = sh(&host, "ah agent fleet list");
    for part in [
        "NAME",
        "STATE",
        "worker-1",
        EXECUTOR_ID,
        "enrolled",
        "127.0.0.1:",
        "files",
    ] {
        assert!(table.contains(part), "no {part}: {table}");
    }
    let view = json(&host, &["agent", "fleet", "show", "worker-1", "--json"]);
    let certificate = &view["certificate"];
    let (serial, sha256) = (
        certificate["serial"].as_str().unwrap(),
        certificate["sha256"].as_str().unwrap(),
    );
    let colons = |hex: &str| {
        let pairs: Vec<_> = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect();
        pairs.join(":")
    };
    // As people paste it, too: openssl prints upper case and colons.
    let printed = colons(sha256);
    for selector in [EXECUTOR_ID, "worker-1", serial, sha256, &printed] {
        let shown = json(&host, &["agent", "fleet", "show", selector, "--json"]);
        assert_eq!(shown["id"], EXECUTOR_ID, "{selector}");
        assert!(sh(&host, &format!("ah agent fleet show {selector}")).contains(serial));

        let done = sh(
            &host,
            &format!("ah agent fleet revoke {selector} --reason 'lost laptop'"),
        );
        assert!(done.starts_with("revoked "), "{done}");
        assert_eq!(executor.wait().code(), Some(1), "the live session is cut");
        let text = "client certificate rejected: certificate revoked";
        assert_eq!(Told::first(executor.lines()).text, text);
        let barred = pair.executor.once(&host, access_point.address, &[]);
        assert_eq!(failed(&barred, 1).text, text, "{selector}");
        let listed = json(&host, &["agent", "fleet", "list", "--revoked", "--json"]);
        assert_eq!(
            listed["executors"][0]["revocation"]["reason"], "lost laptop",
            "{selector}"
        );

        let done = sh(&host, &format!("ah agent fleet reinstate {selector}"));
        assert!(done.starts_with("reinstated "), "{done}");
        executor = enroll();
    }
    let done = sh(&host, "ah agent fleet disconnect worker-1");
    assert!(done.contains(EXECUTOR_ID), "{done}");
    executor.wait_for_nth(" enrolled executor.id=", 2);
    for event in [
        "enrolled",
        "re-enrolled",
        "revoked",
        "reinstated",
        "disconnected",
    ] {
        watch.wait_for(&format!(" {event} {EXECUTOR_ID}"));
        watch_json.wait_for(&format!("\"event\":\"{event}\""));
    }
    for what in ["show", "revoke", "reinstate", "disconnect"] {
        let told = failed(&try_sh(&host, &format!("ah agent fleet {what} nobody")), 1);
        assert!(
            told.text.contains("nobody") && !told.hint.is_empty(),
            "{what}: {told:?}"
        );
    }

    // A bar on a serial number that no executor has is shown, too, and in the same words lifted.
    sh(
        &host,
        "ah agent fleet revoke 00:c3:5d:11:22:33:44:55 --reason 'key found'",
    );
    let listed = json(&host, &["agent", "fleet", "list", "--revoked", "--json"]);
    assert_eq!(listed["executors"].as_array().unwrap().len(), 0, "{listed}");
    let bar = &listed["bars"][0];
    assert_eq!(
        (&bar["kind"], &bar["value"], &bar["reason"]),
        (
            &"serial".into(),
            &"00c35d1122334455".into(),
            &"key found".into()
        ),
        "{listed}"
    );
    let shown = sh(&host, "ah agent fleet list --revoked");
    let row = shown.lines().last().unwrap();
    assert!(
        row.starts_with("serial") && row.contains("00c35d1122334455") && row.contains("key found"),
        "{shown}"
    );
    let labelled = json(
        &host,
        &[
            "agent",
            "fleet",
            "list",
            "--revoked",
            "--label",
            "a=b",
            "--json",
        ],
    );
    assert_eq!(labelled["bars"], Value::Null, "{labelled}");
    sh(&host, "ah agent fleet reinstate 00c35d1122334455");
    let listed = json(&host, &["agent", "fleet", "list", "--revoked", "--json"]);
    assert_eq!(listed["bars"], Value::Null, "{listed}");

    // A revocation outlives the access point, even when that is killed.
    sh(&host, "ah agent fleet revoke worker-1");
    drop(access_point);
    drop((watch, watch_json));
    failed(&try_sh(&host, "ah agent fleet list"), 1);
    let access_point = pair.server.access_point(&host, &[]);
    let barred = pair.executor.once(&host, access_point.address, &[]);
    assert_eq!(
        failed(&barred, 1).text,
        "client certificate rejected: certificate revoked"
    );
    let view = json(&host, &["agent", "fleet", "show", EXECUTOR_ID, "--json"]);
    assert!(
        view["revocation"]["at"].is_string() && view["live"].is_null(),
        "{view}"
    );
}

#[test]
fn au_1_every_event_is_written_with_what_it_is_about() {
    let host = host();
    let pair = pair(&host);
    let mut access_point = pair.server.access_point(&host, &[]);
    let executor = Process::start(&mut pair.executor.enroll(
        &host,
        access_point.address,
        &["--name", "worker-1"],
    ));
    executor.wait_for(" enrolled executor.id=");
    audited(&host, "enrolled");
    replace(&host, &pair.executor, &executor_leaf(&pair.ca));
    audited(&host, "rotated");
    sh(&host, "ah agent fleet disconnect worker-1");
    audited(&host, "disconnected");
    audited(&host, "re-enrolled");
    sh(&host, "ah agent fleet revoke worker-1 --reason 'a test'");
    audited(&host, "revoked");
    sh(&host, "ah agent fleet reinstate worker-1");
    audited(&host, "reinstated");
    let stranger = TestCa::new("example.org");
    let stranger = Files::write(&host, "stranger", &executor_leaf(&stranger), &pair.ca);
    assert_eq!(stranger.once(&host, access_point.address, &[]).code, 1);
    audited(&host, "rejected");
    replace(&host, &pair.server, &server_leaf(&pair.ca));
    audited(&host, "identity-renewed");
    std::fs::write(
        &pair.server.cert,
        "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    audited(&host, "identity-renewal-failed");
    access_point.process.signal(Signal::SIGTERM);
    assert_eq!(access_point.process.wait().code(), Some(0));
    audited(&host, "stopped");

    for (n, line) in audit(&host).iter().enumerate() {
        assert_eq!(line["sequence"], n + 1);
        let time = line["time"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.len() >= 20, "RFC 3339: {time}");
        assert!(line["outcome"] == "success" || line["outcome"] == "failure");
        assert_eq!(line["previous"].as_str().unwrap().len(), 64);
    }
    let of = |event: &str| audited(&host, event);
    for event in ["enrolled", "re-enrolled", "rotated", "disconnected"] {
        let line = of(event);
        assert_eq!(line["executor_id"], EXECUTOR_ID, "{line:?}");
        assert!(
            line["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
            "{line:?}"
        );
        assert_eq!(line["provider"], "files");
        assert_eq!(line["certificate"]["sha256"].as_str().unwrap().len(), 64);
        assert!(line["certificate"]["serial"].is_string());
    }
    let rejected = of("rejected");
    assert_eq!(rejected["outcome"], "failure");
    assert!(
        rejected["reason"]
            .as_str()
            .unwrap()
            .contains("signed by unknown authority"),
        "{rejected:?}"
    );
    assert!(rejected["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(of("revoked")["reason"], "a test");
    assert_eq!(of("revoked")["executor_id"], EXECUTOR_ID);
    assert_eq!(of("reinstated")["executor_id"], EXECUTOR_ID);
    for event in ["started", "stopped", "identity-renewed"] {
        let line = of(event);
        assert_eq!(
            (&line["outcome"], &line["provider"]),
            (&"success".into(), &"files".into()),
            "{line:?}"
        );
        assert!(line["certificate"]["serial"].is_string(), "{line:?}");
    }
    let failed = of("identity-renewal-failed");
    assert_eq!(failed["outcome"], "failure");
    assert!(
        failed["reason"].as_str().unwrap().contains("server.pem"),
        "{failed:?}"
    );
}

fn replace(host: &Host, files: &Files, leaf: &ah_testkit::ca::TestLeaf) {
    let new = leaf.write(&host.path(""), "next");
    std::fs::rename(new.key, &files.key).unwrap();
    std::fs::rename(new.cert, &files.cert).unwrap();
}

#[test]
fn au_2_the_chain_is_proved_and_a_half_line_repaired() {
    let host = host();
    let access_point = host.access_point(&[]);
    assert_eq!(
        host.executor(access_point.address, &["--once=enrolled"])
            .wait()
            .code(),
        Some(0)
    );
    eventually("the end of the session", || {
        audit(&host)
            .iter()
            .any(|line| line["event"] == "disconnected")
            .then_some(())
    });
    drop(access_point);
    let verified = sh(&host, "ah agent audit verify state/audit.jsonl");
    assert!(verified.contains("unbroken, 3 lines"), "{verified}");

    // One character, one line less, one line twice.
    sh(
        &host,
        "cd state; sed '2s/127.0.0.1/127.0.0.2/' audit.jsonl > ../changed; sed 2d audit.jsonl > ../removed; sed 2p audit.jsonl > ../added",
    );
    for (file, line) in [("changed", "2"), ("removed", "2"), ("added", "3")] {
        let done = host.run(["agent", "audit", "verify", file]);
        let told = failed(&done, 1);
        assert_eq!(
            told.text,
            format!("audit log broken at {file}:{line}"),
            "{told:?}"
        );
        assert!(!told.hint.is_empty());
        assert_eq!(
            host.run(["agent", "audit", "verify", file, "--json"]).code,
            1
        );
    }
    sh(&host, "ah agent audit verify - < state/audit.jsonl");

    // A crash in the middle of a line: told at the next start, kept, and the chain goes on.
    let path = host.state().join("audit.jsonl");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(b"{\"time\":\"2026-").unwrap();
    drop(file);
    let access_point = host.access_point(&[]);
    access_point.process.wait_for("half written");
    let repaired = audited(&host, "repaired");
    assert!(
        repaired["reason"].as_str().unwrap().contains("2026-"),
        "{repaired:?}"
    );
    drop(access_point);
    sh(&host, "ah agent audit verify state/audit.jsonl");
}
