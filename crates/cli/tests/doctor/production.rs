//! The production checklist: a site that passes it, and the same site with each item broken.

use std::time::{Duration, SystemTime};

use ah_testkit::ca::TestLeaf;
use ah_testkit::process::{Process, eventually};

use crate::site::{EXECUTOR_ID, Report, SERVER_ID, Site, strings};

const HOUR: Duration = Duration::from_secs(3600);

const ADMISSION: [&str; 4] = [
    "--executor-san-uri-prefix",
    "spiffe://example.org/ah/agent",
    "--http-listen",
    "127.0.0.1:0",
];

fn executor_for(site: &Site, life: Duration) -> TestLeaf {
    site.ca.leaf().spiffe(EXECUTOR_ID).valid_for(life).issue()
}

fn server_for(site: &Site, life: Duration) -> TestLeaf {
    let leaf = site.ca.leaf().spiffe(SERVER_ID).ip("127.0.0.1");
    leaf.valid_for(life).issue()
}

/// Short certificates, rules, and an executor that runs.
fn fit(more: &[&str]) -> (Site, Process) {
    let mut site = Site::new();
    let ca = site.ca.clone();
    let (server, executor) = (server_for(&site, 12 * HOUR), executor_for(&site, 12 * HOUR));
    site.server_has(&server, &ca);
    site.executor_has(&executor, &ca);
    site.listen(&[&ADMISSION[..], more].concat());
    site.flags = strings(&["--name", "worker-1"]);
    site.asked = strings(&["--production"]);
    let running = site.enroll(&[]);
    running.wait_for(" enrolled executor.id=");
    (site, running)
}

#[track_caller]
fn verdicts(report: &Report, expected: &[(&str, &str, &str)]) {
    for (name, verdict, words) in expected {
        assert_eq!(report.verdict(name), *verdict, "{name}: {report:#?}");
        let check = report.check(name);
        let told = format!("{} {}", check["evidence"], check["causes"]);
        assert!(told.contains(words), "{name}: no {words:?} in {told}");
        let is_bad = ["warn", "fail"].contains(verdict);
        assert!(!is_bad || check["fix"].is_string(), "{name}: no fix");
    }
}

#[test]
fn a_site_that_is_fit_for_production_passes() {
    let (mut site, executor) = fit(&[]);
    // Before anything was renewed or read that is a matter of time, and of nobody watching.
    let report = site.doctor();
    verdicts(
        &report,
        &[
            ("renewal", "warn", "none seen yet"),
            ("ap-renewal", "warn", "none seen since the start"),
            ("ap-metrics", "fail", "nobody has read /metrics"),
        ],
    );
    let ca = site.ca.clone();
    let (server, newer) = (server_for(&site, 12 * HOUR), executor_for(&site, 12 * HOUR));
    site.server_has(&server, &ca);
    site.executor_has(&newer, &ca);
    executor.wait_for("certificate rotated");
    let http = site.http.unwrap();
    let report = eventually("the access point's new certificate", || {
        std::net::TcpStream::connect(http)
            .map(|mut stream| {
                use std::io::{Read, Write};
                let get = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                stream.write_all(get).unwrap();
                stream.read_to_end(&mut Vec::new()).unwrap();
            })
            .unwrap();
        let report = site.doctor();
        (report.verdict("ap-renewal") == "pass").then_some(report)
    });
    // All of it is on one machine here.
    report.is_well_but(&["reach", "ap-listening"]);
    for name in [
        "issuer",
        "lifetime",
        "trust-domain",
        "server-lifetime",
        "renewal",
        "secrets",
        "key-permissions",
        "ap-issuer",
        "ap-lifetime",
        "ap-san-rules",
        "ap-store",
        "ap-audit-log",
        "ap-metrics",
    ] {
        assert_eq!(report.verdict(name), "pass", "{name}: {report:#?}");
    }
    report.is_told_of_in_the_document();
    // The list is for production alone.
    site.asked.clear();
    let names = format!("{:?}", site.doctor());
    assert!(
        !names.contains("ap-issuer") && !names.contains("\"lifetime\""),
        "{names}"
    );
}

#[test]
fn development_identities_are_not_for_production() {
    let mut site = Site::new();
    let access_point = site.host.access_point(&[]);
    site.dial.push(access_point.address.to_string());
    site.identity = Some(Vec::new());
    site.asked = strings(&["--production", "--name", "worker-1"]);
    let report = site.doctor();
    verdicts(
        &report,
        &[
            ("issuer", "fail", "development CA"),
            ("renewal", "fail", "no executor of this name runs here"),
            ("ap-issuer", "fail", "development CA"),
            ("ap-san-rules", "fail", "no rule"),
            (
                "ap-metrics",
                "fail",
                "nobody has read /metrics since the start",
            ),
        ],
    );
    // On an access point's machine there is no executor to describe.
    let done = site.host.run(["agent", "doctor", "--production"]);
    assert_eq!(done.code, 1, "{done:?}");
    done.prints(&[
        "no executor is set up here",
        "fail  ap-san-rules",
        "begin with `ap-issuer`",
    ]);
    let done = site.host.run(["agent", "doctor"]);
    assert_eq!(done.code, 2, "{done:?}");
}

#[test]
fn each_item_that_is_broken_fails() {
    let (mut site, _executor) = fit(&["--audit-log", "-"]);
    let ca = site.ca.clone();
    let report = site.doctor();
    verdicts(&report, &[("ap-audit-log", "warn", "standard output")]);

    let leaf = executor_for(&site, 90 * 24 * HOUR);
    site.executor_has(&leaf, &ca);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&site.executor.key, open).unwrap();
    let server = server_for(&site, 3 * 24 * HOUR);
    site.server_has(&server, &ca);
    let report = eventually("the access point's new certificate", || {
        let report = site.doctor();
        let of_days = ["ap-lifetime", "server-lifetime"].map(|name| report.verdict(name) == "warn");
        (of_days == [true, true]).then_some(report)
    });
    verdicts(
        &report,
        &[
            ("lifetime", "fail", "certificates of 90d"),
            ("server-lifetime", "warn", "hours would be better than days"),
            ("ap-lifetime", "warn", "certificates of 3d"),
            ("key-permissions", "fail", "executor-key.pem"),
        ],
    );

    let staging = site
        .ca
        .leaf()
        .spiffe("spiffe://staging.example.org/ah/agent/1");
    let staging = staging.valid_for(HOUR).issue();
    site.executor_has(&staging, &ca);
    verdicts(&site.doctor(), &[("trust-domain", "fail", "staging")]);
    let nameless = site
        .ca
        .leaf()
        .dns("worker.example.com")
        .valid_for(HOUR)
        .issue();
    site.executor_has(&nameless, &ca);
    verdicts(&site.doctor(), &[("trust-domain", "skip", "no SPIFFE ID")]);
    let own = site
        .ca
        .leaf()
        .spiffe(EXECUTOR_ID)
        .valid_from(SystemTime::now() - HOUR)
        .issue();
    site.executor_has(&own, &ca);
    site.asked = strings(&["--production", "--admin-socket", "/nonexistent.sock"]);
    verdicts(
        &site.doctor(),
        &[("ap-san-rules", "skip", "no such file: /nonexistent.sock")],
    );
    site.dial.clear();
    let done = site.host.run([
        "agent",
        "doctor",
        "--production",
        "--admin-socket",
        "/nonexistent.sock",
    ]);
    assert_eq!(done.code, 1);
    done.prints(&["fail  ap-running", "no such file: /nonexistent.sock"]);
}

#[test]
fn secrets_lie_where_only_their_owner_reads_them() {
    // VA-2, VA-14
    let mut site = Site::new();
    site.dial.push("127.0.0.1:9".to_owned());
    let file = site.host.path("executor.toml");
    std::fs::write(&file, "vault_role_id = 'r'\nvault_secret_id = 'hunter2'\n").unwrap();
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&file, mode).unwrap();
    };
    let identity = |address, pki, more: &[&str]| {
        let path = file.display().to_string();
        let flags = [
            "--identity",
            "vault",
            "--config",
            &path,
            "--vault-addr",
            address,
            "--vault-pki-path",
            pki,
        ];
        Some(strings(&[&flags[..], more].concat()))
    };
    site.asked = strings(&["--production"]);
    site.identity = identity("http://0.0.0.0:9", "pki_int/issue/executor", &[]);
    mode(0o640);
    let report = site.doctor();
    verdicts(
        &report,
        &[
            ("secrets", "fail", "has mode 0640"),
            ("vault-address", "fail", "is not HTTPS"),
            ("vault-key", "warn", "Vault makes the private key"),
            ("issuer", "skip", "no identity"),
        ],
    );
    assert!(!format!("{report:?}").contains("hunter2"));
    mode(0o600);
    site.identity = identity("https://0.0.0.0:9", "pki_int/sign/executor", &[]);
    verdicts(
        &site.doctor(),
        &[
            ("secrets", "pass", "only its owner"),
            ("vault-address", "pass", ""),
            ("vault-key", "pass", "stays here"),
        ],
    );
    site.identity = identity(
        "https://0.0.0.0:9",
        "pki_int/sign/executor",
        &["--vault-secret-id", "hunter3"],
    );
    verdicts(
        &site.doctor(),
        &[("secrets", "fail", "on the command line")],
    );
}
