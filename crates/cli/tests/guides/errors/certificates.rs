//! Certificates that the executor cannot accept or cannot use.

use std::time::{Duration, SystemTime};

use ah_testkit::ca::TestCa;
use ah_testkit::clock::FalseClock;
use ah_testkit::need;
use ah_testkit::process::Process;

use super::{openssl_client, openssl_server};
use crate::kit::{
    EXECUTOR_ID, Files, Told, executor_leaf, failed, host, pair, sh, try_sh, unused_address,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn er_3_er_12_a_server_that_is_not_who_was_dialled() {
    // EN-5: by name, or by SPIFFE ID when one is expected.
    let host = host();
    let pair = pair(&host);
    let leaf = pair
        .ca
        .leaf()
        .dns("elsewhere.example.com")
        .spiffe("spiffe://example.org/ah/serve")
        .issue();
    let server = Files::write(&host, "elsewhere", &leaf, &pair.ca);
    let access_point = server.access_point(&host, &[]);
    let address = access_point.address;
    let mut process = Process::start(&mut pair.executor.enroll(&host, address, &[]));
    assert_eq!(process.wait().code(), Some(1), "EN-13: for good, at once");
    Told::first(process.lines()).says(
        "tls handshake failed: certificate verify failed",
        &["`127.0.0.1`", "DNS:elsewhere.example.com"],
        "--expected-server-id",
    );
    let ours = ["--expected-server-id", "spiffe://example.org/ah/serve"];
    pair.executor.enrolls_as(&host, address, EXECUTOR_ID, &ours);

    let other = ["--expected-server-id", "spiffe://other.org/ah/serve"];
    let mut refused = Process::start(&mut pair.executor.enroll(&host, address, &other));
    assert_eq!(refused.wait().code(), Some(1));
    Told::first(refused.lines()).says(
        "server SPIFFE ID mismatch: expected spiffe://other.org/ah/serve, got spiffe://example.org/ah/serve",
        &[],
        "--expected-server-id",
    );
}

#[test]
fn er_4_certificates_out_of_their_time() {
    if !need("openssl") {
        return;
    }
    let Some(clock) = FalseClock::off_by("+2d") else {
        return;
    };
    let host = host();
    let pair = pair(&host);
    let now = SystemTime::now();
    let leaf = || pair.ca.leaf().ip("127.0.0.1");
    let expired = leaf().valid_from(now - 2 * DAY).valid_for(DAY).issue();
    let early = leaf().valid_from(now + DAY).valid_for(DAY).issue();
    for (name, leaf, state) in [
        ("expired", expired, "has expired"),
        ("early", early, "is not yet valid"),
    ] {
        let server = Files::write(&host, name, &leaf, &pair.ca);
        // Ours: told at once, before anything is dialled or served.
        let own = server.once(&host, unused_address(), &[]);
        let told = failed(&own, 1);
        told.says(
            "certificate has expired or is not yet valid",
            &[state, "our clock says"],
            "",
        );
        let flags = server.flags();
        let mut args = vec!["agent", "access-point", "--server-identity", "files"];
        args.extend(flags.iter().map(String::as_str));
        failed(&host.run(args), 1).says(
            "certificate has expired or is not yet valid",
            &[state],
            "",
        );
        // The peer's.
        let fake = openssl_server(&host, name, "-www -alpn h2");
        let done = pair.executor.once(&host, fake.1, &[]);
        failed(&done, 1).says(
            "certificate has expired or is not yet valid",
            &["the access point's certificate", state, "our clock says"],
            "openssl x509 -noout -dates",
        );
        let dates = sh(
            &host,
            &format!("openssl x509 -in {name}.pem -noout -dates; date -u"),
        );
        assert!(
            dates.contains("notBefore=") && dates.contains("notAfter="),
            "{dates}"
        );
    }
    // ER-21: the access point's clock is two days ahead, so that only there our certificate is over.
    let lasting = pair.ca.leaf().ip("127.0.0.1").valid_for(9 * DAY).issue();
    let server = Files::write(&host, "lasting", &lasting, &pair.ca);
    let wrapper = clock.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let ahead = server.access_point_under(&wrapper, &host, &[]);
    let done = pair.executor.once(&host, ahead.address, &[]);
    failed(&done, 1).says(
        "client certificate rejected: certificate has expired or is not yet valid",
        &["it is valid from"],
        "date -u",
    );
    ahead
        .process
        .wait_for("client certificate rejected: certificate has expired or is not yet valid");
    let seen = openssl_client(
        &host,
        ahead.address,
        "-cert executor.pem -key executor-key.pem",
    );
    assert!(seen.contains("alert certificate expired"), "{seen}");
}

#[test]
fn er_5_er_22_roots_and_intermediates_that_are_missing() {
    if !need("openssl") {
        return;
    }
    let host = host();
    let ca = TestCa::new("example.org");
    let intermediate = ca.intermediate().subject("Issuing CA").issue();
    let leaf = intermediate.leaf().ip("127.0.0.1").dns("localhost").issue();
    let whole = Files::write(&host, "server", &leaf, &ca);
    let bare = Files::write(&host, "bare", &leaf.clone().with_intermediates(&[]), &ca);
    let executor = Files::write(&host, "executor", &executor_leaf(&ca), &ca);
    intermediate.write(&host.path(""), "intermediate-ca");
    ca.write(&host.path(""), "root-ca");

    let access_point = bare.access_point(&host, &[]);
    let address = access_point.address;
    let done = executor.once(&host, address, &[]);
    failed(&done, 1).says(
        "unable to get local issuer certificate",
        &["Issuing CA"],
        "cat intermediate-ca.pem root-ca.pem > ca-chain.pem",
    );
    // The guide's diagnosis and its solution, as printed.
    let chain = sh(
        &host,
        &format!(
            "openssl s_client -connect {address} -showcerts -cert executor.pem -key executor-key.pem </dev/null 2>&1 || true"
        ),
    );
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 1, "{chain}");
    sh(
        &host,
        "openssl x509 -in root-ca.pem -noout -subject -issuer",
    );
    let unverified = try_sh(&host, "openssl verify -CAfile root-ca.pem bare.pem");
    assert!(
        unverified
            .stderr
            .contains("unable to get local issuer certificate"),
        "{unverified:?}"
    );
    sh(
        &host,
        "cat intermediate-ca.pem root-ca.pem > ca-chain.pem; openssl verify -CAfile ca-chain.pem bare.pem",
    );
    let mended = Files {
        ca: host.path("ca-chain.pem"),
        ..executor.clone()
    };
    mended.enrolls_as(&host, address, EXECUTOR_ID, &[]);
    drop(access_point);

    let access_point = whole.access_point(&host, &[]);
    let chain = sh(
        &host,
        &format!(
            "openssl s_client -connect {} -showcerts -cert executor.pem -key executor-key.pem </dev/null 2>&1",
            access_point.address
        ),
    );
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2, "{chain}");
    executor.enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);

    // ER-22: the chain ends in a root, which is another than ours: sent along, or of the same name.
    let other = TestCa::new("example.org");
    let stranger = Files::write(&host, "stranger", &executor_leaf(&ca), &other);
    let done = stranger.once(&host, access_point.address, &[]);
    failed(&done, 1).says(
        "x509: certificate signed by unknown authority",
        &["root"],
        "ah agent enroll --ca /path/to/access-point-ca.pem",
    );
    let wrong = try_sh(
        &host,
        "openssl verify -CAfile stranger-ca.pem -untrusted intermediate-ca.pem server.pem",
    );
    assert_ne!(wrong.code, 0, "openssl sees it so, too: {wrong:?}");
}

#[test]
fn er_6_a_key_of_another_certificate() {
    if !need("openssl") {
        return;
    }
    let host = host();
    let pair = pair(&host);
    sh(
        &host,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out other.pem -days 9 -subj /CN=other -addext subjectAltName=DNS:other 2>/dev/null
         openssl req -x509 -newkey rsa:2048 -nodes -keyout other-key.pem -out cert.pem -days 9 -subj /CN=worker -addext subjectAltName=DNS:worker",
    );
    let wrong = Files {
        cert: host.path("cert.pem"),
        key: host.path("key.pem"),
        ca: pair.executor.ca.clone(),
    };
    let mut process = Process::start(&mut wrong.enroll(&host, unused_address(), &[]));
    assert_eq!(
        process.wait().code(),
        Some(1),
        "EN-13: a bad key pair is for good"
    );
    let told = Told::first(process.lines());
    told.says(
        "private key does not match certificate",
        &["certificate /", "private key /"],
        "make or copy both together",
    );
    // What the hint says to type shows it, for every kind of key.
    let hint = told.hint.split_once("the same: ").unwrap().1;
    let (of_certificate, of_key) = hint.split_once(" ; ").unwrap();
    assert_ne!(sh(&host, of_certificate), sh(&host, of_key));
    // The guide's comparison shows the same.
    let moduli = sh(
        &host,
        "openssl x509 -in cert.pem -noout -modulus | md5sum
         openssl rsa -in key.pem -noout -modulus 2>/dev/null | md5sum
         openssl rsa -in other-key.pem -noout -modulus 2>/dev/null | md5sum",
    );
    let moduli: Vec<_> = moduli.lines().collect();
    assert_ne!(moduli[0], moduli[1]);
    assert_eq!(moduli[0], moduli[2]);
}
