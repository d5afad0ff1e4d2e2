use std::path::PathBuf;

use ah_spire_plugin::telemetry::TelemetryConfig;
use ah_testkit::ca::{TestCa, TestLeaf};
use rustls::ClientConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use spiffe::TrustDomain;
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

/// Metrics with one counter in them, served.
async fn serving(config: Prometheus) -> (SocketAddr, CancellationToken) {
    let telemetry = TelemetryConfig {
        prometheus: Some(config.clone()),
        ..TelemetryConfig::default()
    };
    let trust_domain = TrustDomain::new("example.org").unwrap();
    let (metrics, _) = Metrics::new(&telemetry, Program::Agent, &trust_domain).unwrap();
    metrics.counter(&["sds_api", "connection"], &[]).increment();
    let listener = PrometheusListener::bind(&config, metrics, false)
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

#[tokio::test]
async fn what_is_not_done_is_refused_by_name() {
    // Inventory §10: use_spire_svid, authorized_spiffe_ids
    let whole = tls("c.pem".into(), "k.pem".into());
    let refused = async |tls| {
        let fault = PrometheusListener::bind(&config(Some(tls)), Metrics::off(), false).await;
        let fault = fault.err().unwrap();
        assert!(fault.hint.is_some());
        fault.text
    };
    let svid = PrometheusTls {
        use_spire_svid: true,
        ..whole.clone()
    };
    assert!(
        refused(svid)
            .await
            .ends_with("use_spire_svid is not supported")
    );
    let ids = PrometheusTls {
        authorized_spiffe_ids: vec!["spiffe://example.org/p".into()],
        ..whole.clone()
    };
    assert!(
        refused(ids)
            .await
            .ends_with("authorized_spiffe_ids is not supported")
    );
    let half = PrometheusTls {
        key_file: None,
        ..whole.clone()
    };
    assert!(refused(half).await.ends_with("must both be set"));
    assert!(refused(whole).await.ends_with("c.pem cannot be used"));
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = Prometheus {
        port,
        ..config(None)
    };
    let fault = PrometheusListener::bind(&config, Metrics::off(), false).await;
    let text = fault.err().unwrap().text;
    assert_eq!(
        text,
        format!("cannot listen for Prometheus on 127.0.0.1:{port}")
    );
}
