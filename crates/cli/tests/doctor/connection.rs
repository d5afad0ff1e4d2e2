//! Set-ups in which the access point cannot be reached, or something else answers.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::site::{Site, need, set_ups, strings, unused_address};

/// A port that answers every connection with `greeting`.
fn greeting(site: &mut Site, greeting: &'static [u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    site.dial.push(listener.local_addr().unwrap().to_string());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(greeting);
            let _ = stream.read(&mut [0; 1024]);
        }
    });
}

// ER-1, ER-2, ER-24
set_ups! {
    closed_port: |site| {
        site.dial.push(unused_address().to_string());
        Ok(())
    } => "tcp", ["connection refused to 127.0.0.1:"];

    address_that_drops_packets: |site| {
        need("unshare")?;
        need("ip")?;
        // Packets to 10.9.9.0/24 come back in by the loopback device, where the kernel drops them.
        let swallowing = "ip link set lo up; ip addr add 10.9.8.1/32 dev lo; ip route add 10.9.9.0/24 dev lo; exec \"$@\"";
        site.under = strings(&["unshare", "--net", "sh", "-ec", swallowing, "sh"]);
        site.dial.push("10.9.9.2:4433".into());
        site.flags = strings(&["--connect-timeout", "500ms"]);
        Ok(())
    } => "tcp", ["connection timed out after 500ms", "10.9.9.2:4433: no answer"];

    name_that_does_not_resolve: |site| {
        site.dial.push("no-such-host.invalid:4433".into());
        Ok(())
    } => "dns", ["cannot resolve no-such-host.invalid"];

    port_of_a_mail_server: |site| {
        greeting(site, b"220 mail.example.com ready\r\n");
        Ok(())
    } => "tls", ["tls handshake with 127.0.0.1:", "the answer is not TLS"];

    port_of_plain_http: |site| {
        greeting(site, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        Ok(())
    } => "tls", ["tls handshake with 127.0.0.1:", "the answer is not TLS"];

    port_that_accepts_and_says_nothing: |site| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        site.dial.push(listener.local_addr().unwrap().to_string());
        site.keep(listener);
        site.flags = strings(&["--connect-timeout", "500ms"]);
        Ok(())
    } => "tls", ["connection timed out after 500ms", "did not finish the tls handshake"];

    tls_server_without_http2: |site| {
        need("openssl")?;
        site.openssl("-www");
        Ok(())
    } => "tls", ["does not offer HTTP/2"];

    tls_server_that_only_knows_tls_1_2: |site| {
        need("openssl")?;
        site.openssl("-www -tls1_2");
        Ok(())
    } => "tls", ["tls handshake with 127.0.0.1:"];

    // A proxy that ends TLS with the right certificate, and asks for none of ours.
    proxy_that_ends_tls: |site| {
        need("openssl")?;
        site.openssl("-alpn h2");
        // Long enough for a handshake on a busy machine.
        site.flags = strings(&["--connect-timeout", "8s"]);
        Ok(())
    } => "access-point", ["is not an access point"];
}

#[test]
fn of_two_access_points_the_one_that_is_away_is_named() {
    // EN-1
    let mut site = Site::new();
    let away = unused_address().to_string();
    site.dial.push(away.clone());
    let there = site.listen(&[]).to_string();
    let report = site.doctor();
    report.blames("tcp", &[&format!("connection refused to {away}")]);
    let of = |address: &str, name: &str| {
        let of_it =
            |check: &&serde_json::Value| check["access_point"] == address && check["name"] == name;
        report.checks().iter().find(of_it).unwrap()["verdict"].clone()
    };
    assert_eq!(of(&away, "tcp"), "fail");
    assert_eq!(of(&away, "server-chain"), "skip");
    assert_eq!(of(&there, "access-point"), "pass");
}
