use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use ah_identity_provider::{SystemClock, TrustBundles};
use ah_spire_plugin::telemetry::{PrometheusTls, TelemetryConfig};
use ah_testkit::ca::{TestCa, TestLeaf};
use ah_tls::{HandshakeFault, OwnKey, ServerTrust, SpiffeClient, Trust};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::Program;

fn config(tls: Option<PrometheusTls>) -> Prometheus {
    Prometheus {
        host: "127.0.0.1".into(),
        port: 0,
        tls,
    }
}

fn tls(cert_file: PathBuf, key_file: PathBuf) -> PrometheusTls {
    PrometheusTls {
        cert_file: Some(cert_file),
        key_file: Some(key_file),
        client_ca_file: None,
        use_spire_svid: false,
        authorized_spiffe_ids: Vec::new(),
    }
}

/// A program with what it has of SPIFFE.
#[derive(Default)]
struct Has {
    svid: Mutex<Option<TestLeaf>>,
    bundles: Mutex<TrustBundles>,
}

impl Known for Has {
    fn svid(&self) -> Option<(Vec<CertificateDer<'static>>, OwnKey)> {
        let svid = self.svid.lock().unwrap();
        let svid = svid.as_ref()?;
        Some((svid.chain().to_vec(), OwnKey::Here(svid.key())))
    }

    fn bundles(&self) -> TrustBundles {
        self.bundles.lock().unwrap().clone()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Metrics with one counter in them, served.
async fn serving(config: Prometheus) -> (SocketAddr, CancellationToken) {
    serving_as(config, Arc::new(Has::default())).await
}

async fn serving_as(config: Prometheus, has: Arc<Has>) -> (SocketAddr, CancellationToken) {
    let telemetry = TelemetryConfig {
        prometheus: Some(config.clone()),
        ..TelemetryConfig::default()
    };
    let trust_domain = TrustDomain::new("example.org").unwrap();
    let (metrics, _) = Metrics::new(&telemetry, Program::Agent, &trust_domain).unwrap();
    metrics.counter(&["sds_api", "connection"], &[]).increment();
    let listener = PrometheusListener::bind(&config, metrics, has, false)
        .await
        .unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(listener.serve(stop.clone()));
    (address, stop)
}

async fn asked(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn asked_with_tls(
    address: SocketAddr,
    ca: &TestCa,
    client: Option<&TestLeaf>,
) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let key = PrivateKeyDer::try_from(leaf.key_der().to_vec()).unwrap();
            builder
                .with_client_auth_cert(leaf.chain().to_vec(), key)
                .unwrap()
        }
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    asked(connector.connect(name, stream).await?).await
}

const METRIC: &str = "\nspire_agent_sds_api_connection 1\n";

#[tokio::test]
async fn whoever_asks_gets_the_metrics() {
    // Inventory §10: Prometheus { host, port }
    let (address, stop) = serving(config(None)).await;
    let answer = asked(TcpStream::connect(address).await.unwrap())
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.ends_with(METRIC), "{answer}");
    stop.cancel();
}

#[tokio::test]
async fn with_tls_it_shows_its_certificate_and_may_want_the_clients() {
    // Inventory §10: tls { cert_file, key_file, client_ca_file }
    let directory = tempfile::tempdir().unwrap();
    let ca = TestCa::new("example.org");
    let clients = TestCa::new("clients.example");
    let server = ca.leaf().dns("localhost").issue();
    let files = server.write(directory.path(), "server");
    let open = tls(files.cert, files.key);
    let (address, stop) = serving(config(Some(open.clone()))).await;
    let answer = asked_with_tls(address, &ca, None).await.unwrap();
    assert!(answer.ends_with(METRIC), "{answer}");
    stop.cancel();

    let closed = PrometheusTls {
        client_ca_file: Some(clients.write(directory.path(), "clients")),
        ..open
    };
    let (address, stop) = serving(config(Some(closed))).await;
    assert!(asked_with_tls(address, &ca, None).await.is_err());
    let stranger = ca.leaf().client_only().issue();
    assert!(asked_with_tls(address, &ca, Some(&stranger)).await.is_err());
    let known = clients.leaf().client_only().issue();
    let answer = asked_with_tls(address, &ca, Some(&known)).await.unwrap();
    assert!(answer.ends_with(METRIC), "{answer}");
    stop.cancel();
}

/// Asks `server`, as `client`.
async fn asked_by_spiffe(
    address: SocketAddr,
    server: &str,
    ca: &TestCa,
    client: Option<&TestLeaf>,
) -> Result<String, HandshakeFault> {
    let own = client.map(|leaf| (leaf.chain().to_vec(), OwnKey::Here(leaf.key())));
    let client = SpiffeClient::new(
        SpiffeId::new(server).unwrap(),
        ServerTrust::Roots(Arc::new(Trust::new(&ca.svid_bundles()))),
        own.as_ref().map(|(chain, key)| (chain.clone(), key)),
        false,
        Arc::new(SystemClock),
    );
    let client = client.unwrap().of_host("localhost").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let (stream, _) = client.handshake(stream).await?;
    asked(stream).await.map_err(HandshakeFault::Ended)
}

fn of_spiffe(ids: &[&str]) -> PrometheusTls {
    PrometheusTls {
        cert_file: None,
        key_file: None,
        client_ca_file: None,
        use_spire_svid: true,
        authorized_spiffe_ids: ids.iter().map(|id| SpiffeId::new(id).unwrap()).collect(),
    }
}

#[tokio::test]
async fn it_shows_the_svid_of_the_moment() {
    // Inventory §10: use_spire_svid; SV-9
    let (first, second) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let server = "spiffe://example.org/server";
    let has = Arc::new(Has::default());
    let (address, stop) = serving_as(config(Some(of_spiffe(&[]))), has.clone()).await;
    let nothing = asked_by_spiffe(address, server, &first, None).await;
    assert!(nothing.is_err(), "there is no SVID yet");
    for ca in [&first, &second] {
        let svid = ca.leaf().spiffe(server).issue();
        *has.svid.lock().unwrap() = Some(svid);
        let answer = asked_by_spiffe(address, server, ca, None).await.unwrap();
        assert!(answer.ends_with(METRIC), "{answer}");
    }
    let old = asked_by_spiffe(address, server, &first, None).await;
    assert!(matches!(old, Err(HandshakeFault::Refused(_))));
    stop.cancel();

    // Upstream passes over client_ca_file here, and lets everybody ask.
    let directory = tempfile::tempdir().unwrap();
    let clients = TestCa::new("clients.example");
    let closed = PrometheusTls {
        client_ca_file: Some(clients.write(directory.path(), "clients")),
        ..of_spiffe(&[])
    };
    let (address, stop) = serving_as(config(Some(closed)), has).await;
    let stranger = asked_by_spiffe(address, server, &second, None).await;
    assert!(stranger.is_err());
    let known = clients.leaf().client_only().issue();
    let answer = asked_by_spiffe(address, server, &second, Some(&known)).await;
    assert!(answer.unwrap().ends_with(METRIC));
    stop.cancel();
}

#[tokio::test]
async fn whom_it_answers_is_named_by_spiffe_id() {
    // Inventory §10: authorized_spiffe_ids; SV-52
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (TestCa::new("example.org"), TestCa::new("other.org"));
    let server = "spiffe://example.org/server";
    let has = Arc::new(Has::default());
    let svid = ours.leaf().spiffe(server).dns("localhost").issue();
    let files = svid.write(directory.path(), "server");
    *has.svid.lock().unwrap() = Some(svid);
    let mut bundles = ours.svid_bundles();
    bundles.domains.extend(theirs.svid_bundles().domains);
    *has.bundles.lock().unwrap() = bundles;
    let ids = [
        "spiffe://example.org/prometheus",
        "spiffe://other.org/prometheus",
    ];
    let with_files = PrometheusTls {
        authorized_spiffe_ids: of_spiffe(&ids).authorized_spiffe_ids,
        ..tls(files.cert, files.key)
    };
    for tls in [of_spiffe(&ids), with_files] {
        let (address, stop) = serving_as(config(Some(tls)), has.clone()).await;
        let ask = async |ca: &TestCa, id: &str| {
            let client = ca.leaf().spiffe(id).issue();
            asked_by_spiffe(address, server, &ours, Some(&client)).await
        };
        for (ca, id) in [(&ours, ids[0]), (&theirs, ids[1])] {
            let answer = ask(ca, id).await.unwrap();
            assert!(answer.ends_with(METRIC), "{answer}");
        }
        assert!(ask(&ours, "spiffe://example.org/other").await.is_err());
        assert!(ask(&theirs, ids[0]).await.is_err(), "of another's bundle");
        let nobody = asked_by_spiffe(address, server, &ours, None).await;
        assert!(nobody.is_err());
        stop.cancel();
    }
    // A bundle that is gone: nobody of that trust domain is known any more.
    let (address, stop) = serving_as(config(Some(of_spiffe(&ids))), has.clone()).await;
    has.bundles.lock().unwrap().domains.clear();
    let client = ours.leaf().spiffe(ids[0]).issue();
    let late = asked_by_spiffe(address, server, &ours, Some(&client)).await;
    assert!(late.is_err());
    stop.cancel();
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_by_name() {
    // Inventory §10: tls { }, with upstream's texts
    let whole = tls("c.pem".into(), "k.pem".into());
    let refused = async |tls| {
        let config = config(Some(tls));
        let fault = PrometheusListener::bind(&config, Metrics::off(), nobody(), false).await;
        let fault = fault.err().unwrap();
        assert!(fault.hint.is_some());
        fault.text
    };
    let both = PrometheusTls {
        use_spire_svid: true,
        ..whole.clone()
    };
    let text = refused(both).await;
    assert!(text.ends_with("cannot be configured when use_spire_svid is enabled"));
    let half = PrometheusTls {
        key_file: None,
        ..whole.clone()
    };
    let text = refused(half).await;
    assert!(text.ends_with("must both be configured unless use_spire_svid is enabled"));
    let twice = PrometheusTls {
        client_ca_file: Some("ca.pem".into()),
        ..of_spiffe(&["spiffe://example.org/p"])
    };
    let text = refused(twice).await;
    assert!(text.ends_with("client_ca_file cannot be configured with authorized_spiffe_ids"));
    assert!(refused(whole).await.ends_with("c.pem cannot be used"));
}

fn nobody() -> Arc<Has> {
    Arc::default()
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = Prometheus {
        port,
        ..config(None)
    };
    let fault = PrometheusListener::bind(&config, Metrics::off(), nobody(), false).await;
    let text = fault.err().unwrap().text;
    assert_eq!(
        text,
        format!("cannot listen for Prometheus on 127.0.0.1:{port}")
    );
}
