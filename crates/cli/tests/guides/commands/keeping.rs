//! What an access point keeps, and the doors by which it is asked (AP-11 to AP-14).

use ah_testkit::need;
use ah_testkit::postgres::Postgres;
use ah_testkit::process::{AccessPoint, access_point_args};
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
}
