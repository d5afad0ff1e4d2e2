//! Certificates that the access point refuses, as both sides tell it.

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::process::Process;

use super::openssl_client;
use crate::kit::{EXECUTOR_ID, Files, Told, audited, failed, host, pair, sh, until_closed};

#[test]
fn er_7_a_san_that_no_rule_expects_is_told_on_both_sides() {
    // Also ER-21 with a revoked certificate, and RUST_LOG as the guide sets it.
    if !need("openssl") {
        return;
    }
    let host = host();
    let pair = pair(&host);
    let rules = [
        "--executor-san-uri-prefix",
        "spiffe://example.org/ah/other/",
        "--executor-san-dns",
        "*.example.com,b.example.org",
    ];
    let access_point = pair.server.access_point(&host, &rules);
    let mut executor = Process::start(
        pair.executor
            .enroll(&host, access_point.address, &[])
            .env("RUST_LOG", "ah_identity_provider=debug,ah_cli=debug"),
    );
    assert_eq!(executor.wait().code(), Some(1), "EN-13: for good");
    Told::first(executor.lines()).says(
        "certificate SAN does not match expected pattern",
        &[EXECUTOR_ID],
        "--executor-san-uri-prefix",
    );
    let log = access_point
        .process
        .wait_for("certificate SAN does not match expected pattern");
    for part in [
        EXECUTOR_ID,
        "spiffe://example.org/ah/other",
        "*.example.com",
        "b.example.org",
    ] {
        assert!(log.contains(part), "no {part} in {log}");
    }
    let rejected = audited(&host, "rejected");
    assert_eq!(rejected["executor_id"], EXECUTOR_ID);
    assert!(
        rejected["reason"]
            .as_str()
            .unwrap()
            .contains("expected pattern"),
        "{rejected:?}"
    );
    let sans = sh(
        &host,
        "openssl x509 -in executor.pem -noout -text | grep -A1 'Subject Alternative Name'",
    );
    assert!(sans.contains(EXECUTOR_ID), "{sans}");
    drop(access_point);

    // ER-21: revoked by an operator, for this process and for the next.
    let access_point = pair.server.access_point(&host, &[]);
    let mut live = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
    live.wait_for(" enrolled executor.id=");
    sh(
        &host,
        &format!("ah agent fleet revoke {} --reason lost", EXECUTOR_ID),
    );
    assert_eq!(live.wait().code(), Some(1));
    let text = "client certificate rejected: certificate revoked";
    Told::first(live.lines()).says(text, &[], "ah agent fleet reinstate");
    let done = pair.executor.once(&host, access_point.address, &[]);
    failed(&done, 1).says(text, &[], "ah agent fleet reinstate");
    let seen = openssl_client(
        &host,
        access_point.address,
        "-cert executor.pem -key executor-key.pem",
    );
    assert!(seen.contains("alert certificate revoked"), "{seen}");
}

#[test]
fn er_20_er_21_clients_without_a_certificate_or_of_an_unknown_ca() {
    if !need("openssl") {
        return;
    }
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let address = access_point.address;
    let seen = openssl_client(&host, address, "");
    assert!(seen.contains("alert certificate required"), "{seen}");
    access_point.process.wait_for("client certificate required");

    let other = TestCa::new("example.org");
    let leaf = other
        .leaf()
        .spiffe(EXECUTOR_ID)
        .subject("lone executor")
        .issue();
    let stranger = Files::write(&host, "stranger", &leaf, &pair.ca);
    let mut process = Process::start(&mut stranger.enroll(&host, address, &[]));
    assert_eq!(process.wait().code(), Some(1));
    Told::first(process.lines()).says(
        "client certificate rejected: certificate signed by unknown authority",
        &["lone executor"],
        "ah agent access-point --ca /path/to/executor-ca.pem",
    );
    access_point
        .process
        .wait_for("client certificate rejected: certificate signed by unknown authority");
    let seen = openssl_client(&host, address, "-cert stranger.pem -key stranger-key.pem");
    assert!(seen.contains("alert unknown ca"), "{seen}");

    // The guide's full validation, for who is welcome.
    let script = format!(
        "openssl s_client -connect {address} -cert executor.pem -key executor-key.pem -CAfile executor-ca.pem -verify_return_error -alpn h2"
    );
    let seen = until_closed(&host, &script);
    assert!(
        seen.contains("Verify return code: 0 (ok)") && !seen.contains("alert"),
        "{seen}"
    );

    // AP-3, as the guide solves it: the executor's CA is trusted besides.
    drop(access_point);
    sh(&host, "cat server-ca.pem > both.pem");
    let both = Files {
        ca: host.path("both.pem"),
        ..pair.server
    };
    std::fs::write(&both.ca, pair.ca.pem() + &other.pem()).unwrap();
    let access_point = both.access_point(&host, &[]);
    stranger.enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
}
