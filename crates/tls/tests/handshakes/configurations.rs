//! What the configurations hold, and what follows when they change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Code;
use ah_testkit::ca::{TestCa, published};
use ah_tls::{Policy, SanRules, Trust, bind, connect, verify_executor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Pki, SERVE, SOON, Server, client, dial, limits, ping, pki, serve_id};

#[tokio::test]
async fn still_admitted_and_still_trusted_follow_policy_and_bundles() {
    // EN-14, FL-1: what ends a live session after a change.
    let Pki { ca, agent, .. } = pki();
    let next_ca = TestCa::new("example.org");
    let now = SystemTime::now();
    let mut policy = Policy::default();
    let trust = Trust::new(&ca.bundles());
    let peer = verify_executor(agent.chain(), &trust, &policy, now).unwrap();
    peer.still_trusted(&trust, &policy, now).unwrap();
    let mut both = ca.bundles();
    both.unscoped.push(next_ca.der().clone());
    peer.still_trusted(&Trust::new(&both), &policy, now)
        .unwrap();
    let gone = Trust::new(&next_ca.bundles());
    let error = peer.still_trusted(&gone, &policy, now).unwrap_err();
    assert_eq!(error.code(), Code::ClientUnknownAuthority);
    let error = peer.still_trusted(&trust, &policy, peer.not_after() + Duration::from_secs(1));
    assert_eq!(error.unwrap_err().code(), Code::ClientExpired);

    peer.still_admitted(&policy).unwrap();
    policy.rules = SanRules::parse(&["spiffe://other.org".into()], &[], &[]).unwrap();
    assert_eq!(
        peer.still_admitted(&policy).unwrap_err().code(),
        Code::SanMismatch
    );
    policy.rules = SanRules::default();
    policy
        .revocations
        .serials
        .insert(peer.leaf().serial.clone());
    assert_eq!(
        peer.still_admitted(&policy).unwrap_err().code(),
        Code::ClientRevoked
    );
}

#[tokio::test]
async fn configurations_prefer_post_quantum_and_resume_nothing() {
    let Pki { ca, serve, agent } = pki();
    let server = Server::start(&serve, &[&ca], limits());
    let tls = server.configs.current();
    let groups = &tls.config().crypto_provider().kx_groups;
    assert_eq!(groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(tls.config().send_tls13_tickets, 0);
    assert!(!tls.config().session_storage.can_cache());

    let config = client(&agent, &[&ca], serve_id())
        .current()
        .config()
        .clone();
    let connector = tokio_rustls::TlsConnector::from(config);
    for _ in 0..2 {
        let tcp = TcpStream::connect(server.addr).await.unwrap();
        let mut stream = connector
            .connect("localhost".try_into().unwrap(), tcp)
            .await
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(
            connection.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
        let group = connection.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn ap_1_ipv6_listens_and_is_dialled() {
    // AP-1
    let Pki { ca, agent, .. } = pki();
    let listener = bind("[::1]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let configs = client(&agent, &[&ca], serve_id());
    let error = connect("::1", port, &configs, SOON).await.unwrap_err();
    assert_eq!(error.text, format!("connection refused to [::1]:{port}"));
}

#[tokio::test]
async fn every_handshake_after_a_swap_shows_the_new_certificate() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let configs = client(&agent, &[&ca], serve_id());
    let mut old = dial(&server, &configs).await.unwrap();
    for generation in 2..12 {
        let next = ca.leaf().spiffe(SERVE).issue();
        server
            .identity
            .send_replace(Arc::new(published(generation, next.identity(&[&ca]))));
        assert_eq!(
            server.configs.next().await.unwrap().generation(),
            generation
        );
        let mut connected = dial(&server, &configs).await.unwrap();
        assert_eq!(connected.server.chain(), next.chain());
        ping(&mut connected).await.unwrap();
    }
    ping(&mut old).await.expect("the old connection stays up");
}
