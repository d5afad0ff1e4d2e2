use ah_spire_attest::peer::{PeerError, PeerInfo};
use tokio::net::{UnixListener, UnixStream};

use crate::processes::{caller, idle, is_root, sleep};

#[tokio::test]
async fn a_connection_tells_process_user_and_group() {
    let (one, _other) = UnixStream::pair().unwrap();
    let peer = PeerInfo::of(&one).unwrap();
    assert_eq!(peer.pid(), std::process::id().cast_signed());
    assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(peer.gid(), nix::unistd::getegid().as_raw());
    assert!(peer.is_alive());
    assert_eq!(peer.verify(), Ok(()));
    let debug = format!("{peer:?}");
    assert!(debug.contains(&format!("pid: {}", peer.pid())), "{debug}");
}

#[tokio::test]
async fn a_caller_that_ended_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut running, stream) = caller(&listener, &path).await;
    let peer = PeerInfo::of(&stream).unwrap();
    assert_eq!(peer.pid(), running.pid());
    assert!(peer.is_alive());
    running.end();
    assert!(!peer.is_alive());
    let gone = PeerError::Gone { pid: peer.pid() };
    assert_eq!(peer.verify(), Err(gone.clone()));
    assert!(gone.to_string().contains("has ended"));
    // Its connection is still there to be asked.
    assert_eq!(PeerInfo::of(&stream).map(|_| ()), Err(gone));
}

#[test]
fn a_process_can_be_named_by_number() {
    let mut running = idle(&sleep());
    let peer = PeerInfo::of_process(running.pid()).unwrap();
    assert_eq!(peer.pid(), running.pid());
    running.end();
    assert!(!peer.is_alive());
    let again = PeerInfo::of_process(running.pid());
    assert_eq!(again.map(|_| ()), Err(PeerError::Gone { pid: peer.pid() }));
}

#[tokio::test]
async fn a_caller_that_became_another_user_is_not_taken_for_either() {
    if !is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut running, stream) = caller(&listener, &path).await;
    let peer = PeerInfo::of(&stream).unwrap();
    running.go_on();
    running.line("changed");
    assert!(peer.is_alive());
    let error = peer.verify().unwrap_err();
    assert!(matches!(error, PeerError::Changed { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("from 0:0 to 65534:0"), "{text}");
}
