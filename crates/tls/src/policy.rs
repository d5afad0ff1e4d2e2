//! Which verified certificates are admitted: SAN rules and revocation (AP-5 to AP-8).

mod nearest;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use arc_swap::ArcSwap;
use rustls_pki_types::DnsName;
use spiffe::SpiffeId;

pub use nearest::NearestRule;

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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use ah_identity_provider::KeyKind;

    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    fn rules(uris: &[&str], dns: &[&str], ips: &[&str]) -> SanRules {
        SanRules::parse(&strings(uris), &strings(dns), &strings(ips)).unwrap()
    }

    fn leaf(uris: &[&str], dns: &[&str], ips: &[&str]) -> CertificateFacts {
        CertificateFacts {
            subject: String::new(),
            issuer: String::new(),
            serial: "01ab".into(),
            sha256: "ff00".into(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            uris: strings(uris),
            dns: strings(dns),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            key: KeyKind::Ed25519,
            is_ca: false,
        }
    }

    fn name(rules: &SanRules, leaf: &CertificateFacts) -> Option<String> {
        let id = leaf.uris.first().and_then(|uri| parse_spiffe_id(uri).ok());
        rules.admit(leaf, id.as_ref()).map(|name| name.to_string())
    }

    #[test]
    fn ap_5_prefixes_match_whole_segments_and_pin_the_trust_domain() {
        // AP-5
        let matches = |prefix: &str, uri: &str| {
            name(&rules(&[prefix], &[], &[]), &leaf(&[uri], &[], &[])).is_some()
        };
        for prefix in [
            "spiffe://example.org/ah/agent",
            "spiffe://example.org/ah/agent/",
        ] {
            assert!(matches(prefix, "spiffe://example.org/ah/agent/x"));
            assert!(matches(prefix, "spiffe://example.org/ah/agent/x/y"));
            assert!(!matches(prefix, "spiffe://example.org/ah/agent-evil"));
            assert!(!matches(prefix, "spiffe://example.org/ah"));
            assert!(!matches(prefix, "spiffe://example.org.evil/ah/agent/x"));
            assert!(!matches(prefix, "spiffe://evil.org/ah/agent/x"));
        }
        assert!(matches(
            "spiffe://example.org/ah/agent",
            "spiffe://example.org/ah/agent"
        ));
        assert!(!matches(
            "spiffe://example.org/ah/agent/",
            "spiffe://example.org/ah/agent"
        ));
        assert!(matches("spiffe://example.org", "spiffe://example.org/any"));
        assert!(!matches(
            "spiffe://example.org",
            "spiffe://example.organic/any"
        ));
    }

    #[test]
    fn ap_5_a_prefix_of_another_scheme_matches_but_names_nobody() {
        // AP-5, AP-8: the certificate needs a DNS or IP SAN to be known by.
        let rules = rules(&["https://ids.example.com/agents"], &[], &[]);
        let uri = "https://ids.example.com/agents/1";
        assert_eq!(name(&rules, &leaf(&[uri], &[], &[])), None);
        assert_eq!(
            name(&rules, &leaf(&[uri], &["a.example.com"], &[])).unwrap(),
            "a.example.com"
        );
    }

    #[test]
    fn ap_6_names_fold_case_and_a_wildcard_is_one_label() {
        // AP-6
        let rules = rules(&[], &["Worker-1.Example.com, *.fleet.example.com"], &[]);
        let admits = |dns: &str| name(&rules, &leaf(&[], &[dns], &[]));
        assert_eq!(
            admits("worker-1.EXAMPLE.com").unwrap(),
            "worker-1.example.com"
        );
        assert!(admits("a.fleet.example.com").is_some());
        assert!(admits("a.b.fleet.example.com").is_none());
        assert!(admits("fleet.example.com").is_none());
        assert!(
            admits("*.fleet.example.com").is_none(),
            "a wildcard SAN is nobody"
        );
        assert!(admits("worker-2.example.com").is_none());
    }

    #[test]
    fn ap_7_addresses_and_networks_of_both_families() {
        // AP-7
        let rules = rules(&[], &[], &["10.1.2.3,192.168.0.0/16", "2001:db8::/32"]);
        let admits = |ip: &str| name(&rules, &leaf(&[], &[], &[ip]));
        assert_eq!(admits("10.1.2.3").unwrap(), "10.1.2.3");
        assert_eq!(admits("::ffff:10.1.2.3").unwrap(), "10.1.2.3");
        assert!(admits("192.168.255.1").is_some());
        assert!(admits("2001:db8:1::1").is_some());
        for stranger in ["10.1.2.4", "192.169.0.1", "2001:db9::1", "::10.1.2.3"] {
            assert!(admits(stranger).is_none(), "{stranger}");
        }
        let everyone = SanRules::parse(&[], &[], &strings(&["0.0.0.0/0"])).unwrap();
        assert!(name(&everyone, &leaf(&[], &[], &["8.8.8.8"])).is_some());
        assert!(name(&everyone, &leaf(&[], &[], &["::1"])).is_none());
    }

    #[test]
    fn ap_8_one_match_of_any_kind_admits_and_no_rule_admits_whoever_has_a_name() {
        // AP-8
        let all = rules(
            &["spiffe://example.org/ah"],
            &["a.example.com"],
            &["10.0.0.1"],
        );
        let id = "spiffe://example.org/ah/1";
        assert_eq!(name(&all, &leaf(&[id], &[], &[])).unwrap(), id);
        assert_eq!(
            name(
                &all,
                &leaf(&["spiffe://other.org/x"], &["a.example.com"], &[])
            )
            .unwrap(),
            "spiffe://other.org/x"
        );
        let many = leaf(&[], &["first.example.com", "a.example.com"], &["10.0.0.1"]);
        assert_eq!(name(&all, &many).unwrap(), "a.example.com");
        assert_eq!(
            name(&all, &leaf(&[], &["b.example.com"], &["10.0.0.1"])).unwrap(),
            "10.0.0.1"
        );
        assert_eq!(name(&all, &leaf(&[], &["b.example.com"], &[])), None);

        let none = SanRules::default();
        assert_eq!(name(&none, &many).unwrap(), "first.example.com");
        assert_eq!(name(&none, &leaf(&[], &["*.example.com"], &[])), None);
        assert_eq!(name(&none, &leaf(&[], &[], &[])), None);
        // What is written in a DNS SAN cannot pass for a SPIFFE ID.
        assert_eq!(
            name(&none, &leaf(&[], &["spiffe://example.org/ah/1"], &[])),
            None
        );
    }

    #[test]
    fn every_bad_rule_is_named_at_once() {
        let faults = SanRules::parse(
            &strings(&[
                "spiffe://Example.org/a",
                "no-scheme",
                "spiffe://example.org",
            ]),
            &strings(&["a..b", "ok.example.com,*.*.example.com"]),
            &strings(&["10.0.0.0/33", "300.1.1.1", "::/0", "10.0.0.1/+8"]),
        )
        .unwrap_err();
        assert_eq!(faults.len(), 7, "{faults:?}");
        assert!(
            faults
                .iter()
                .all(|fault| fault.code == Code::Usage && fault.hint.is_some())
        );
    }

    #[test]
    fn fl_1_revocation_by_id_serial_or_fingerprint() {
        // FL-1
        let peer = leaf(&[], &["a.example.com"], &[]);
        let cell = PolicyCell::new(Policy::default());
        assert!(cell.load().admit(&peer, None).is_ok());
        let one = |value: &str| HashSet::from([value.to_owned()]);
        for revocations in [
            Revocations {
                ids: one("a.example.com"),
                ..Revocations::default()
            },
            Revocations {
                serials: one("01ab"),
                ..Revocations::default()
            },
            Revocations {
                sha256s: one("ff00"),
                ..Revocations::default()
            },
        ] {
            cell.update(|policy| policy.revocations = revocations.clone());
            assert_eq!(cell.load().admit(&peer, None), Err(Refusal::Revoked));
        }
        cell.store(Policy::default());
        assert!(cell.load().admit(&peer, None).is_ok());
    }
}
