//! What an access point keeps, and the doors by which it is asked (AP-11 to AP-14, AU-1).

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;

use ah_testkit::need;
use ah_testkit::postgres::Postgres;
use ah_testkit::process::{AccessPoint, DEADLINE, access_point_args, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ONCE;
use crate::kit::{failed, host, json, mode, pair, sh};

#[test]
fn ap_11_ap_12_ap_14_what_is_kept_and_where() {
    let host = host();
    let access_point = host.access_point(&[]);
    assert_eq!(
        host.executor(access_point.address, &[ONCE]).wait().code(),
        Some(0)
    );
    for file in [
        "state/access-point.db",
        "state/audit.jsonl",
        "run/access-point.sock",
    ] {
        assert_eq!(mode(&host.path(file)), 0o600, "{file}");
    }
    drop(access_point);

    let elsewhere = [
        "--db",
        "sqlite:kept/fleet.db",
        "--audit-log",
        "kept/audit.jsonl",
        "--admin-socket",
        "kept/admin.sock",
    ];
    let access_point = host.access_point(&elsewhere);
    for file in ["kept/fleet.db", "kept/audit.jsonl", "kept/admin.sock"] {
        assert_eq!(mode(&host.path(file)), 0o600, "{file}");
    }
    let fleet = json(
        &host,
        &[
            "agent",
            "fleet",
            "list",
            "--json",
            "--admin-socket",
            "kept/admin.sock",
        ],
    );
    assert_eq!(
        fleet["executors"],
        serde_json::json!([]),
        "a registry of its own"
    );
    drop(access_point);

    let access_point = host.access_point(&["--audit-log", "-"]);
    let started = access_point.process.wait_for("\"event\":\"started\"");
    let started: Value = serde_json::from_str(&started).unwrap();
    assert_eq!(started["sequence"], 1);
    // The registry of before is still known, after a kill.
    let fleet = json(&host, &["agent", "fleet", "list", "--json"]);
    assert_eq!(fleet["executors"].as_array().unwrap().len(), 1);
}

#[test]
fn ap_11_postgres_keeps_the_fleet() {
    let Some(postgres) = Postgres::shared("ap_11") else {
        return;
    };
    let host = host();
    let url = postgres.fresh_database();
    for event in ["executor enrolled ", "executor enrolled again "] {
        let mut command = host.command(access_point_args(&[]));
        let access_point = AccessPoint::start(command.env("AH_DB", &url), &[]);
        assert_eq!(
            host.executor(access_point.address, &[ONCE]).wait().code(),
            Some(0)
        );
        access_point.process.wait_for(event);
    }
    assert!(!host.state().join("access-point.db").exists());
    // The password of a store is nobody's business.
    let wrong = "postgres://ah:hunter2@127.0.0.1:1/none";
    let done = host.run(access_point_args(&["--db", wrong]));
    let told = failed(&done, 1);
    assert!(
        !told.hint.is_empty() && !done.stderr.contains("hunter2"),
        "{}",
        done.stderr
    );
}

#[test]
fn ap_13_health_metrics_and_rest() {
    if !need("curl") {
        return;
    }
    let host = host();
    let access_point = host.access_point(&["--http-listen", "127.0.0.1:0"]);
    let get = |url: &str| sh(&host, &format!("curl -sS -w ' %{{http_code}}' {url}"));
    let base = format!("http://{}", access_point.http.unwrap());
    assert_eq!(get(&format!("{base}/healthz")), "ok\n 200");
    let ready = get(&format!("{base}/readyz"));
    assert!(
        ready.starts_with("{\"ready\":true") && ready.ends_with(" 200"),
        "{ready}"
    );
    assert_eq!(
        host.executor(access_point.address, &[ONCE]).wait().code(),
        Some(0)
    );
    let metrics = get(&format!("{base}/metrics"));
    assert!(
        metrics.contains("# EOF") && metrics.contains("# TYPE"),
        "{metrics}"
    );
    assert!(
        get(&format!("{base}/api/v1/executors")).ends_with(" 403"),
        "closed without a token"
    );
    drop(access_point);

    // With a token, and TLS.
    sh(
        &host,
        "umask 077; printf '0123456789abcdef0123456789abcdef\\n' > token",
    );
    let pair = pair(&host);
    let http = [
        "--http-listen",
        "127.0.0.1:0",
        "--http-token-file",
        "token",
        "--http-cert",
        "server.pem",
        "--http-key",
        "server-key.pem",
    ];
    let access_point = pair.server.access_point(&host, &http);
    let base = format!(
        "--cacert server-ca.pem https://{}",
        access_point.http.unwrap()
    );
    let list = format!("{base}/api/v1/executors");
    assert!(get(&list).ends_with(" 401"));
    assert!(get(&format!("-H 'Authorization: Bearer wrong' {list}")).ends_with(" 401"));
    let authorized = "-H \"Authorization: Bearer $(cat token)\"";
    let answer = get(&format!("{authorized} {list}"));
    let listing = answer.strip_suffix(" 200").unwrap();
    let listing: Value = serde_json::from_str(listing).unwrap();
    assert_eq!(listing["executors"][0]["provider"], "dev");
    let revoke = format!("{authorized} -X POST {base}/api/v1/executors/nobody/revoke");
    assert!(get(&revoke).ends_with(" 404"));
    assert!(get(&format!("{base}/openapi.json")).contains("\"/api/v1/executors\""));
    assert_eq!(get(&format!("{base}/healthz")), "ok\n 200");

    // AP-19: another token takes the place of the first at a HUP; one that cannot be used takes nobody's.
    sh(&host, "cp token first; tr 0-9 g-p < first > token");
    access_point.process.signal(Signal::SIGHUP);
    eventually("the new token is taken", || {
        get(&format!("{authorized} {list}"))
            .ends_with(" 200")
            .then_some(())
    });
    let first = "-H \"Authorization: Bearer $(cat first)\"";
    assert!(get(&format!("{first} {list}")).ends_with(" 401"));
    sh(&host, "cp token second; echo short > token");
    access_point.process.signal(Signal::SIGHUP);
    let refused = "reload: the HTTP token cannot be used; what was in use stays";
    access_point.process.wait_for(refused);
    let second = "-H \"Authorization: Bearer $(cat second)\"";
    assert!(get(&format!("{second} {list}")).ends_with(" 200"));
}

#[test]
fn au_1_the_journal_gets_each_line_with_its_fields() {
    // In a mount namespace of its own the access point finds our socket for the journal's.
    if !need("unshare") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let host = host();
    let folder = host.path("journal");
    std::fs::create_dir(&folder).unwrap();
    let journal = UnixDatagram::bind(folder.join("socket")).unwrap();
    journal.set_read_timeout(Some(DEADLINE)).unwrap();
    let mount = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
         mount --bind {} /run/systemd/journal && exec \"$@\"",
        folder.display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let args = ["--audit-log", "journald"];
    let mut command = host.command_under(&wrapper, access_point_args(&args));
    let access_point = AccessPoint::start(&mut command, &args);
    let mut executor = host.executor(access_point.address, &[ONCE, "--name", "worker-1"]);
    assert!(executor.wait().success(), "{:?}", executor.lines());

    let mut lines = String::new();
    let enrolled = loop {
        let fields = entry(&journal);
        let message = fields["MESSAGE"].as_str();
        let line: Value = serde_json::from_str(message).unwrap();
        assert_eq!(fields["AH_EVENT"], line["event"].as_str().unwrap());
        lines += &format!("{message}\n");
        if line["event"] == "enrolled" {
            break (fields, line);
        }
    };
    let (fields, line) = enrolled;
    assert_eq!(fields["PRIORITY"], "6", "informational");
    assert_eq!(
        fields["AH_EXECUTOR_ID"],
        "spiffe://ah-dev/ah/agent/worker-1"
    );
    assert_eq!(fields["AH_PEER"], line["peer"].as_str().unwrap());
    for (field, part) in [
        ("AH_CERTIFICATE_SERIAL", "serial"),
        ("AH_CERTIFICATE_SHA256", "sha256"),
    ] {
        let told = fields[field].as_str();
        assert_eq!(told, line["certificate"][part].as_str().unwrap());
    }
    // AU-2: what the journal keeps can be verified as a file can.
    std::fs::write(host.path("exported.jsonl"), lines).unwrap();
    let verified = host.run(["agent", "audit", "verify", "exported.jsonl"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
}

/// The fields of the next entry in the journal's protocol: lines, as none of them holds a line end.
fn entry(journal: &UnixDatagram) -> BTreeMap<String, String> {
    let mut buffer = [0; 64 * 1024];
    let length = journal.recv(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap());
    let fields = text.lines().map(|line| {
        let (name, value) = line.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    fields.collect()
}
