//! Settings of the network's door (inventory section 5).

use std::process::Command;
use std::sync::Arc;

use ah_identity_provider::SystemClock;
use ah_spire_wire::Channel;
use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_testkit::process::eventually;
use ah_tls::{HandshakeFault, ServerTrust, SpiffeClient};
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use spiffe::SpiffeId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::server::{PROGRAM, Server, place};

const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" log_level = "DEBUG" audit_log_enabled = true proxy_protocol_trusted_cidrs = ["127.0.0.0/8"] experimental { require_pq_kem = true feature_flags = ["i_am_a_test_flag"] } } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "join_token" { plugin_data {} } KeyManager "memory" { plugin_data {} } }"#;

/// The port of its API.
fn port(server: &Server) -> u16 {
    let conf = std::fs::read_to_string(server.folder.path().join("etc/server.conf")).unwrap();
    let (_, port) = conf.split_once("bind_port = \"").unwrap();
    port.split('"').next().unwrap().parse().unwrap()
}

/// A connection that begins with `header`, before TLS.
async fn connect(server: &Server, header: &[u8]) -> Result<Channel, HandshakeFault> {
    let mut stream = TcpStream::connect(("127.0.0.1", port(server)))
        .await
        .unwrap();
    stream.write_all(header).await.unwrap();
    let name = SpiffeId::new("spiffe://example.org/spire/server").unwrap();
    let clock = Arc::new(SystemClock);
    let client = SpiffeClient::new(name, ServerTrust::FirstUse, None, true, clock).unwrap();
    let (stream, _) = client.handshake(stream).await?;
    Ok(Channel::over(stream).await.unwrap())
}

async fn bundle(channel: Channel) {
    let mut client = BundleClient::with_origin(channel, Channel::origin());
    client
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_tells_who_calls_and_key_exchanges_are_post_quantum() {
    let server = Server::start_in(place(CONF), Command::new(PROGRAM));
    let called_by = |address: &str| {
        let told = |line: &str| line.contains("caller_addr=") && line.contains(address);
        eventually(address, || server.log().lines().any(told).then_some(()));
    };
    // proxy_protocol_trusted_cidrs
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 8081\r\n";
    bundle(connect(&server, header).await.unwrap()).await;
    called_by("192.0.2.7:56324");
    bundle(connect(&server, b"").await.unwrap()).await;
    called_by("127.0.0.1:");
    assert!(connect(&server, b"PROXY nonsense\r\n").await.is_err());

    // require_pq_kem: who has other key exchanges alone is told that there is none in common.
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port(&server)))
        .await
        .unwrap();
    let name = ServerName::try_from("spire-server").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let error = connector.connect(name, stream).await.unwrap_err();
    let refused = rustls::Error::AlertReceived(AlertDescription::HandshakeFailure);
    assert!(error.to_string().contains(&refused.to_string()), "{error}");
}
