//! What stands between the two: names, addresses, ports, and whoever else answers there.

use std::io::{Read, Write};
use std::net::TcpListener;

use ah_testkit::need;
use ah_testkit::process::{Finished, Process};

use super::openssl_server;
use crate::kit::{EXECUTOR_ID, failed, host, pair, retrying, sh, try_sh, unused_address};

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
