//! Who the other side is, once it was proved.

use std::fmt;
use std::net::IpAddr;

use spiffe::SpiffeId;

/// The name a verified certificate stands for: what the contract calls executor id.
///
/// The SPIFFE ID of the URI SAN; without one, the first DNS SAN that matched a rule, then the first IP SAN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// SPIFFE ID.
    Spiffe(SpiffeId),
    /// DNS name, lower case.
    Dns(String),
    /// IP address.
    Ip(IpAddr),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(f),
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// Why a peer's valid certificate is turned away all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule admits it (ER-7).
    #[error("certificate SAN does not match expected pattern")]
    NoRuleMatches,
    /// An operator revoked it (ER-21).
    #[error("certificate revoked")]
    Revoked,
}
