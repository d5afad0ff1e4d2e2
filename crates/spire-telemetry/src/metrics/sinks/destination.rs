//! Where datagrams go, and whether they get there.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use tokio::time::Instant;

/// After a name that cannot be resolved, or a socket that cannot be had.
const AGAIN: Duration = Duration::from_secs(5);

/// Bytes that UDP can carry.
const MOST: usize = 65_507;

/// For Datadog's agent, where no port is told.
const DATADOG_PORT: u16 = 8125;

/// An address as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Udp { host: String, port: u16 },
    Unix(PathBuf),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Udp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Destination {
    /// `host:port`; without a host this machine is meant.
    ///
    /// # Errors
    /// It is not that.
    pub(super) fn udp(block: &str, address: &str) -> Result<Self, Explained> {
        let parsed = address.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            // Without brackets a colon more makes it unclear where the port begins.
            let host = bare.or_else(|| (!host.contains(':')).then_some(host))?;
            Some((host, port))
        });
        let Some((host, port)) = parsed else {
            return Err(Explained::new(
                Code::Usage,
                format!("telemetry.{block}: address {address:?} is not HOST:PORT"),
            )
            .hint("write the collector's host and its UDP port, as in \"localhost:8125\""));
        };
        Ok(Self::Udp {
            host: match host {
                "" => "localhost".to_owned(),
                host => host.to_owned(),
            },
            port,
        })
    }

    /// As Datadog's clients read it: `unix://PATH` for a datagram socket, and what `DD_AGENT_HOST` and
    /// `DD_DOGSTATSD_PORT` say where there is no address.
    ///
    /// # Errors
    /// There is no such address.
    pub(super) fn of_datadog(address: &str) -> Result<Self, Explained> {
        if let Some(path) = address.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(Explained::new(
                    Code::Usage,
                    format!("telemetry.DogStatsd: address {address:?} has no absolute path"),
                )
                .hint("write three slashes, as in \"unix:///var/run/datadog/dsd.socket\"")),
            };
        }
        if !address.is_empty() {
            return Self::udp("DogStatsd", address);
        }
        let Some(host) = variable("DD_AGENT_HOST") else {
            return Err(Explained::new(
                Code::Usage,
                "telemetry.DogStatsd: there is no address, and DD_AGENT_HOST is not set",
            )
            .hint("set address to HOST:PORT or unix://PATH of Datadog's agent"));
        };
        match variable("DD_DOGSTATSD_PORT") {
            Some(port) => Self::udp("DogStatsd", &format!("{host}:{port}")),
            None => Ok(Self::Udp {
                host,
                port: DATADOG_PORT,
            }),
        }
    }
}

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A destination with the socket that reaches it, once there is one. Nothing is sent twice, and nothing is waited for
/// but the resolution of a name: what a socket does not take at once is dropped.
pub(super) struct Sender {
    to: Destination,
    block: &'static str,
    socket: Option<Opened>,
    not_before: Option<Instant>,
    /// Whether the last attempt failed, which is told once.
    failing: bool,
}

struct Opened {
    socket: Socket,
    since: Instant,
}

/// Neither blocks.
enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Sender {
    pub(super) fn new(block: &'static str, to: Destination) -> Self {
        Self {
            to,
            block,
            socket: None,
            not_before: None,
            failing: false,
        }
    }

    /// Sends one datagram, or drops it.
    pub(super) async fn send(&mut self, datagram: &[u8]) {
        if datagram.len() > MOST || self.not_before.is_some_and(|then| Instant::now() < then) {
            return;
        }
        match self.try_send(datagram).await {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(sink = self.block, address = %self.to, "metrics are sent again");
            }
            Ok(()) => {}
            // Nobody took the one before; this one was not sent yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.tell(&error);
                // Whoever is asked for may have moved.
                self.socket.take_if(|it| it.since.elapsed() > AGAIN);
                if self.socket.is_some() {
                    // What comes of it, the next one hears.
                    let _ = self.try_send(datagram).await;
                }
            }
            Err(error) => {
                self.tell(&error);
                self.socket = None;
                self.not_before = Instant::now().checked_add(AGAIN);
            }
        }
    }

    fn tell(&mut self, error: &io::Error) {
        if !self.failing {
            self.failing = true;
            tracing::warn!(sink = self.block, address = %self.to, %error, "metrics cannot be sent, and are dropped until they can");
        }
    }

    async fn try_send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let opened = match self.socket.take() {
            Some(opened) => opened,
            None => Opened {
                socket: Socket::open(&self.to).await?,
                since: Instant::now(),
            },
        };
        let opened = self.socket.insert(opened);
        match opened.socket.send(datagram) {
            // A full buffer, ours or the receiver's.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent.map(|_| ()),
        }
    }
}

impl Socket {
    async fn open(to: &Destination) -> io::Result<Self> {
        match to {
            Destination::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                Ok(Self::Unix(socket))
            }
            Destination::Udp { host, port } => {
                let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
                // As Go's resolver: nobody says no where a collector has but an IPv4 address.
                let (mut found, v6): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv4);
                found.extend(v6);
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in found {
                    match udp(address) {
                        Ok(socket) => return Ok(Self::Udp(socket)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.send(datagram),
            Self::Unix(socket) => socket.send(datagram),
        }
    }
}

fn udp(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_upstreams_clients_read_them() {
        // Inventory §10: Statsd, DogStatsd, M3
        let udp = |host: &str, port| Destination::Udp {
            host: host.to_owned(),
            port,
        };
        let read = |address| Destination::udp("Statsd", address).unwrap();
        assert_eq!(read("localhost:1337"), udp("localhost", 1337));
        assert_eq!(read(":8125"), udp("localhost", 8125));
        assert_eq!(read("[::1]:8125"), udp("::1", 8125));
        assert_eq!(read("[::1]:8125").to_string(), "[::1]:8125");
        let unix = Destination::of_datadog("unix:///run/dsd.socket").unwrap();
        assert_eq!(unix, Destination::Unix("/run/dsd.socket".into()));
        for wrong in [
            "",
            "localhost",
            "localhost:",
            "localhost:0",
            "::1:8125",
            "a:b",
        ] {
            let fault = Destination::udp("Statsd", wrong).unwrap_err();
            let text = format!("telemetry.Statsd: address {wrong:?} is not HOST:PORT");
            assert_eq!(fault.text, text);
            assert!(fault.hint.is_some());
        }
        let fault = Destination::of_datadog("unix://dsd.socket").unwrap_err();
        assert!(
            fault.text.contains("has no absolute path"),
            "{}",
            fault.text
        );
    }
}
