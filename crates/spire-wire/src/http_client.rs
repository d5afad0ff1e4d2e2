//! Requests over HTTP/1.1 to the services beside SPIRE: platforms, container engines, and whoever publishes a
//! bundle.

mod nameless;
mod pool;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::proxy;
use nameless::Nameless;
use pool::{Open, Place, Pool};

/// The largest answer that is read unless [`HttpClient::reading`] says otherwise, in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// How long a request may take, with connecting and the whole answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whose certificates a server may have.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The web's, as this machine has them (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
    Machine,
    /// These alone.
    Only(Vec<CertificateDer<'static>>),
    /// These alone, and whatever name the certificate has: for a server that is dialled at an address which no
    /// certificate has, such as the machine's own.
    AnyName(Vec<CertificateDer<'static>>),
    /// Whoever answers is taken for the server.
    Unverified,
}

/// Sends requests over connections that are kept for a while, TLS through the proxy that the environment names, if it
/// names one ([`proxy`]). Redirects are answers like others. Clones have their connections together.
#[derive(Clone)]
pub struct HttpClient {
    tls: Arc<ClientConfig>,
    pool: Arc<Pool>,
    most: usize,
    direct: bool,
}

impl HttpClient {
    /// A client that trusts `roots`, and shows `identity` to servers that ask for one. Servers of TLS 1.2 count.
    ///
    /// # Errors
    /// Says what is wrong with the roots or the identity. Roots of the machine are read from disk now.
    pub fn new(
        roots: Roots,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Self, String> {
        let told = |error: rustls::Error| error.to_string();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(told)?;
        let nameless = |roots| Arc::new(Nameless::new(roots, algorithms));
        let config = match roots {
            Roots::Machine => config.with_root_certificates(of_this_machine()?),
            Roots::Only(roots) => config.with_root_certificates(store(roots)?),
            Roots::AnyName(roots) => config
                .dangerous()
                .with_custom_certificate_verifier(nameless(Some(store(roots)?))),
            Roots::Unverified => config
                .dangerous()
                .with_custom_certificate_verifier(nameless(None)),
        };
        let config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(told)?,
            None => config.with_no_client_auth(),
        };
        Ok(Self {
            tls: Arc::new(config),
            pool: Arc::default(),
            most: MAX_BYTES,
            direct: false,
        })
    }

    /// This process's client of the web, with the roots of the machine as they were when it was first asked for.
    ///
    /// # Errors
    /// As [`Self::new`]; it is tried again the next time.
    pub fn web() -> Result<Self, String> {
        static WEB: OnceLock<HttpClient> = OnceLock::new();
        match WEB.get() {
            Some(web) => Ok(web.clone()),
            None => Self::new(Roots::Machine, None).map(|web| WEB.get_or_init(|| web).clone()),
        }
    }

    /// Passes the proxy by: for what is on this machine.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Reads answers of up to `most` bytes.
    #[must_use]
    pub fn reading(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// A client for `http` alone: it trusts no certificate.
    pub fn plain() -> Result<Self, String> {
        Self::new(Roots::Only(Vec::new()), None)
    }

    /// The answer to `request`, whose URI is absolute: `https`, or `http` without TLS. It is sent a second time where a
    /// connection that was kept ends without a byte of an answer: servers end those whenever they like.
    ///
    /// # Errors
    /// Names the host and port, and what failed.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or_else(|| format!("{uri} has no host"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(format!("{uri} is neither https:// nor http://")),
        };
        let place = Place {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        };
        let whole = Box::pin(self.converse(request, &place));
        let answer = tokio::time::timeout(TIMEOUT, whole)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())));
        answer.map_err(|error| format!("{host}:{}: {error}", place.port))
    }

    async fn converse(
        &self,
        request: Request<Bytes>,
        place: &Place,
    ) -> Result<Response<Bytes>, String> {
        let told = |error: hyper::Error| error.to_string();
        let request = to_server(request)?;
        let kept = match self.pool.take(place).await {
            None => None,
            Some(mut kept) => match kept.requests.send_request(request.clone()).await {
                Ok(answer) => Some((kept, answer)),
                Err(error) => {
                    tracing::debug!(%error, host = place.host, "a kept connection had ended");
                    None
                }
            },
        };
        let (open, answer) = match kept {
            Some(answered) => answered,
            None => {
                let mut open = self.open(place).await?;
                let answer = open.requests.send_request(request).await.map_err(told)?;
                (open, answer)
            }
        };
        let answer = whole(answer, self.most).await?;
        self.pool.keep(place, open);
        Ok(answer)
    }

    async fn open(&self, place: &Place) -> Result<Open, String> {
        let Place { tls, host, port } = place;
        if !*tls || self.direct {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            let stream = stream.map_err(|error| error.to_string())?;
            if !*tls {
                return Open::over(stream).await;
            }
            return self.secured(host, stream).await;
        }
        self.secured(host, proxy::connect(host, *port).await?).await
    }

    async fn secured(&self, host: &str, stream: TcpStream) -> Result<Open, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(name, stream).await;
        Open::over(stream.map_err(|error| format!("TLS: {error}"))?).await
    }
}

fn store(roots: Vec<CertificateDer<'static>>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        let added = store.add(root);
        added.map_err(|error| format!("a CA certificate is not usable: {error}"))?;
    }
    Ok(store)
}

fn of_this_machine() -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(match found.errors.first() {
            Some(error) => format!("this machine's CA certificates cannot be read: {error}"),
            None => "this machine has no CA certificates (SSL_CERT_FILE names them)".into(),
        });
    }
    Ok(store)
}

/// One request and its answer of up to `most` bytes over `stream`; the URI of `request` is absolute. Whoever calls says
/// how long it may take.
///
/// # Errors
/// Says what is wrong with the request, the connection or the answer.
pub async fn exchange<T>(
    request: Request<Bytes>,
    stream: T,
    most: usize,
) -> Result<Response<Bytes>, String>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = to_server(request)?;
    let mut open = Open::over(stream).await?;
    let answer = open.requests.send_request(request).await;
    whole(answer.map_err(|error| error.to_string())?, most).await
}

/// As servers are asked: by path, the host beside it.
fn to_server(mut request: Request<Bytes>) -> Result<Request<Full<Bytes>>, String> {
    let uri = std::mem::take(request.uri_mut());
    // Without the user and password that an authority may have (RFC 9110 §7.2).
    let host = uri.host().unwrap_or("localhost");
    let host = uri
        .port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let host = HeaderValue::from_str(&host).map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    let target = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    *request.uri_mut() = target.parse::<Uri>().map_err(|error| error.to_string())?;
    Ok(request.map(Full::new))
}

/// The answer with all of its body, of up to `most` bytes.
async fn whole(answer: Response<Incoming>, most: usize) -> Result<Response<Bytes>, String> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, most).collect().await;
    let body = body.map_err(|error| error.to_string())?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

#[cfg(test)]
mod tests;
