//! One GET over HTTP/1.1, which is how trust bundles are fetched. Whoever calls brings the connection, and the time
//! that all of it may take.

use bytes::Bytes;
use http::{Request, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

pub use crate::http_client::MAX_BYTES as MAX_DOCUMENT_BYTES;
use crate::http_client::exchange;
use crate::proxy;

/// What a server answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// `Location`, which is where a redirect points to.
    pub location: Option<String>,
    /// At most [`MAX_DOCUMENT_BYTES`].
    pub body: Bytes,
}

/// The host of `url` as TLS names it: an IPv6 address without its brackets.
///
/// # Errors
/// There is none.
pub fn host_of(url: &Url) -> Result<&str, String> {
    let host = url.host_str().ok_or("it has no host")?;
    Ok(host.trim_matches(['[', ']']))
}

/// A connection to the host and port of `url`, through this process's proxy if it has one.
///
/// # Errors
/// There is none to be had; the text names host and port.
pub async fn dial(url: &Url) -> Result<TcpStream, String> {
    let host = host_of(url)?;
    let port = url.port_or_known_default().ok_or("it has no port")?;
    let stream = proxy::connect(host, port).await;
    stream.map_err(|error| format!("{host}:{port}: {error}"))
}

/// Asks for `url` over `stream`, as `agent` (`User-Agent`).
///
/// # Errors
/// There is no answer, or it is larger than [`MAX_DOCUMENT_BYTES`].
pub async fn get<T>(url: &Url, agent: &str, stream: T) -> Result<Answer, String>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(url.as_str())
        .header(header::USER_AGENT, agent)
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = exchange(request, stream, MAX_DOCUMENT_BYTES).await?;
    let status = answer.status();
    let location = answer.headers().get(header::LOCATION);
    let location = location
        .and_then(|to| to.to_str().ok())
        .map(ToOwned::to_owned);
    Ok(Answer {
        status,
        location,
        body: answer.into_body(),
    })
}
