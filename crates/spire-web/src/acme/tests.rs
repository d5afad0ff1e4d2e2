use std::net::{Ipv4Addr, SocketAddr};

use ::http::{Request, StatusCode};
use ah_spire_telemetry::{Http, answer};
use ah_spire_wire::http_client::HttpClient;
use ah_testkit::pebble::Pebble;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::server_config;

/// Certificates are replaced three seconds after they were made.
const PACE: Pace = Pace {
    waits: (Duration::from_millis(100), Duration::from_secs(1)),
    before_end: |life| life.saturating_sub(Duration::from_secs(3)),
};

const LIFE: Duration = Duration::from_secs(60 * 60);

fn acme(pebble: &Pebble, folder: &std::path::Path) -> Acme {
    let settings = AcmeSettings {
        directory_url: Some(pebble.directory_url()),
        email: "operator@example.org".into(),
        domains: vec!["localhost".into()],
        cache_dir: Some(folder.join("acme")),
    };
    Acme::with(settings, Roots::Only(pebble.api_roots()), PACE).unwrap()
}

/// A web server with these certificates, until it is dropped.
async fn serve(
    address: SocketAddr,
    certificates: Arc<AcmeCertificates>,
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tls = server_config(certificates, false).unwrap();
    tls.alpn_protocols.push(PROTOCOL.to_vec());
    let http = Http {
        listener,
        tls: Some(Arc::new(tls)),
        most_connections: 8,
    };
    let serving = tokio::spawn(http.serve(
        |_| answer(StatusCode::OK, "text/plain", "served"),
        CancellationToken::new(),
    ));
    (address, AbortOnDropHandle::new(serving))
}

/// What a client says that trusts the certificates of `pebble` alone.
async fn visit(pebble: &Pebble, port: u16) -> Result<(), String> {
    let client = HttpClient::new(Roots::Only(pebble.issuing_roots()), None)?;
    let request = Request::get(format!("https://localhost:{port}/")).body(Bytes::new());
    client.send(request.unwrap()).await.map(|_| ())
}

async fn until(health: &mut AcmeHealth, wanted: impl Fn(&State) -> bool) -> State {
    let found = health.0.wait_for(|states| wanted(&states["localhost"]));
    let found = tokio::time::timeout(ah_testkit::process::DEADLINE, found).await;
    found.expect("in time").unwrap()["localhost"].clone()
}

fn free() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

// Inventory section 11: `acme { }`; RFC 8555, RFC 8737
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_ordered_renewed_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (address, held) = serve(free(), Arc::default()).await;
    drop(held);
    let Some(mut pebble) = Pebble::start(address.port(), LIFE) else {
        return;
    };
    let first = acme(&pebble, folder.path());
    let mut health = first.health();
    assert!(health.look().unwrap_err().contains("it is being ordered"));
    let (_, _serving) = serve(address, first.certificates()).await;
    assert!(visit(&pebble, address.port()).await.is_err());
    let running = AbortOnDropHandle::new(tokio::spawn(first.run()));
    let state = until(&mut health, |state| state.not_after.is_some()).await;
    assert_eq!(visit(&pebble, address.port()).await, Ok(()));
    assert_eq!(health.look(), Ok(None));
    // Long before it ends.
    let renewed = until(&mut health, |now| now.not_after > state.not_after).await;
    assert_eq!(visit(&pebble, address.port()).await, Ok(()));
    drop(running);
    drop(_serving);

    // A restart orders nothing, and needs no ACME server.
    pebble.kill();
    let again = acme(&pebble, folder.path());
    let mut health = again.health();
    let kept = until(&mut health, |_| true).await.not_after;
    assert!(kept >= renewed.not_after);
    let (_, _serving) = serve(address, again.certificates()).await;
    assert_eq!(visit(&pebble, address.port()).await, Ok(()));
    // What cannot be renewed serves on, and says why.
    let _running = AbortOnDropHandle::new(tokio::spawn(again.run()));
    let failed = until(&mut health, |state| state.fault.is_some()).await;
    assert_eq!(failed.not_after, kept);
    assert!(failed.fault.unwrap().contains("onnection refused"));
    assert_eq!(visit(&pebble, address.port()).await, Ok(()));
    assert!(health.look().unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_acme_server_finds_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (address, held) = serve(free(), Arc::default()).await;
    drop(held);
    let Some(pebble) = Pebble::start(address.port(), LIFE) else {
        return;
    };
    let acme = acme(&pebble, folder.path());
    let (mut health, certificates) = (acme.health(), acme.certificates());
    let _running = AbortOnDropHandle::new(tokio::spawn(acme.run()));
    let failed = until(&mut health, |state| state.fault.is_some()).await;
    let fault = failed.fault.unwrap();
    assert!(fault.contains("does not take the proof: "), "{fault}");
    assert!(health.look().unwrap_err().contains(&fault));
    let (_, _serving) = serve(address, certificates).await;
    until(&mut health, |state| state.not_after.is_some()).await;
    assert_eq!(visit(&pebble, address.port()).await, Ok(()));
    let kept = std::fs::read_to_string(folder.path().join("acme/localhost")).unwrap();
    assert!(kept.starts_with("-----BEGIN PRIVATE KEY-----"));
    assert!(folder.path().join("acme/account.json").exists());
}

#[test]
fn a_name_is_no_path() {
    for name in ["../x", "", ".", "a/b", "*.example.org"] {
        let settings = AcmeSettings {
            directory_url: None,
            email: "e@example.org".into(),
            domains: vec![name.into()],
            cache_dir: None,
        };
        let refused = Acme::with(settings, Roots::Only(Vec::new()), PACE).err();
        assert!(
            refused.is_some_and(|why| why.contains("no domain name")),
            "{name}"
        );
    }
}

#[test]
fn a_third_of_a_life_is_left_or_a_month() {
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
    assert_eq!(before_end(days(90)), days(30));
    assert_eq!(before_end(days(365)), days(30));
    assert_eq!(before_end(days(6)), days(2));
}
