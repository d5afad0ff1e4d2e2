use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ah_spire_plugin::telemetry::HealthConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;

async fn asked(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn config() -> HealthConfig {
    HealthConfig {
        enabled: true,
        host: "127.0.0.1".into(),
        port: "0".into(),
        live_path: "/live".into(),
        ready_path: "/up".into(),
    }
}

#[tokio::test]
async fn answers_are_json_with_200_or_500() {
    // Inventory §10: health_checks
    let listener = HealthListener::bind(&config()).await.unwrap().unwrap();
    let address = listener.address().unwrap();
    let (looked, mut looks) = mpsc::unbounded_channel();
    let slow = move || {
        looked.send(()).unwrap();
        async {
            State {
                live: true,
                live_details: serde_json::json!({}),
                ..State::failed("list_bundle_err", "no \"store\"")
            }
        }
    };
    let checks = HealthChecks::default()
        .with("server", || async { State::healthy() })
        .with("catalog.datastore", slow);
    let stop = CancellationToken::new();
    let mut states = checks.states.subscribe();
    let running = tokio::spawn(checks.run(Some(listener), stop.clone()));
    looks.recv().await.unwrap();
    let all_seen = |states: &States| states.values().all(|it| *it != State::unknown());
    states.wait_for(all_seen).await.unwrap();

    let live = "{\"catalog.datastore\":{},\"server\":{}}\n";
    assert_eq!(asked(address, "/live").await, (200, live.into()));
    let ready =
        "{\"catalog.datastore\":{\"list_bundle_err\":\"no \\\"store\\\"\"},\"server\":{}}\n";
    assert_eq!(asked(address, "/up").await, (500, ready.into()));
    let (status, _) = asked(address, "/ready").await;
    assert_eq!(status, 404);

    stop.cancel();
    running.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn before_the_first_look_nothing_is_healthy() {
    // Inventory §10
    let listener = HealthListener::bind(&config()).await.unwrap().unwrap();
    let address = listener.address().unwrap();
    let checks = HealthChecks::default().with("agent", std::future::pending::<State>);
    let stop = CancellationToken::new();
    let running = tokio::spawn(checks.run(Some(listener), stop.clone()));
    assert_eq!(
        asked(address, "/live").await,
        (500, "{\"agent\":null}\n".into())
    );
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_looks_every_second_until_ready_and_then_every_minute() {
    // Inventory §10
    let ready = Arc::new(AtomicBool::new(false));
    let (looked, mut looks) = mpsc::unbounded_channel();
    let check = {
        let ready = ready.clone();
        move || {
            looked.send(Instant::now()).unwrap();
            let ready = ready.load(Ordering::Relaxed);
            async move {
                match ready {
                    true => State::healthy(),
                    false => State::failed("err", "not yet"),
                }
            }
        }
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(
        HealthChecks::default()
            .with("agent", check)
            .run(None, stop.clone()),
    );
    let first = looks.recv().await.unwrap();
    let second = looks.recv().await.unwrap();
    assert_eq!(second - first, Duration::from_secs(1));
    ready.store(true, Ordering::Relaxed);
    let third = looks.recv().await.unwrap();
    assert_eq!(third - second, Duration::from_secs(1));
    // Once ready it stays slow, also when it fails again.
    ready.store(false, Ordering::Relaxed);
    let fourth = looks.recv().await.unwrap();
    assert_eq!(fourth - third, Duration::from_secs(60));
    let fifth = looks.recv().await.unwrap();
    assert_eq!(fifth - fourth, Duration::from_secs(60));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_has_failed() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let check = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<State>()
    };
    let checks = HealthChecks::default().with("server", check);
    let mut states = checks.states.subscribe();
    let stop = CancellationToken::new();
    let running = tokio::spawn(checks.run(None, stop.clone()));
    let failed = |states: &States| states["server"] != State::unknown();
    let state = states.wait_for(failed).await.unwrap()["server"].clone();
    assert!(!state.live && !state.ready);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn it_listens_only_when_it_shall() {
    let off = HealthConfig {
        enabled: false,
        ..config()
    };
    assert!(HealthListener::bind(&off).await.unwrap().is_none());
    let bad = HealthConfig {
        port: "nonsense".into(),
        ..config()
    };
    let fault = HealthListener::bind(&bad).await.err().unwrap();
    assert_eq!(
        fault.text,
        "cannot listen for health checks on 127.0.0.1:nonsense"
    );
}
