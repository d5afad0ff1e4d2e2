//! Simulated executors: who they are, and the way to a confirmed session.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::session::{self, Greeting, Stay};
use crate::pki::{Authority, Files};
use crate::tls::ClientTemplate;

/// What is spoken inside TLS. Each ends the handshake with an answer of the server: a TLS 1.3 client believes itself
/// done before the server has looked at its certificate.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// One byte there and back.
    Tcp,
    /// One HTTP/1.1 request.
    Http1,
    /// One gRPC-shaped stream, one message each way.
    H2,
    /// Hello, welcome and heartbeats of the fleet protocol.
    Fleet,
}

impl Protocol {
    pub(crate) fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Tcp => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::H2 | Self::Fleet => &[b"h2"],
        }
    }
}

/// The server under load, and the executors to simulate.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// Address of the server.
    #[arg(long)]
    pub(crate) target: SocketAddr,
    /// What to speak.
    #[arg(long, value_enum)]
    pub(crate) protocol: Protocol,
    /// Folder with the authority that signs the executors' certificates.
    #[arg(long)]
    pub(crate) pki: PathBuf,
    /// Root of the server's certificate, where that is not the same authority.
    #[arg(long)]
    pub(crate) server_ca: Option<PathBuf>,
    /// Process whose CPU time is reported.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Number of the first executor.
    #[arg(long, default_value_t = 0)]
    pub(crate) first_id: u32,
}

/// One simulated executor.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) number: u32,
    /// Random per executor and the same for all its sessions: it is one process that comes back.
    pub(crate) instance: u128,
    tls: TlsConnector,
}

impl Executor {
    fn new(number: u32, config: Arc<ClientConfig>) -> Self {
        Self {
            number,
            instance: rand::random(),
            tls: TlsConnector::from(config),
        }
    }
}

/// Opens connections to the server.
#[derive(Debug)]
pub(crate) struct Dialer {
    target: SocketAddr,
    protocol: Protocol,
    name: ServerName<'static>,
    sources: AtomicU32,
}

/// A TLS connection before anything was said on it.
pub(crate) struct Dialed {
    pub(crate) stream: TlsStream<TcpStream>,
    /// When the first byte of the handshake was about to be sent.
    pub(crate) begun: Instant,
}

impl Dialed {
    pub(crate) fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.stream.get_ref().1.peer_certificates()?.first()
    }
}

impl Dialer {
    pub(crate) fn new(target: &Target) -> io::Result<Self> {
        Ok(Self {
            target: target.target,
            protocol: target.protocol,
            name: ServerName::try_from("localhost").map_err(io::Error::other)?,
            sources: AtomicU32::new(0),
        })
    }

    /// Connects TCP, each connection from the next of 250 loopback addresses, so that ports last.
    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        if !self.target.ip().is_loopback() {
            return Err(io::Error::other("load stays on loopback"));
        }
        let socket = TcpSocket::new_v4()?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let turn = self.sources.fetch_add(1, Ordering::Relaxed) % 250;
        let last = u8::try_from(turn + 1).unwrap_or(1);
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), 0)))?;
        socket.set_nodelay(true)?;
        socket.connect(self.target).await
    }

    pub(crate) async fn dial(&self, executor: &Executor) -> io::Result<Dialed> {
        let stream = self.connect().await?;
        let begun = Instant::now();
        let stream = executor.tls.connect(self.name.clone(), stream).await?;
        Ok(Dialed { stream, begun })
    }

    /// Has a session on a dialed connection: calls `confirmed` at the server's answer, then leaves or stays until the
    /// server ends it.
    pub(crate) async fn converse(
        &self,
        dialed: Dialed,
        executor: &Executor,
        stay: Stay,
        confirmed: impl FnOnce(),
    ) -> io::Result<()> {
        let stream = dialed.stream;
        let hello = Greeting {
            number: executor.number,
            instance: executor.instance,
        };
        match self.protocol {
            Protocol::Tcp => session::bytes(stream, b"!", stay, confirmed).await,
            Protocol::Http1 => {
                let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
                session::bytes(stream, request, stay, confirmed).await
            }
            Protocol::H2 => session::raw_stream(stream, &hello, stay, confirmed).await,
            Protocol::Fleet => session::fleet(stream, &hello, stay, confirmed).await,
        }
    }

    /// Connects, has the session confirmed, and leaves or stays.
    pub(crate) async fn visit(
        &self,
        executor: &Executor,
        stay: Stay,
        confirmed: impl FnOnce(),
    ) -> io::Result<()> {
        let dialed = self.dial(executor).await?;
        self.converse(dialed, executor, stay, confirmed).await
    }
}

/// Makes `count` executors with certificates of their own.
pub(crate) fn executors(target: &Target, count: u32) -> io::Result<Vec<Executor>> {
    let authority = Authority::open(&Files::at(&target.pki))?;
    let root = match &target.server_ca {
        Some(path) => CertificateDer::from_pem_file(path).map_err(io::Error::other)?,
        None => authority.certificate().clone(),
    };
    let template = ClientTemplate::trusting(root, target.protocol.alpn())?;
    let key = Authority::executor_key()?;
    (target.first_id..)
        .take(usize::try_from(count).map_err(io::Error::other)?)
        .map(|number| {
            let config = template.present(authority.executor(&key, number)?)?;
            Ok(Executor::new(number, config))
        })
        .collect()
}
