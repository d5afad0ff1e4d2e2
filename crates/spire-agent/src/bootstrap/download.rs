//! `trust_bundle_url`: a GET, over HTTPS with the machine's roots, or over HTTP to a unix socket. Redirects are followed.

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

/// Requests before the last redirect is given up on, as with upstream.
const REQUESTS: usize = 10;

/// A connection, whatever it runs over.
trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

pub(super) async fn get(url: &str, unix_socket: Option<&Path>) -> Result<Bytes, String> {
    let mut url = Url::parse(url).map_err(|error| error.to_string())?;
    let whole = Box::pin(async {
        for _ in 0..REQUESTS {
            match exchange(&url, connect(&url, unix_socket).await?).await? {
                Answer::Bundle(bundle) => return Ok(bundle),
                Answer::Elsewhere(location) => url = redirected(&url, &location)?,
            }
        }
        Err(format!("it redirects more than {} times", REQUESTS - 1))
    });
    tokio::time::timeout(TIMEOUT, whole)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())))
}

/// Where `location` leads from `url`. Not from HTTPS to HTTP, where anybody on the way could answer with a bundle of his
/// own.
fn redirected(url: &Url, location: &str) -> Result<Url, String> {
    let to = url
        .join(location)
        .map_err(|error| format!("it redirects to {location}: {error}"))?;
    match (url.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        _ => Err(format!(
            "it redirects to {to}, which is not https: name an address in trust_bundle_url that stays with https"
        )),
    }
}

/// Whatever the host, what is asked is the socket, where there is one.
async fn connect(url: &Url, unix_socket: Option<&Path>) -> Result<Box<dyn Transport>, String> {
    let host = url.host_str().ok_or("it has no host")?;
    let bare = host.trim_matches(['[', ']']);
    let port = url.port_or_known_default().ok_or("it has no port")?;
    let (place, transport): (String, Box<dyn Transport>) = match unix_socket {
        Some(path) => {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|error| format!("{}: {error}", path.display()))?;
            (path.display().to_string(), Box::new(stream))
        }
        None => {
            let stream = TcpStream::connect((bare, port))
                .await
                .map_err(|error| format!("{host}:{port}: {error}"))?;
            (format!("{host}:{port}"), Box::new(stream))
        }
    };
    if url.scheme() != "https" {
        return Ok(transport);
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
    let config = tokio::task::spawn_blocking(client_config)
        .await
        .map_err(|error| error.to_string())??;
    let stream = TlsConnector::from(config)
        .connect(name, transport)
        .await
        .map_err(|error| format!("{place}: TLS: {error}"))?;
    Ok(Box::new(stream))
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

/// What a server has to say.
enum Answer {
    Bundle(Bytes),
    /// `Location`
    Elsewhere(String),
}

async fn exchange(url: &Url, stream: Box<dyn Transport>) -> Result<Answer, String> {
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
    if is_redirect(status) {
        let to = answer.headers().get(header::LOCATION);
        let to = to.and_then(|to| to.to_str().ok());
        let to = to.ok_or_else(|| format!("the answer is {status} without a Location"))?;
        return Ok(Answer::Elsewhere(to.to_owned()));
    }
    if status != StatusCode::OK {
        return Err(format!("the answer is {status}"));
    }
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    connection.abort();
    body.map(|body| Answer::Bundle(body.to_bytes()))
        .map_err(|error| error.to_string())
}

/// Those that tell a GET to go elsewhere (RFC 9110 §15.4).
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
