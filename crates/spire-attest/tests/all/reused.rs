//! A process id that was given to another process, in a PID namespace where the next id can be chosen.

use std::path::Path;
use std::process::Command;

use ah_spire_attest::AttestError;
use ah_spire_attest::peer::{PeerError, PeerInfo};
use ah_spire_attest::workload::unix::{Unix, UnixConfig};
use ah_spire_attest::workload::{ProcRoot, attest};
use tokio::net::UnixListener;

use crate::processes::{Running, caller, idle, is_root, sleep};

const INSIDE: &str = "AH_TEST_INSIDE";

#[test]
fn a_reused_process_id_is_never_taken_for_its_predecessor() {
    if !ah_testkit::need("unshare") {
        return;
    }
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let namespaces = command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    let tried = Command::new("unshare")
        .args(namespaces.get_args())
        .arg("true")
        .output()
        .unwrap();
    if !tried.status.success() {
        assert!(std::env::var_os("CI").is_none(), "{tried:?}");
        println!("skipped: no PID namespace can be made here: {tried:?}");
        return;
    }
    let output = namespaces
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "reused::inside", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("the id was reused twice"), "{said}");
}

/// Nothing, unless it runs in a PID namespace of its own.
#[tokio::test]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();

    // Known before the id changed hands: by the socket, and by number.
    let (mut first, stream) = caller(&listener, &path).await;
    let by_socket = PeerInfo::of(&stream).unwrap();
    let by_number = PeerInfo::of_process(first.pid()).unwrap();
    let second = successor(&mut first);
    let gone = PeerError::Gone { pid: second.pid() };
    for peer in [&by_socket, &by_number] {
        assert_eq!(peer.pid(), second.pid());
        assert_eq!(peer.verify(), Err(gone.clone()));
        let error = attest(&[unix()], peer).await.unwrap_err();
        assert!(matches!(error, AttestError::Refused(_)), "{error}");
        assert_eq!(error.to_string(), gone.to_string());
    }

    // The connection of a process whose id changed hands before anybody looked.
    let (mut first, stream) = caller(&listener, &path).await;
    let second = successor(&mut first);
    let gone = PeerError::Gone { pid: second.pid() };
    assert!(Path::new("/proc").join(second.pid().to_string()).exists());
    match nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerPidfd) {
        Err(nix::Error::ENOPROTOOPT) => println!("this kernel's sockets have no descriptors"),
        _ => assert_eq!(PeerInfo::of(&stream).map(|_| ()), Err(gone)),
    }
    println!("\nthe id was reused twice");
}

fn unix() -> Unix {
    Unix::new(UnixConfig::default(), ProcRoot::own())
}

/// Ends `running` and starts another process under its id.
fn successor(running: &mut Running) -> Running {
    let wanted = running.pid();
    running.end();
    // Threads take ids as well, so that the first try may miss.
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
        let next = idle(&sleep());
        if next.pid() == wanted {
            return next;
        }
    }
    panic!("nobody got the id {wanted}");
}
