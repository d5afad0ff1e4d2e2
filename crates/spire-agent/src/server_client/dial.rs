use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ah_spire_wire::Channel;
use ah_tls::{Concern, HandshakeFault, SpiffeClient};
use tokio::net::TcpStream;

use super::fault::CONNECT_FAILED;
use super::{Connection, ServerFault};

/// How long one address may take to accept and to shake hands.
const EACH: Duration = Duration::from_secs(10);

/// `server_address` and `server_port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl ServerAddress {
    /// `host` without brackets.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Tries the addresses of the server in turn, beginning with the `first`, until one shakes hands.
pub(super) async fn connect(
    address: &ServerAddress,
    tls: &SpiffeClient,
    first: &AtomicUsize,
) -> Result<Connection, ServerFault> {
    let mut addresses = resolve(address)
        .await
        .map_err(|cause| ServerFault::unreachable(address, cause))?;
    let begin = first.load(Ordering::Relaxed) % addresses.len().max(1);
    addresses.rotate_left(begin);
    let mut faults = Vec::new();
    for (tried, remote) in addresses.iter().enumerate() {
        let one = Box::pin(reach(address, *remote, tls));
        let outcome = tokio::time::timeout(EACH, one).await.unwrap_or_else(|_| {
            let cause = format!("{remote}: no answer within {}s", EACH.as_secs());
            Err(ServerFault::unreachable(address, cause))
        });
        match outcome {
            Ok(connection) => {
                first.fetch_add(tried, Ordering::Relaxed);
                return Ok(connection);
            }
            Err(fault) => faults.push(fault),
        }
    }
    Err(worst(address, faults))
}

/// One fault for all addresses: a server that is not trusted is told before one that is not there.
fn worst(address: &ServerAddress, mut faults: Vec<ServerFault>) -> ServerFault {
    let told = faults
        .iter()
        .position(|fault| !matches!(fault, ServerFault::Unreachable(_)))
        .or_else(|| faults.len().checked_sub(1));
    let Some(told) = told else {
        return ServerFault::unreachable(address, "the name has no address");
    };
    let mut fault = faults.swap_remove(told);
    if let ServerFault::Unreachable(explained) = &mut fault {
        for other in &faults {
            explained.causes.extend(other.explained().causes.clone());
        }
    }
    fault
}

async fn resolve(address: &ServerAddress) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = address.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let lookup = tokio::net::lookup_host((address.host.as_str(), address.port));
    let found = match tokio::time::timeout(EACH, lookup).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("the name cannot be resolved: {error}")),
        Err(_) => {
            return Err(format!(
                "the name is not resolved within {}s",
                EACH.as_secs()
            ));
        }
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

async fn reach(
    address: &ServerAddress,
    remote: SocketAddr,
    tls: &SpiffeClient,
) -> Result<Connection, ServerFault> {
    let broken =
        |error: &io::Error| ServerFault::unreachable(address, format!("{remote}: {error}"));
    let tcp = TcpStream::connect(remote).await.map_err(|e| broken(&e))?;
    tcp.set_nodelay(true).map_err(|e| broken(&e))?;
    let (stream, server) = tls
        .handshake(tcp)
        .await
        .map_err(|fault| handshake_failed(address, remote, fault))?;
    let server = server.chain().to_vec();
    let channel = Channel::over(stream).await.map_err(|e| broken(&e))?;
    Ok(Connection {
        channel,
        server: server.into(),
        silent: Arc::default(),
    })
}

fn handshake_failed(
    address: &ServerAddress,
    remote: SocketAddr,
    fault: HandshakeFault,
) -> ServerFault {
    let refused = match fault {
        HandshakeFault::Ended(error) => {
            let cause = format!("{remote}: TLS: {error}");
            return ServerFault::unreachable(address, cause);
        }
        HandshakeFault::Refused(refused) => refused,
    };
    let mut told = ah_identity_provider::Explained::new(refused.code(), CONNECT_FAILED)
        .cause(format!("{address}: {}", refused.explained().text));
    told.causes.extend(refused.explained().causes.clone());
    match refused.concern() {
        Concern::Chain => ServerFault::UnknownAuthority(told.hint(
            "the server shows a certificate of another CA than the agent's trust bundle has: give the agent the bundle of `spire-server bundle show`, or set `rebootstrap_mode` where the server was set up anew",
        )),
        Concern::Dates => ServerFault::Unreachable(
            told.hint("compare the clocks of agent and server (`date -u`, `timedatectl status`)"),
        ),
        Concern::Name => ServerFault::Unreachable(
            told.hint("check `trust_domain` of agent and server, and that address and port are the server's"),
        ),
        _ => ServerFault::Unreachable(
            told.hint("check that address and port are those of a SPIRE server"),
        ),
    }
}
