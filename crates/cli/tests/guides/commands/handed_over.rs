//! Sockets that systemd holds (AP-1): the tests hold them as it does.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ah_testkit::process::{AccessPoint, Finished, Host, Process, field};
use nix::sys::signal::Signal;

use super::ONCE;
use crate::kit::{AH, failed, host};

/// Descriptor 3 listens, and two variables say so to this very process.
const HAND_OVER: &str = r#"exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;

/// An access point that gets `socket`, which stays open here.
fn access_point_on(host: &Host, socket: &TcpListener, args: &[&str]) -> std::process::Command {
    let mut all = vec!["agent", "access-point"];
    all.extend(args);
    let mut command = host.command_under(&["sh", "-c", HAND_OVER, "sh"], all);
    command.stdin(OwnedFd::from(socket.try_clone().unwrap()));
    command
}

fn held() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn ap_1_an_address_that_is_named_and_handed_over_is_listened_on_once() {
    let host = host();
    let (socket, address) = held();
    let both = [
        "--fleet-listen",
        &address.to_string(),
        "--fleet-listen",
        "127.0.0.1:0",
    ];
    let access_point = AccessPoint::start(&mut access_point_on(&host, &socket, &both), &both);
    let second = access_point
        .process
        .wait_for_nth("listening for executors", 2);
    assert_eq!(access_point.address, address);
    let besides: SocketAddr = field(&second, "address=").parse().unwrap();
    for address in [address, besides] {
        assert_eq!(host.executor(address, &[ONCE]).wait().code(), Some(0));
    }
}

#[test]
fn ap_1_addresses_that_disagree_with_the_socket_unit_say_so() {
    let host = host();
    let (socket, address) = held();
    let wider = format!("0.0.0.0:{}", address.port());
    let args = ["--dev-allow-remote", "--fleet-listen", &wider];
    let done = Finished::from(access_point_on(&host, &socket, &args).output().unwrap());
    failed(&done, 1).says(
        &format!("cannot listen on {wider}"),
        &[&format!("systemd handed over a socket on {address}")],
        "systemctl edit ah-access-point.socket",
    );
}

// DV-2
#[test]
fn dv_2_a_dev_identity_takes_no_socket_that_others_reach() {
    let host = host();
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let address = socket.local_addr().unwrap();
    let done = Finished::from(access_point_on(&host, &socket, &[]).output().unwrap());
    failed(&done, 2).says(
        &format!("the dev identity does not listen on {address}: it is for this machine only"),
        &["ListenStream="],
        "--dev-allow-remote",
    );
}

// AP-1, AP-19: what an upgrade of the package does, with systemd's part played here.
#[test]
fn ap_19_an_upgrade_with_live_sessions_refuses_no_connection() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("ah");
    std::fs::copy(AH, &program).unwrap();
    let host = Host::new(&program);
    let (socket, address) = held();
    let mut access_point = Process::start(&mut access_point_on(&host, &socket, &[]));
    access_point.wait_for("listening for executors");
    let enroll = |name: &str| host.executor(address, &["--name", name]);
    let stayed = ["worker-1", "worker-2", "worker-3"].map(enroll);
    for executor in &stayed {
        executor.wait_for(" enrolled ");
    }

    // A new file in the old one's place, as dpkg does it, then the restart.
    let newer = directory.path().join("ah.new");
    std::fs::copy(AH, &newer).unwrap();
    std::fs::rename(&newer, &program).unwrap();
    assert!(running(&access_point).ends_with("ah (deleted)"));
    access_point.signal(Signal::SIGTERM);
    let during = enroll("worker-4");
    assert_eq!(access_point.wait().code(), Some(0));
    let _waits = TcpStream::connect(address).expect("nobody serves, and systemd's socket takes it");
    let between = enroll("worker-5");
    let access_point = Process::start(&mut access_point_on(&host, &socket, &[]));
    access_point.wait_for("listening for executors");
    assert_eq!(running(&access_point), program);

    for executor in &stayed {
        executor.wait_for_nth(" enrolled ", 2);
    }
    during.wait_for(" enrolled ");
    between.wait_for(" enrolled ");
    for executor in stayed.iter().chain([&during, &between]) {
        assert_eq!(executor.count("refused"), 0, "{:?}", executor.lines());
    }
    // Who dialled while nobody served waited, and needed no second attempt.
    assert_eq!(between.count("retrying in"), 0, "{:?}", between.lines());
}

fn running(process: &Process) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", process.pid())).unwrap()
}
