//! `trust_bundle_url`: one GET, over HTTPS with the machine's roots, or over HTTP to a unix socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use url::Url;

/// The largest bundle, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// All of it.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn get(url: &str, unix_socket: Option<&Path>) -> Result<Bytes, String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    let whole = Box::pin(async {
        match unix_socket {
            Some(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                exchange(&url, stream).await
            }
            None => exchange(&url, https(&url).await?).await,
        }
    });
    tokio::time::timeout(TIMEOUT, whole)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())))
}

async fn https(url: &Url) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, String> {
    let host = url.host_str().ok_or("it has no host")?;
    let bare = host.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().ok_or("it has no port")?;
    let name = ServerName::try_from(bare.clone()).map_err(|error| error.to_string())?;
    let tcp = TcpStream::connect((bare.as_str(), port))
        .await
        .map_err(|error| format!("{host}:{port}: {error}"))?;
    let config = tokio::task::spawn_blocking(client_config)
        .await
        .map_err(|error| error.to_string())??;
    TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| format!("{host}:{port}: TLS: {error}"))
}

/// The web's TLS: 1.2 counts, and the roots are those of the machine.
fn client_config() -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(match found.errors.first() {
            Some(error) => format!("this machine's CA certificates cannot be read: {error}"),
            None => "this machine has no CA certificates (SSL_CERT_FILE names them)".into(),
        });
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn exchange<T>(url: &Url, stream: T) -> Result<Bytes, String>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let told = |error: hyper::Error| error.to_string();
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
    let connection = tokio::spawn(connection);
    let target = url.query().map_or_else(
        || url.path().to_owned(),
        |query| format!("{}?{query}", url.path()),
    );
    let host = url.host_str().unwrap_or("localhost");
    let host = url
        .port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "spire-agent")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = requests.send_request(request).await.map_err(told)?;
    let status = answer.status();
    if status.is_redirection() {
        let to = answer.headers().get(header::LOCATION);
        let to = to
            .and_then(|to| to.to_str().ok())
            .unwrap_or("another place");
        return Err(format!(
            "it redirects to {to}: name that in trust_bundle_url"
        ));
    }
    if status != StatusCode::OK {
        return Err(format!("the answer is {status}"));
    }
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    connection.abort();
    body.map(|body| body.to_bytes())
        .map_err(|error| error.to_string())
}
