//! Peers that stall, dribble and send what is no handshake (AP-16).

use std::time::Duration;

use ah_identity_provider::Code;
use ah_tls::{ClientConfigs, HandshakeLimits, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Event, Pki, SOON, Server, client, dial, limits, ping, pki, serve_id};

/// The first flight of a real client.
fn client_hello(configs: &ClientConfigs) -> Vec<u8> {
    let config = configs.current().config().clone();
    let mut client =
        rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn ap_16_without_a_place_a_peer_is_reset_and_silence_takes_no_place() {
    // AP-16
    let Pki { ca, serve, agent } = pki();
    let limits = HandshakeLimits {
        max_handshakes: 1,
        max_waiting: 64,
        ..limits()
    };
    let mut server = Server::start(&serve, &[&ca], limits);
    let configs = client(&agent, &[&ca], serve_id());
    // More silent sockets than either limit.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.addr).await.unwrap());
    }
    // The kernel hands them over when they were silent for a second.
    for _ in &silent {
        server.until(|event| matches!(event, Event::Opened)).await;
    }
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();

    // One that stops after its ClientHello holds the only place for a while.
    let mut stalled = TcpStream::connect(server.addr).await.unwrap();
    stalled.write_all(&client_hello(&configs)).await.unwrap();
    server
        .until(|event| matches!(event, Event::Completed))
        .await;
    server.until(|event| matches!(event, Event::Started)).await;
    let error = dial(&server, &configs).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    server.until(|event| matches!(event, Event::Shed)).await;

    // When it goes, its place is free.
    drop(stalled);
    server
        .until(|event| matches!(event, Event::Abandoned))
        .await;
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn ap_16_a_connection_is_accepted_when_its_peer_has_spoken() {
    // AP-16
    let cookies = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies");
    let Pki { ca, serve, .. } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let opened = |event: &Event| matches!(event, Event::Opened);
    let mut peer = TcpStream::connect(server.addr).await.unwrap();
    // Without SYN cookies the silent could take all room in the kernel's queue.
    if cookies.is_ok_and(|cookies| cookies.trim() != "0") {
        tokio::time::timeout(Duration::from_millis(300), server.until(opened))
            .await
            .expect_err("it has said nothing");
        peer.write_all(&[22]).await.unwrap();
    }
    let said = Duration::from_millis(500);
    tokio::time::timeout(said, server.until(opened))
        .await
        .expect("sooner than silence is taken");
}

#[tokio::test]
async fn ap_16_while_a_place_comes_free_the_next_waits_for_it() {
    // AP-16
    let Pki { ca, serve, agent } = pki();
    let limits = HandshakeLimits {
        max_handshakes: 1,
        patience: SOON,
        ..limits()
    };
    let mut server = Server::start(&serve, &[&ca], limits);
    let configs = client(&agent, &[&ca], serve_id());
    let mut stalled = TcpStream::connect(server.addr).await.unwrap();
    stalled.write_all(&client_hello(&configs)).await.unwrap();
    server.until(|event| matches!(event, Event::Started)).await;

    // One that gives up and one that does not, while the only place is taken.
    drop(TcpStream::connect(server.addr).await.unwrap());
    server.until(|event| matches!(event, Event::Opened)).await;
    let port = server.addr.port();
    let free = async {
        drop(stalled);
        let mut started = 0;
        let mut gone = 0;
        server
            .until(|event| {
                assert!(!matches!(event, Event::Shed));
                started += u32::from(matches!(event, Event::Started));
                gone += u32::from(matches!(event, Event::Abandoned));
                matches!(event, Event::Completed)
            })
            .await;
        (started, gone)
    };
    let dial = connect("127.0.0.1", port, &configs, SOON);
    let (connected, (started, gone)) = tokio::join!(dial, free);
    assert_eq!((started, gone), (1, 2));
    ping(&mut connected.unwrap()).await.unwrap();
}

#[tokio::test]
async fn ap_16_a_peer_that_never_finishes_is_cut_at_the_timeout() {
    // AP-16
    let Pki { ca, serve, agent } = pki();
    let limits = HandshakeLimits {
        timeout: Duration::from_millis(200),
        ..limits()
    };
    let mut server = Server::start(&serve, &[&ca], limits);
    let hello = client_hello(&client(&agent, &[&ca], serve_id()));
    for sent in [0, 1, hello.len() - 1, hello.len()] {
        let mut peer = TcpStream::connect(server.addr).await.unwrap();
        peer.write_all(&hello[..sent]).await.unwrap();
        server.until(|event| matches!(event, Event::TimedOut)).await;
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn a_client_hello_byte_by_byte_is_served() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let hello = client_hello(&client(&agent, &[&ca], serve_id()));
    let mut peer = TcpStream::connect(server.addr).await.unwrap();
    peer.set_nodelay(true).unwrap();
    for byte in &hello {
        peer.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    server.until(|event| matches!(event, Event::Started)).await;
    let mut answer = [0];
    tokio::time::timeout(SOON, peer.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, [22], "a handshake record");
}

#[tokio::test]
async fn no_bytes_of_a_peer_do_harm() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let configs = client(&agent, &[&ca], serve_id());
    let hello = client_hello(&configs);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..300 {
        let mut bytes = hello.clone();
        match round % 3 {
            // Mutated, cut, and not TLS at all.
            0 => (0..8).for_each(|_| {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }),
            1 => bytes.truncate(random() as usize % bytes.len()),
            _ => bytes.iter_mut().for_each(|byte| *byte = random() as u8),
        }
        let mut peer = TcpStream::connect(server.addr).await.unwrap();
        let _ = peer.write_all(&bytes).await;
        let _ = peer.shutdown().await;
        let ended = |event: &Event| matches!(event, Event::Abandoned | Event::Rejected(_));
        server.until(ended).await;
    }
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();
}
