//! Agents whose time is over, and sockets that cannot be had.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use ah_spire_wire::Channel;
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{ListAgentsRequest, PostStatusRequest};
use ah_spire_wire::types::permission_denied_details::Reason;
use ah_testkit::process::eventually;
use spire_server::endpoints::LocalSocket;
use tonic::Code;

use crate::network::agents;
use crate::rig::{Rig, reason, refused};

// Also a clock that jumps ahead by hours.
#[tokio::test]
async fn an_agent_whose_svid_ended_is_told_so_and_gets_in_no_more() {
    let rig = Rig::start().await;
    let (_, identity) = rig.attested().await;
    let mut open = agents(&rig, Some(&identity)).await;
    let post = PostStatusRequest::default;
    open.post_status(post()).await.unwrap();
    rig.clock.jump(2 * 3600);
    let error = refused(open.post_status(post()).await);
    assert_eq!(reason(&error), Some(Reason::AgentExpired));

    // A client of TLS 1.3 may learn only from its first read that it was refused.
    if let Ok(channel) = rig.network(Some(&identity)).await {
        let mut again = AgentClient::with_origin(channel, Channel::origin());
        let error = refused(again.post_status(post()).await);
        assert_ne!(error.code(), Code::PermissionDenied, "{}", error.message());
    }
    // Whoever comes anew is let in.
    rig.agents()
        .await
        .list_agents(ListAgentsRequest::default())
        .await
        .unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_socket_is_for_the_servers_group_at_most() {
    let rig = Rig::start().await;
    assert_eq!(mode(&rig.socket), 0o770);
    assert_eq!(mode(rig.socket.parent().unwrap()) & 0o027, 0);
}

#[tokio::test]
async fn a_socket_in_use_is_not_taken_and_a_stale_one_is() {
    let rig = Rig::start().await;
    let error = LocalSocket::bind(&rig.socket).unwrap_err().report();
    assert!(
        error.contains("another process is listening on it"),
        "{error}"
    );
    assert!(error.contains(&rig.socket.display().to_string()), "{error}");
    rig.local().await;

    // A server that was killed leaves its socket behind.
    let stale = rig.folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let bound = LocalSocket::bind(&stale).unwrap();
    drop(bound);
    assert!(!stale.exists());
}

// Connections that are open never notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_removed_comes_back() {
    let rig = Rig::start().await;
    let list = ListAgentsRequest::default;
    let mut open = rig.agents().await;
    // A client is connected before the server has accepted it.
    open.list_agents(list()).await.unwrap();
    std::fs::remove_file(&rig.socket).unwrap();
    eventually("the socket is back", || rig.socket.exists().then_some(()));
    rig.agents().await.list_agents(list()).await.unwrap();
    open.list_agents(list()).await.unwrap();
    eventually("its mode is back, too", || {
        (mode(&rig.socket) == 0o770).then_some(())
    });

    std::fs::set_permissions(&rig.socket, Permissions::from_mode(0o777)).unwrap();
    eventually("others may not call again", || {
        (mode(&rig.socket) == 0o770).then_some(())
    });
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone_and_named() {
    let rig = Rig::start().await;
    let file = rig.folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = LocalSocket::bind(&file).unwrap_err().report();
    assert!(
        error.contains("something that is not a socket is there"),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let error = LocalSocket::bind(&file.join("api.sock")).unwrap_err();
    let error = error.report();
    assert!(error.contains("hint: set socket_path"), "{error}");
    assert!(error.contains(&file.display().to_string()), "{error}");
}
