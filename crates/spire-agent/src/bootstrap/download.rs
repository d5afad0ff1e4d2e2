//! `trust_bundle_url`: a GET, over HTTPS with the machine's roots, or over HTTP to a unix socket. Redirects are followed.

use std::path::Path;
use std::time::Duration;

use ah_spire_wire::download::{Answer, dial, get as ask, host_of};
use ah_tls::WebClient;
use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use url::Url;

/// All of it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Requests before the last redirect is given up on, as with upstream.
const REQUESTS: usize = 10;

const AGENT: &str = "spire-agent";

/// A connection, whatever it runs over.
trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

pub(super) async fn get(url: &str, unix_socket: Option<&Path>) -> Result<Bytes, String> {
    let mut url = Url::parse(url).map_err(|error| error.to_string())?;
    let whole = Box::pin(async {
        for _ in 0..REQUESTS {
            let answer = fetch(&url, unix_socket).await?;
            if is_redirect(answer.status) {
                let status = answer.status;
                let to = answer.location;
                let to = to.ok_or_else(|| format!("the answer is {status} without a Location"))?;
                url = redirected(&url, &to)?;
            } else if answer.status == StatusCode::OK {
                return Ok(answer.body);
            } else {
                return Err(format!("the answer is {}", answer.status));
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
async fn fetch(url: &Url, unix_socket: Option<&Path>) -> Result<Answer, String> {
    let host = host_of(url)?;
    let (place, transport): (String, Box<dyn Transport>) = match unix_socket {
        Some(path) => {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|error| format!("{}: {error}", path.display()))?;
            (path.display().to_string(), Box::new(stream))
        }
        None => {
            let port = url.port_or_known_default().ok_or("it has no port")?;
            (format!("{host}:{port}"), Box::new(dial(url).await?))
        }
    };
    if url.scheme() != "https" {
        return ask(url, AGENT, transport).await;
    }
    let web = tokio::task::spawn_blocking(|| WebClient::new(false));
    let web = web.await.map_err(|error| error.to_string())??;
    let stream = web.connect(host, transport).await;
    let stream = stream.map_err(|fault| format!("{place}: TLS: {fault}"))?;
    ask(url, AGENT, stream).await
}

/// Those that tell a GET to go elsewhere (RFC 9110 §15.4).
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
