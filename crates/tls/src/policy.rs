//! Which verified certificates are admitted: SAN rules and revocation (AP-5 to AP-8).

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use arc_swap::ArcSwap;
use rustls_pki_types::DnsName;
use spiffe::SpiffeId;

use crate::svid::{claims_spiffe, parse_spiffe_id};
use crate::{PeerName, Refusal};

/// What the access point asks of a certificate besides a valid chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// SAN rules; none admits every certificate that chains (AP-8).
    pub rules: SanRules,
    /// Who is turned away all the same (FL-1).
    pub revocations: Revocations,
    /// Refuse what the SPIFFE standards ask of issuers only (`--strict-svid`, AP-8).
    pub strict_svid: bool,
}

impl Policy {
    /// The name under which a certificate is admitted. `id` is its SPIFFE ID, where it has one.
    pub(crate) fn admit(
        &self,
        leaf: &CertificateFacts,
        id: Option<&SpiffeId>,
    ) -> Result<PeerName, Refusal> {
        let name = self.rules.admit(leaf, id).ok_or(Refusal::NoRuleMatches)?;
        if self.revocations.covers(&name, leaf) {
            return Err(Refusal::Revoked);
        }
        Ok(name)
    }
}

/// What an operator revoked. A certificate is revoked when any of the three names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Executor ids, as [`PeerName`] prints them.
    pub ids: HashSet<String>,
    /// Serial numbers, as [`CertificateFacts::serial`].
    pub serials: HashSet<String>,
    /// SHA-256 of the leaf, as [`CertificateFacts::sha256`].
    pub sha256s: HashSet<String>,
}

impl Revocations {
    /// Whether a leaf that is known as `name` is revoked.
    pub fn covers(&self, name: &PeerName, leaf: &CertificateFacts) -> bool {
        self.serials.contains(&leaf.serial)
            || self.sha256s.contains(&leaf.sha256)
            || (!self.ids.is_empty() && self.ids.contains(&name.to_string()))
    }
}

/// The policy in force, replaced while handshakes run. Clones share it; reading takes no lock.
#[derive(Clone, Debug)]
pub struct PolicyCell(Arc<ArcSwap<Policy>>);

impl PolicyCell {
    /// A cell that holds `policy`.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(policy)))
    }

    /// The policy in force now.
    pub fn load(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// Puts `policy` in force for every handshake from now on.
    pub fn store(&self, policy: Policy) {
        self.0.store(Arc::new(policy));
    }

    /// Changes the policy in force; `change` may run again when another change came between.
    pub fn update(&self, mut change: impl FnMut(&mut Policy)) {
        self.0.rcu(|policy| {
            let mut next = Policy::clone(policy);
            change(&mut next);
            next
        });
    }
}

/// The SAN rules of AP-5 to AP-7. A certificate is admitted when one of any kind matches (AP-8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SanRules {
    uris: Vec<UriPrefix>,
    dns: Vec<DnsRule>,
    ips: Vec<IpRule>,
}

impl SanRules {
    /// Reads the values of `--executor-san-uri-prefix`, `--executor-san-dns` and `--executor-san-ip`;
    /// the latter two take comma lists. Names every faulty value at once (AP-18).
    pub fn parse(
        uri_prefixes: &[String],
        dns: &[String],
        ips: &[String],
    ) -> Result<Self, Vec<Explained>> {
        let mut faults = Vec::new();
        let mut keep = |fault: Explained| faults.push(fault);
        let rules = Self {
            uris: uri_prefixes
                .iter()
                .filter_map(|value| UriPrefix::parse(value).map_err(&mut keep).ok())
                .collect(),
            dns: items(dns)
                .filter_map(|value| DnsRule::parse(value).map_err(&mut keep).ok())
                .collect(),
            ips: items(ips)
                .filter_map(|value| IpRule::parse(value).map_err(&mut keep).ok())
                .collect(),
        };
        if faults.is_empty() {
            Ok(rules)
        } else {
            Err(faults)
        }
    }

    /// Whether there is no rule, so that every certificate that chains is admitted.
    pub fn is_empty(&self) -> bool {
        self.uris.is_empty() && self.dns.is_empty() && self.ips.is_empty()
    }

    /// The rules as people write them: `URI:…`, `DNS:…`, `IP:…`.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        let uris = self.uris.iter().map(|rule| format!("URI:{}", rule.0));
        let dns = self.dns.iter().map(|rule| format!("DNS:{rule}"));
        let ips = self.ips.iter().map(|rule| format!("IP:{rule}"));
        uris.chain(dns).chain(ips)
    }

    fn admit(&self, leaf: &CertificateFacts, id: Option<&SpiffeId>) -> Option<PeerName> {
        // A wildcard names a set of hosts, and what is no DNS name could look like another kind of id.
        let names = || leaf.dns.iter().filter_map(|name| host_name(name));
        let addresses = || leaf.ips.iter().map(|ip| ip.to_canonical());
        let matched_dns = names().find(|name| self.dns.iter().any(|rule| rule.matches(name)));
        let matched_ip = addresses().find(|ip| self.ips.iter().any(|rule| rule.matches(*ip)));
        let admitted = self.is_empty()
            || matched_dns.is_some()
            || matched_ip.is_some()
            || leaf
                .uris
                .iter()
                .any(|uri| self.uris.iter().any(|rule| rule.matches(uri)));
        if !admitted {
            return None;
        }
        if let Some(id) = id {
            return Some(PeerName::Spiffe(id.clone()));
        }
        matched_dns
            .map(PeerName::Dns)
            .or_else(|| matched_ip.map(PeerName::Ip))
            .or_else(|| names().next().map(PeerName::Dns))
            .or_else(|| addresses().next().map(PeerName::Ip))
    }
}

impl fmt::Display for SanRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<String> = self.iter().collect();
        f.write_str(&rules.join(", "))
    }
}

/// AP-5.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UriPrefix(String);

impl UriPrefix {
    fn parse(value: &str) -> Result<Self, Explained> {
        let value = value.trim();
        let fault = |cause: String| {
            Explained::new(
                Code::Usage,
                format!("`{value}` is no URI prefix for --executor-san-uri-prefix"),
            )
            .cause(cause)
            .hint("write it like spiffe://example.org/ah/agent")
        };
        if claims_spiffe(value) {
            let bare = value.strip_suffix('/').unwrap_or(value);
            parse_spiffe_id(bare).map_err(|faults| {
                let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
                fault(texts.join("; "))
            })?;
            return Ok(Self(value.to_owned()));
        }
        let scheme = value.split_once(':').map_or("", |(scheme, _)| scheme);
        let mut bytes = scheme.bytes();
        let well_formed = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        if !well_formed {
            return Err(fault("it has no scheme".into()));
        }
        Ok(Self(value.to_owned()))
    }

    /// On whole path segments: what follows the prefix begins a segment.
    fn matches(&self, uri: &str) -> bool {
        match uri.strip_prefix(self.0.as_str()) {
            Some("") => true,
            Some(rest) => self.0.ends_with('/') || rest.starts_with('/'),
            None => false,
        }
    }
}

/// AP-6.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DnsRule {
    Name(String),
    /// One label, then this.
    OneLabelBelow(String),
}

impl DnsRule {
    fn parse(value: &str) -> Result<Self, Explained> {
        let (wildcard, name) = match value.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, value),
        };
        let Some(name) = host_name(name) else {
            return Err(Explained::new(
                Code::Usage,
                format!("`{value}` is no DNS name for --executor-san-dns"),
            )
            .hint("write it like worker-1.example.com or *.example.com"));
        };
        Ok(if wildcard {
            Self::OneLabelBelow(name)
        } else {
            Self::Name(name)
        })
    }

    /// `name` is lower case.
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(rule) => rule == name,
            Self::OneLabelBelow(parent) => name
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        }
    }
}

impl fmt::Display for DnsRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::OneLabelBelow(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// AP-7. IPv4 addresses mapped into IPv6 are taken as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
struct IpRule {
    network: IpAddr,
    bits: u8,
}

impl IpRule {
    fn parse(value: &str) -> Result<Self, Explained> {
        let fault = || {
            Explained::new(
                Code::Usage,
                format!("`{value}` is no IP address or network for --executor-san-ip"),
            )
            .hint("write it like 10.1.2.3, 10.1.0.0/16 or 2001:db8::/32")
        };
        let (address, bits) = match value.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (value, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fault())?;
        let width = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse::<u8>().map_err(|_| fault())?
            }
            Some(_) => return Err(fault()),
            None => width(&address),
        };
        if bits > width(&address) {
            return Err(fault());
        }
        let network = address.to_canonical();
        let bits = match (address, network) {
            (IpAddr::V6(_), IpAddr::V4(_)) => bits.checked_sub(96).ok_or_else(fault)?,
            _ => bits,
        };
        Ok(Self { network, bits })
    }

    /// `ip` is canonical.
    fn matches(&self, ip: IpAddr) -> bool {
        let bits = u32::from(self.bits);
        match (self.network, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl fmt::Display for IpRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

fn items(values: &[String]) -> impl Iterator<Item = &str> {
    values
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

fn host_name(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    DnsName::try_from(name.as_str()).ok()?;
    Some(name)
}
