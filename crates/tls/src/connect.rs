//! An executor's way to the access point: name, TCP, TLS, under one deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ah_identity_provider::{Code, Explained, Published};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::alert::{explain_tls, find_tls, no_alpn};
use crate::configs::ALPN;
use crate::handshake::with_verdict;
use crate::{ClientConfigs, PeerIdentity, VerifyError};

/// A connection to a verified access point.
///
/// With TLS 1.3 it stands before the access point has looked at our certificate; see [`Fate`].
pub struct Connected {
    /// The encrypted stream.
    pub stream: ExecutorStream,
    /// Who is at the other end.
    pub server: PeerIdentity,
    /// The address that answered.
    pub remote: SocketAddr,
    /// Generation of the identity that we presented.
    pub generation: u64,
    /// That identity.
    pub published: Arc<Published>,
    /// Whether the access point refused us after all.
    pub fate: Fate,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected")
            .field("server", &self.server)
            .field("remote", &self.remote)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fate").field(&self.0.error.get()).finish()
    }
}

/// What TLS said when a connection broke.
///
/// A TLS 1.3 client is done before the server has judged its certificate and reads the refusal where it
/// expects the first answer; HTTP/2 libraries then keep the text of the error and lose its type. Ask here
/// first after any error on the connection.
#[derive(Clone)]
pub struct Fate(Arc<Known>);

struct Known {
    error: OnceLock<rustls::Error>,
    published: Arc<Published>,
    access_point: String,
}

impl Fate {
    /// The refusal (ER-7, ER-20, ER-21) or other TLS fault that broke the connection, if one did.
    pub fn explain(&self) -> Option<Explained> {
        let error = self.0.error.get()?;
        let own = self.0.published.identity.leaf();
        Some(explain_tls(error, own, &self.0.access_point))
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && let Some(tls) = find_tls(error)
        {
            let _ = self.0.error.set(tls.clone());
        }
        result
    }
}

/// The stream of a [`Connected`]; it keeps what TLS says for its [`Fate`].
pub struct ExecutorStream {
    tls: TlsStream<TcpStream>,
    fate: Fate,
}

impl std::fmt::Debug for ExecutorStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorStream").finish_non_exhaustive()
    }
}

impl AsyncRead for ExecutorStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_read(cx, buf));
        Poll::Ready(self.fate.note(result))
    }
}

impl AsyncWrite for ExecutorStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.tls).poll_write(cx, buf));
        Poll::Ready(self.fate.note(result))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_flush(cx));
        Poll::Ready(self.fate.note(result))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_shutdown(cx));
        Poll::Ready(self.fate.note(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.tls).poll_write_vectored(cx, bufs));
        Poll::Ready(self.fate.note(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}

/// How far a connection came, for who looks for what is wrong (`doctor`).
#[derive(Debug, Default)]
pub struct Trace {
    /// What the name was resolved to. Empty: it was not.
    pub addresses: Vec<SocketAddr>,
    /// The address that accepted a TCP connection. `None`: none did.
    pub remote: Option<SocketAddr>,
    /// The judgement that ended the handshake on our side. `None`: the certificate was accepted, or the
    /// handshake did not come so far.
    pub refused: Option<VerifyError>,
}

/// Connects to the access point at `host` (a DNS name or an IP address without brackets).
///
/// Looking up the name, trying each of its addresses and the TLS handshake share `timeout`.
pub async fn connect(
    host: &str,
    port: u16,
    configs: &ClientConfigs,
    timeout: Duration,
) -> Result<Connected, Explained> {
    connect_traced(host, port, configs, timeout, &mut Trace::default()).await
}

/// As [`connect`], and fills in how far it came.
pub async fn connect_traced(
    host: &str,
    port: u16,
    configs: &ClientConfigs,
    timeout: Duration,
    trace: &mut Trace,
) -> Result<Connected, Explained> {
    let target = Target { host, port };
    let name = target.name()?;
    let mut stage = Stage::Resolve;
    let all = async {
        let (tcp, remote) = target
            .reach(Instant::now() + timeout, &mut stage, trace)
            .await?;
        stage = Stage::Tls(remote);
        target.handshake(name, configs, tcp, remote, trace).await
    };
    match tokio::time::timeout(timeout, all).await {
        Ok(outcome) => outcome,
        Err(_) => Err(target.timed_out(timeout, stage)),
    }
}

/// Looks up the name and opens a TCP connection, which is closed at once: what can be said without an identity.
pub async fn reach(
    host: &str,
    port: u16,
    timeout: Duration,
    trace: &mut Trace,
) -> Result<(), Explained> {
    let target = Target { host, port };
    target.name()?;
    let mut stage = Stage::Resolve;
    let all = target.reach(Instant::now() + timeout, &mut stage, trace);
    match tokio::time::timeout(timeout, all).await {
        Ok(outcome) => outcome.map(|_| ()),
        Err(_) => Err(target.timed_out(timeout, stage)),
    }
}

/// How far a connection came.
enum Stage {
    Resolve,
    Tcp(Vec<String>),
    Tls(SocketAddr),
}

struct Target<'a> {
    host: &'a str,
    port: u16,
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Target<'_> {
    fn name(&self) -> Result<ServerName<'static>, Explained> {
        ServerName::try_from(self.host.to_owned()).map_err(|error| {
            Explained::new(Code::Usage, format!("`{}` is no host name", self.host))
                .cause(error)
                .hint("--remote-server takes https://HOST:PORT with a DNS name or an IP address")
        })
    }

    async fn reach(
        &self,
        deadline: Instant,
        stage: &mut Stage,
        trace: &mut Trace,
    ) -> Result<(TcpStream, SocketAddr), Explained> {
        let addresses = self.resolve().await?;
        trace.addresses.clone_from(&addresses);
        let (tcp, remote) = self.tcp(&addresses, deadline, stage).await?;
        trace.remote = Some(remote);
        Ok((tcp, remote))
    }

    async fn handshake(
        &self,
        name: ServerName<'static>,
        configs: &ClientConfigs,
        tcp: TcpStream,
        remote: SocketAddr,
        trace: &mut Trace,
    ) -> Result<Connected, Explained> {
        // Read as late as can be: a rotation while we waited for TCP counts.
        let tls = configs.current();
        let published = tls.published().clone();
        let connector = TlsConnector::from(tls.config().clone());
        let (outcome, verdict) = with_verdict(Box::pin(connector.connect(name, tcp))).await;
        let fate = Fate(Arc::new(Known {
            error: OnceLock::new(),
            published: published.clone(),
            access_point: self.to_string(),
        }));
        let stream = match (outcome, &verdict) {
            (Ok(stream), _) => stream,
            (Err(_), Some(Err(refused))) => {
                trace.refused = Some(refused.clone());
                return Err(refused.explained().clone());
            }
            (Err(error), _) => return Err(self.tls_failed(&error, &fate)),
        };
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(no_alpn(&self.to_string()));
        }
        let Some(Ok(server)) = verdict else {
            return Err(
                Explained::new(Code::VerifyFailed, crate::fault::VERIFY_FAILED)
                    .cause("the access point's certificate was not judged"),
            );
        };
        Ok(Connected {
            stream: ExecutorStream {
                tls: stream,
                fate: fate.clone(),
            },
            server,
            remote,
            generation: tls.generation(),
            published,
            fate,
        })
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, Explained> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let unresolved = |cause: String| {
            // A resolver that is down comes back: worth another attempt, as EN-13 has it.
            Explained::new(Code::Unavailable, format!("cannot resolve {}", self.host))
                .cause(cause)
                .hint(format!(
                    "`dig {}` or `getent hosts {}` shows what the resolver knows; try the IP address of the access point",
                    self.host, self.host
                ))
        };
        let found = tokio::net::lookup_host((self.host, self.port))
            .await
            .map_err(|error| unresolved(error.to_string()))?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(unresolved("the name has no address".into()));
        }
        Ok(addresses)
    }

    /// Tries each address in turn. One that does not answer may use its fair share of what is left of
    /// the time, so that the last is tried too.
    async fn tcp(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
        stage: &mut Stage,
    ) -> Result<(TcpStream, SocketAddr), Explained> {
        let mut failures: Vec<(String, io::ErrorKind)> = Vec::new();
        for (tried, address) in addresses.iter().enumerate() {
            let mut told: Vec<String> = failures.iter().map(|(text, _)| text.clone()).collect();
            told.push(format!("{address}: no answer"));
            *stage = Stage::Tcp(told);
            let left = deadline.saturating_duration_since(Instant::now());
            let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let is_last = untried == 1;
            let connecting = open(*address);
            let outcome = if is_last {
                // The deadline over all of it ends this one, and names the timeout as configured.
                connecting.await
            } else {
                tokio::time::timeout(left / untried, connecting)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            };
            match outcome {
                Ok(stream) => return Ok((stream, *address)),
                Err(error) => failures.push((format!("{address}: {error}"), error.kind())),
            }
        }
        Err(self.no_tcp(failures))
    }

    fn no_tcp(&self, failures: Vec<(String, io::ErrorKind)>) -> Explained {
        let any = |kind| failures.iter().any(|(_, found)| *found == kind);
        let explained = if any(io::ErrorKind::ConnectionRefused) {
            Explained::new(
                Code::ConnectionRefused,
                format!("connection refused to {self}"),
            )
            .hint(format!(
                "on the access point, check `systemctl status ah-access-point` and `ss -tlnp | grep {}`; check host, port and firewall",
                self.port
            ))
        } else {
            // The kernel's own timeout is not ours, so ER-2 with its duration would be wrong.
            Explained::new(Code::Unavailable, format!("cannot connect to {self}")).hint(format!(
                "check the route with `ip route get` and `traceroute {}`",
                self.host
            ))
        };
        failures
            .into_iter()
            .fold(explained, |explained, (text, _)| explained.cause(text))
    }

    fn tls_failed(&self, error: &io::Error, fate: &Fate) -> Explained {
        if let Some(tls) = find_tls(error) {
            return explain_tls(tls, fate.0.published.identity.leaf(), &fate.0.access_point);
        }
        Explained::new(
            Code::Unavailable,
            format!("{self} closed the connection during the tls handshake"),
        )
        .cause(error)
        .hint("a busy access point sheds handshakes: try again; if it stays, check that host and port are the access point's")
    }

    fn timed_out(&self, timeout: Duration, stage: Stage) -> Explained {
        let explained = Explained::new(
            Code::ConnectionTimedOut,
            format!("connection timed out after {}", humane(timeout)),
        );
        match stage {
            Stage::Resolve => explained
                .cause(format!("the name {} was not resolved in time", self.host))
                .hint(format!("check the resolver with `dig {}`", self.host)),
            Stage::Tcp(tried) => tried
                .into_iter()
                .fold(explained, |explained, text| explained.cause(text))
                .hint(format!(
                    "a firewall that drops packets or a wrong route: try `traceroute {0}`, `nc -zv {0} {1}`",
                    self.host, self.port
                )),
            Stage::Tls(remote) => explained
                .cause(format!("{remote} accepted the connection and did not finish the tls handshake"))
                .hint("check that host and port are the access point's, and its log"),
        }
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_keepalive(true)?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// `30s`, `1m30s`, `250ms`: as people type it.
fn humane(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let millis = duration.subsec_millis();
    let (minutes, rest) = (seconds / 60, seconds % 60);
    let mut out = String::new();
    if minutes > 0 {
        out.push_str(&format!("{minutes}m"));
    }
    if rest > 0 || (minutes == 0 && millis == 0) {
        out.push_str(&format!("{rest}s"));
    }
    if millis > 0 {
        out.push_str(&format!("{millis}ms"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn er_2_durations_read_as_they_are_typed() {
        // ER-2
        assert_eq!(humane(Duration::from_secs(30)), "30s");
        assert_eq!(humane(Duration::from_secs(90)), "1m30s");
        assert_eq!(humane(Duration::from_millis(1250)), "1s250ms");
        assert_eq!(humane(Duration::from_millis(50)), "50ms");
        assert_eq!(humane(Duration::from_secs(120)), "2m");
    }
}
