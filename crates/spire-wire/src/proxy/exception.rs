//! `NO_PROXY`: which hosts are reached without the proxy, by the rules of Go's `net/http`.

use std::net::IpAddr;

use url::Host;

/// One of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exception {
    /// `*`
    Everything,
    /// `10.0.0.0/8`
    Network(IpAddr, u32),
    /// `10.0.0.1`, `10.0.0.1:443`, `[fd00::1]:443`
    Address(IpAddr, Option<String>),
    /// `example.org` with what is below it, `.example.org` and `*.example.org` without the name itself; each with a port
    /// or without. It begins with a dot.
    Domain {
        below: String,
        itself: bool,
        port: Option<String>,
    },
}

impl Exception {
    /// What can be nothing of all that is passed over.
    pub(super) fn list(text: &str) -> Vec<Self> {
        let entries = text.split(',').map(|entry| entry.trim().to_lowercase());
        entries.filter_map(|entry| Self::parse(&entry)).collect()
    }

    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse())
            && bits <= width(address)
        {
            return Some(Self::Network(address, bits));
        }
        let (host, port) = match entry.rsplit_once(':') {
            // An IPv6 address has its colons in brackets, or there is no port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (entry, None),
        };
        let port = port.map(ToOwned::to_owned).filter(|port| !port.is_empty());
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let name = host.strip_prefix('*').filter(|it| it.starts_with('.'));
        let name = name.unwrap_or(host);
        let (itself, name) = match name.strip_prefix('.') {
            Some(below) => (false, below),
            None => (true, name),
        };
        // As URLs have names: in ASCII.
        let name = match Host::parse(name) {
            Ok(Host::Domain(name)) => name,
            _ if name.is_empty() => return None,
            _ => name.to_owned(),
        };
        Some(Self::Domain {
            below: format!(".{name}"),
            itself,
            port,
        })
    }

    /// Whether `host`, in small letters, is it; `address` is what it is in numbers.
    pub(super) fn is(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let at = |wanted: &Option<String>| {
            wanted
                .as_ref()
                .is_none_or(|wanted| *wanted == port.to_string())
        };
        match self {
            Self::Everything => true,
            Self::Network(network, bits) => {
                address.is_some_and(|address| within(address, *network, *bits))
            }
            Self::Address(wanted, port) => address == Some(*wanted) && at(port),
            Self::Domain {
                below,
                itself,
                port,
            } => {
                let same = *itself && below.strip_prefix('.') == Some(host);
                (same || host.ends_with(below.as_str())) && at(port)
            }
        }
    }
}

fn width(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => u32::BITS,
        IpAddr::V6(_) => u128::BITS,
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(u32::BITS - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(u128::BITS - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}
