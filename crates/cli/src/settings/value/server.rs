//! Whom an executor dials (EN-1).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::{FLEET_PORT, Wrong};

/// The host of an access point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// DNS name, lower case, without a final dot.
    Dns(String),
    /// IP address.
    Ip(IpAddr),
}

impl Host {
    /// Whether it can only mean this machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Dns(name) => name == "localhost" || name.ends_with(".localhost"),
            Self::Ip(ip) => is_loopback(*ip),
        }
    }
}

/// Whether `ip` can only mean this machine. An IPv4 address mapped into IPv6 counts as what it maps.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// `--remote-server` (EN-1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteServer {
    /// Whom to dial, and by default the name that the certificate must carry.
    pub host: Host,
    /// The port; [`FLEET_PORT`] when none was written.
    pub port: u16,
}

impl FromStr for RemoteServer {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write it like https://access-point.example.com:4433";
        let lower = text.to_ascii_lowercase();
        let Some(rest) = lower.strip_prefix("https://") else {
            return Err(match lower.split_once("://") {
                Some((scheme, rest)) => {
                    Wrong::new(format!("the scheme is {scheme}, and only https is spoken"))
                        .hint(format!("write https://{rest}"))
                }
                None => Wrong::new("the scheme is missing").hint(format!("write https://{lower}")),
            });
        };
        if rest.contains('@') {
            return Err(Wrong::new("a user name has no place here").hint(form));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(Wrong::new("a path or query has no place here").hint(form));
        }
        let (host, port) =
            split_port(authority).ok_or_else(|| Wrong::new("not a host and port").hint(form))?;
        let port = match port {
            None => FLEET_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => {
                    return Err(
                        Wrong::new(format!("'{port}' is not a port")).hint("ports are 1 to 65535")
                    );
                }
            },
        };
        let host = match host {
            Bracketed::Ipv6(ip) => Host::Ip(ip.into()),
            Bracketed::Plain(host) => parse_host(host)?,
        };
        Ok(Self { host, port })
    }
}

enum Bracketed<'a> {
    Ipv6(Ipv6Addr),
    Plain(&'a str),
}

fn split_port(authority: &str) -> Option<(Bracketed<'_>, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (ip, after) = rest.split_once(']')?;
        let port = match after {
            "" => None,
            after => Some(after.strip_prefix(':')?),
        };
        return Some((Bracketed::Ipv6(ip.parse().ok()?), port));
    }
    match authority.split_once(':') {
        None => Some((Bracketed::Plain(authority), None)),
        // More than one colon is an IPv6 address without its brackets.
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((Bracketed::Plain(host), Some(port))),
    }
}

fn parse_host(host: &str) -> Result<Host, Wrong> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // A last label of digits is never a DNS name: it is an address with a typing error (RFC 1123 §2.1).
    let last = name.rsplit('.').next().unwrap_or_default();
    if !is_dns_name(name) || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Wrong::new(format!(
            "'{host}' is neither a DNS name nor an IP address"
        )));
    }
    Ok(Host::Dns(name.to_owned()))
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 bytes, 253 bytes in all (RFC 1035 §2.3.4).
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// `HOST:PORT`, as error texts have it (ER-1).
impl fmt::Display for RemoteServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
