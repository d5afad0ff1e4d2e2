//! The troubleshooting guide: each of its errors from a real fault, word for word, and the commands it says
//! to type (contract §8).

mod certificates;
mod connection;
mod files;
mod refusals;

use std::net::SocketAddr;
use std::process::Command;

use ah_testkit::process::{Host, Process};

use crate::kit::{until_closed, unused_address};

/// What openssl's client saw when it sent a request; it never fails, for refusals are what is looked for.
fn openssl_client(host: &Host, address: SocketAddr, flags: &str) -> String {
    let line =
        format!("openssl s_client -connect {address} -CAfile server-ca.pem -alpn h2 {flags}");
    until_closed(host, &line)
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
