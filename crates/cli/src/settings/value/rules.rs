//! Rules of admission (AP-5 to AP-7).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use spiffe::{SpiffeId, TrustDomain};

use super::Wrong;
use super::server::is_dns_name;

/// `--executor-san-uri-prefix` (AP-5), without a final slash: it matches on whole path segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UriPrefix(String);

impl UriPrefix {
    /// The prefix as it was written, so that its final slash, if any, is kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UriPrefix {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write it like spiffe://example.org/ah/agent/";
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Wrong::new("the scheme is missing").hint(form));
        };
        if scheme.is_empty() || rest.is_empty() || text.chars().any(|c| c.is_control() || c == ' ')
        {
            return Err(Wrong::new("not a URI").hint(form));
        }
        if scheme.eq_ignore_ascii_case("spiffe") {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            // SPIFFE-ID §2.1: lower case, so that such a rule would never match.
            if domain.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(
                    Wrong::new(format!("trust domain '{domain}' has upper case"))
                        .hint(format!("write {}", domain.to_ascii_lowercase())),
                );
            }
            TrustDomain::new(domain)
                .map_err(|e| Wrong::new(format!("trust domain '{domain}': {e}")).hint(form))?;
            let path = path.strip_suffix('/').unwrap_or(path);
            if !path.is_empty() {
                SpiffeId::new(format!("spiffe://{domain}/{path}"))
                    .map_err(|e| Wrong::new(e.to_string()).hint(form))?;
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UriPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--executor-san-dns` (AP-6): a DNS name, lower case; `*` may stand for the whole first label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsPattern(String);

impl DnsPattern {
    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsPattern {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let lower = text.trim().to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let fixed = name.strip_prefix("*.").unwrap_or(name);
        if fixed.contains('*') {
            return Err(Wrong::new("'*' stands for the whole first label only")
                .hint("write it like *.example.com"));
        }
        if !is_dns_name(fixed) {
            return Err(Wrong::new(format!("'{text}' is not a DNS name")));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--executor-san-ip` (AP-7): an address, or all that share its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpRange {
    /// An address of the range.
    pub address: IpAddr,
    /// How many of its first bits count: at most 32 or 128.
    pub prefix_length: u8,
}

impl FromStr for IpRange {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let text = text.trim();
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = ip.parse().map_err(|_| {
            Wrong::new(format!("'{ip}' is not an IP address")).hint("write 10.0.0.7 or 10.0.0.0/8")
        })?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_length = match length {
            None => bits,
            Some(length) => match length.parse() {
                Ok(length) if length <= bits => length,
                _ => {
                    return Err(Wrong::new(format!(
                        "'/{length}' is not a prefix length of 0 to {bits}"
                    )));
                }
            },
        };
        Ok(Self {
            address,
            prefix_length,
        })
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}
