//! The troubleshooting guide: each of its errors from a real fault, word for word, and the commands it says
//! to type (contract §8).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, SystemTime};

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::process::{Finished, Host, Process};

use crate::kit::{
    EXECUTOR_ID, Files, NOBODY, Told, audited, executor_leaf, failed, host, pair, retrying, sh,
    shell, try_sh, unused_address,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn er_1_a_closed_port_is_tried_until_somebody_listens() {
    // EN-13: transient, printed each time, and mended without a restart.
    let host = host();
    let address = unused_address();
    let executor = host.executor(address, &["--name", "worker-1"]);
    retrying(&executor).says(
        &format!("connection refused to {address}"),
        &["Connection refused"],
        &format!("ss -tlnp | grep {}", address.port()),
    );
    let listen = address.to_string();
    let access_point = host.access_point(&["--fleet-listen", &listen]);
    executor.wait_for(" enrolled executor.id=spiffe://ah-dev/ah/agent/worker-1 ");

    // The guide's looks at the port, while it is open and after.
    let port = address.port();
    if need("nc") && need("ss") {
        sh(&host, &format!("nc -zv 127.0.0.1 {port}"));
        let listening = sh(&host, &format!("ss -tlnp | grep {port}"));
        assert!(listening.contains("LISTEN"), "{listening}");
        drop(access_point);
        let closed = try_sh(&host, &format!("nc -zv 127.0.0.1 {port}"));
        assert_eq!(closed.code, 1, "{closed:?}");
    }
}

#[test]
fn er_2_a_host_that_drops_packets_times_out() {
    if !need("unshare") || !need("ip") {
        return;
    }
    let host = host();
    let executor = pair(&host).executor;
    // Packets to 10.9.9.0/24 come back in by the loopback device, where the kernel drops them.
    let swallowing = "ip link set lo up; ip addr add 10.9.8.1/32 dev lo; ip route add 10.9.9.0/24 dev lo; exec \"$@\"";
    let wrapper = ["unshare", "--net", "sh", "-ec", swallowing, "sh"];
    let more = ["--connect-timeout", "2s"];
    let process =
        Process::start(&mut executor.enroll_under(&wrapper, &host, "10.9.9.2:4433", &more));
    retrying(&process).says(
        "connection timed out after 2s",
        &["10.9.9.2:4433"],
        "firewall",
    );
    drop(process);
    let more = ["--connect-timeout", "300ms", "--once"];
    let once = executor
        .enroll_under(&wrapper, &host, "10.9.9.2:4433", &more)
        .output()
        .unwrap();
    failed(&Finished::from(once), 1).says(
        "connection timed out after 300ms",
        &["10.9.9.2:4433"],
        "",
    );
}

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
    if !need("openssl") || !need("faketime") {
        return;
    }
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
    // faketime waits for a child, which has to end with it.
    let wrapper = ["faketime", "-f", "+2d", "setpriv", "--pdeathsig", "KILL"];
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
fn er_8_er_9_files_that_cannot_be_read_or_are_not_there() {
    if !need("setpriv") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    sh(
        &host,
        "chmod 755 . home; mkdir -p nobody; chown 65534:65534 nobody",
    );
    let mut command =
        pair.executor
            .enroll_under(&nobody, &host, access_point.address, &["--name", "n"]);
    command
        .env("STATE_DIRECTORY", host.path("nobody"))
        .env("RUNTIME_DIRECTORY", host.path("nobody"));
    let mut process = Process::start(&mut command);
    let key = pair.executor.key.display();
    assert_eq!(process.wait().code(), Some(1));
    Told::first(process.lines()).says(
        &format!("permission denied reading {key}"),
        &["uid 65534", "belongs to uid 0 gid 0, mode 0600"],
        "chmod 600",
    );
    // What the guide and the hint say to do.
    std::os::unix::fs::chown(&pair.executor.key, Some(NOBODY), Some(NOBODY)).unwrap();
    let process = Process::start(&mut command);
    process.wait_for(" enrolled executor.id=");
    drop(process);

    for (file, flag) in [
        (&pair.executor.cert, "--cert"),
        (&pair.executor.key, "--key"),
        (&pair.executor.ca, "--ca"),
    ] {
        let aside = file.with_extension("aside");
        std::fs::rename(file, &aside).unwrap();
        let mut gone = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
        assert_eq!(gone.wait().code(), Some(1));
        Told::first(gone.lines()).says(
            &format!("no such file: {}", file.display()),
            &[flag],
            "ls -la ",
        );
        std::fs::rename(&aside, file).unwrap();
    }
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
        "sleep 0.3 | openssl s_client -connect {address} -cert executor.pem -key executor-key.pem -CAfile executor-ca.pem -verify_return_error -alpn h2"
    );
    let seen = sh(&host, &script);
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

#[test]
fn er_24_whatever_else_can_be_at_the_other_end() {
    // EN-13: none of these is for good.
    if !need("openssl") || !need("curl") {
        return;
    }
    let host = host();
    let pair = pair(&host);

    let unknown = Process::start(&mut pair.executor.enroll(
        &host,
        "no-such-host.invalid:4433",
        &["--name", "a"],
    ));
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in plain.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"220 mail.example.com ready\r\n");
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    let mail = Process::start(&mut pair.executor.enroll(&host, plain_address, &["--name", "b"]));
    let web_server = openssl_server(&host, "server", "-www");
    let web = Process::start(&mut pair.executor.enroll(&host, web_server.1, &["--name", "c"]));

    retrying(&unknown).says(
        "cannot resolve no-such-host.invalid",
        &[],
        "dig no-such-host.invalid",
    );
    retrying(&mail).says(
        &format!("tls handshake with {plain_address} failed"),
        &["the answer is not TLS"],
        "4433",
    );
    retrying(&web).says(
        &format!("tls handshake with {} failed", web_server.1),
        &["h2"],
        "4433",
    );

    // The other way round: plain HTTP at our port is told to the log, and to nobody else's cost.
    let access_point = pair.server.access_point(&host, &[]);
    let done = try_sh(&host, &format!("curl -sS http://{}/", access_point.address));
    assert_ne!(done.code, 0);
    let log = access_point.process.wait_for("tls handshake failed");
    assert!(log.contains("does not speak TLS"), "{log}");
    pair.executor
        .enrolls_as(&host, access_point.address, EXECUTOR_ID, &[]);
}

#[test]
fn fi_2_a_touch_is_seen_and_says_that_nothing_changed() {
    // The guide's "Trigger inotify event", and what `grep -i "rotat\|renew"` finds after a real change.
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let executor = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
    executor.wait_for(" enrolled executor.id=");
    sh(&host, "touch executor.pem");
    executor.wait_for("certificate unchanged");
    let leaf = executor_leaf(&pair.ca);
    std::fs::write(host.path("new.pem"), leaf.chain_pem()).unwrap();
    std::fs::write(host.path("new-key.pem"), leaf.key_pem()).unwrap();
    crate::kit::chmod(&host.path("new-key.pem"), 0o600);
    sh(
        &host,
        "mv new-key.pem executor-key.pem; mv new.pem executor.pem",
    );
    executor.wait_for("certificate rotated; enrollment moved");
    std::fs::write(host.path("log"), executor.lines().join("\n")).unwrap();
    let found = sh(
        &host,
        "grep -i \"rotat\\|renew\" log; ah agent status --show-cert",
    );
    let serial = leaf_serial(&host);
    assert!(found.contains(&serial), "{serial}: {found}");
    assert_eq!(audited(&host, "rotated")["certificate"]["serial"], serial);
}

fn leaf_serial(host: &Host) -> String {
    let line = sh(host, "openssl x509 -in executor.pem -noout -serial");
    line.trim().trim_start_matches("serial=").to_lowercase()
}

/// What openssl's client saw when it sent a request; it never fails, for refusals are what is looked for.
fn openssl_client(host: &Host, address: SocketAddr, flags: &str) -> String {
    // TLS 1.3 tells a client of its refusal when it reads: the pipe stays open until the peer has closed.
    let script = format!(
        "{{ echo; cat; }} < <(sleep 5) | openssl s_client -connect {address} -CAfile server-ca.pem -alpn h2 {flags} 2>&1 || true"
    );
    let done = Finished::from(shell(host, &script).output().unwrap());
    done.stdout + &done.stderr
}

/// openssl's server with the files `NAME.pem` and `NAME-key.pem`, and its address.
fn openssl_server(host: &Host, name: &str, flags: &str) -> (Process, SocketAddr) {
    let address = unused_address();
    let mut command = Command::new("openssl");
    let pem = format!("{name}.pem");
    let key = format!("{name}-key.pem");
    let accept = address.to_string();
    command
        .args(["s_server", "-accept", &accept, "-cert", &pem, "-key", &key])
        .args(flags.split_whitespace())
        .current_dir(host.path(""));
    let server = Process::start(&mut command);
    server.wait_for("ACCEPT");
    (server, address)
}
