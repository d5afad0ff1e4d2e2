//! The proxy that TLS connections go through: `HTTPS_PROXY` and `NO_PROXY` of the environment, or the same in small
//! letters, as upstream's programs read them.

mod exception;

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use url::Url;
use zeroize::Zeroizing;

use exception::Exception;

/// How hosts are reached that speak TLS.
#[derive(Clone, Default)]
pub struct Proxies {
    https: Option<Proxy>,
    never: Vec<Exception>,
}

#[derive(Clone)]
struct Proxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// A connection to `host` (an IPv6 address without its brackets) and `port`, through this process's proxy if it has one.
///
/// # Errors
/// There is none to be had, or the environment names no proxy that can be used.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let proxies = Proxies::read(|name| std::env::var(name).ok())?;
    proxies.connect(host, port).await
}

impl Proxies {
    /// By the variables of an environment.
    ///
    /// # Errors
    /// `HTTPS_PROXY` is not the address of a proxy that is reached over HTTP. What it says is not repeated: it may have a
    /// password.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |large: &str, small: &str| {
            let set = |name| variable(name).filter(|value| !value.is_empty());
            set(large).or_else(|| set(small))
        };
        let proxy = set("HTTPS_PROXY", "https_proxy").map(Zeroizing::new);
        let never = set("NO_PROXY", "no_proxy").unwrap_or_default();
        Ok(Self {
            https: proxy.map(|text| Proxy::parse(&text)).transpose()?,
            never: Exception::list(&never),
        })
    }

    /// A connection to `host` and `port`.
    ///
    /// # Errors
    /// There is none to be had; the text names the proxy where it is at fault.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let Some(proxy) = self.towards(host, port) else {
            let stream = TcpStream::connect((host, port)).await;
            return stream.map_err(|error| error.to_string());
        };
        let tunnel = Box::pin(proxy.tunnel(host, port)).await;
        tunnel.map_err(|why| format!("HTTPS_PROXY {}:{}: {why}", proxy.host, proxy.port))
    }

    /// Never for this machine itself.
    fn towards(&self, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = self.https.as_ref()?;
        let host = host.to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok().map(|it: IpAddr| it.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let excepted = { self.never.iter() }.any(|it| it.is(&host, address, port));
        (!excepted).then_some(proxy)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = { self.https.as_ref() }.map(|proxy| (&proxy.host, proxy.port));
        f.debug_struct("Proxies")
            .field("https", &proxy)
            .field("never", &self.never)
            .finish()
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Self, String> {
        let whole = |url: &Url| {
            url.has_host() && ["http", "https", "socks5", "socks5h"].contains(&url.scheme())
        };
        let url = Url::parse(text).ok().filter(whole);
        let bare = (!text.contains("://")).then(|| format!("http://{text}"));
        let url = url.or_else(|| Url::parse(&bare?).ok());
        let url = url.ok_or("HTTPS_PROXY is not the address of a proxy: write http://HOST:PORT")?;
        if url.scheme() != "http" {
            return Err(format!(
                "HTTPS_PROXY: a proxy that is reached over {} is not supported: write http://HOST:PORT",
                url.scheme()
            ));
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("HTTPS_PROXY names no host".into());
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authorization: authorization(&url)?,
        })
    }

    /// RFC 9110 §9.3.6.
    async fn tunnel(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let told = |error: hyper::Error| error.to_string();
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let to = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut request = Request::connect(&to).header(header::HOST, &to);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        let (mut requests, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
        let answer = requests.send_request(request).await.map_err(told)?;
        if answer.status() != StatusCode::OK {
            return Err(format!("no way to {to}: {}", answer.status()));
        }
        let tunnel = hyper::upgrade::on(answer).await.map_err(told)?;
        match tunnel.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            // In TLS the client speaks first.
            _ => Err(format!("it speaks for {to} before it is asked")),
        }
    }
}

/// User and password of `url` (RFC 7617).
fn authorization(url: &Url) -> Result<Option<HeaderValue>, String> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let mut both = Zeroizing::new(decoded(url.username()));
    both.push(b':');
    both.extend_from_slice(&Zeroizing::new(decoded(url.password().unwrap_or_default())));
    let basic = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*both)));
    let mut value = HeaderValue::from_str(&basic).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Without percent signs (RFC 3986 §2.1).
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = match (first, after) {
            (b'%', [high, low, ..]) => str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        bytes.push(hex.unwrap_or(*first));
        rest = match hex {
            Some(_) => after.get(2..).unwrap_or_default(),
            None => after,
        };
    }
    bytes
}

#[cfg(test)]
mod tests;
