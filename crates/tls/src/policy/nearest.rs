//! Which rule a refused certificate came closest to, for people who look for the difference (`fleet why`).

use std::net::IpAddr;

use ah_identity_provider::CertificateFacts;
use serde::{Deserialize, Serialize};

use super::{DnsRule, IpRule, SanRules, UriPrefix, host_name};

/// Most bytes of a name that are compared: the cost grows with the square, and names come from strangers.
const COMPARED: usize = 512;
/// Most names of a certificate that are compared.
const NAMES: usize = 16;

/// The rule that a name of a certificate came closest to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestRule {
    /// As [`SanRules::iter`] writes it.
    pub rule: String,
    /// The name of the certificate, as [`CertificateFacts::sans`] writes it.
    pub san: String,
    /// Characters to change in the one to make the other of it; for an address the bits of the network
    /// that differ. 0 when the name matches.
    pub distance: usize,
    /// What is different, in words.
    pub difference: String,
}

/// A candidate, with its distance relative to the length of what was compared: an address and a URI can be
/// weighed against each other by that alone.
struct Candidate {
    share: f64,
    rule: NearestRule,
}

impl SanRules {
    /// The rule that comes closest to a name of `leaf`. `None` when no rule is of a kind of which the
    /// certificate has a name.
    pub fn nearest(&self, leaf: &CertificateFacts) -> Option<NearestRule> {
        let uris = leaf.uris.iter().take(NAMES).flat_map(|uri| {
            let rules = self.uris.iter();
            rules.map(move |rule| of_uri(rule, uri))
        });
        let names = leaf.dns.iter().take(NAMES).flat_map(|name| {
            let rules = self.dns.iter();
            rules.map(move |rule| of_name(rule, name))
        });
        let addresses = leaf.ips.iter().take(NAMES).flat_map(|ip| {
            let rules = self.ips.iter();
            rules.filter_map(move |rule| of_address(rule, ip.to_canonical()))
        });
        let all = uris.chain(names).chain(addresses);
        let nearest = all.min_by(|a, b| a.share.total_cmp(&b.share))?;
        Some(nearest.rule)
    }
}

fn of_uri(rule: &UriPrefix, uri: &str) -> Candidate {
    let prefix = rule.0.strip_suffix('/').unwrap_or(&rule.0);
    let depth = prefix.matches('/').count();
    // As much of the URI as the prefix is about: as many segments.
    let end = uri.match_indices('/').nth(depth).map(|(at, _)| at);
    let head = end.and_then(|end| uri.get(..end)).unwrap_or(uri);
    let distance = if rule.matches(uri) {
        0
    } else {
        // A rule that ends in a slash asks for one more segment.
        strsim::levenshtein(clip(prefix), clip(head)).max(1)
    };
    let difference = if distance == 0 {
        "it matches".to_owned()
    } else if head == prefix {
        format!("the rule takes what is below `{prefix}/`, not `{prefix}` itself")
    } else if authority(prefix) != authority(head) {
        let (wants, has) = (authority(prefix), authority(head));
        format!("the rule is for `{wants}`, the certificate is of `{has}`")
    } else if let Some(rest) = prefix
        .strip_prefix(head)
        .filter(|rest| rest.starts_with('/'))
    {
        format!("the rule goes on with `{rest}`")
    } else {
        format!("the certificate has `{head}` where the rule has `{prefix}`")
    };
    Candidate {
        share: share(distance, prefix.len().max(head.len()).min(COMPARED)),
        rule: NearestRule {
            rule: format!("URI:{}", rule.0),
            san: format!("URI:{uri}"),
            distance,
            difference,
        },
    }
}

fn of_name(rule: &DnsRule, name: &str) -> Candidate {
    let folded = host_name(name);
    let lower = name.to_ascii_lowercase();
    let matches = folded.as_deref().is_some_and(|name| rule.matches(name));
    let (distance, difference) = match rule {
        _ if matches => (0, "it matches".to_owned()),
        _ if folded.is_none() => (
            strsim::levenshtein(clip(&rule.to_string()), clip(&lower)).max(1),
            format!("`{name}` is no name of one host"),
        ),
        DnsRule::Name(wanted) => (
            strsim::levenshtein(clip(wanted), clip(&lower)),
            format!("the certificate has `{lower}` where the rule has `{wanted}`"),
        ),
        DnsRule::OneLabelBelow(parent) => below(parent, &lower),
    };
    Candidate {
        share: share(
            distance,
            rule.to_string().len().max(lower.len()).min(COMPARED),
        ),
        rule: NearestRule {
            rule: format!("DNS:{rule}"),
            san: format!("DNS:{name}"),
            distance,
            difference,
        },
    }
}

/// A name that is not one label below `parent`.
fn below(parent: &str, name: &str) -> (usize, String) {
    if name == parent {
        let why =
            format!("the rule takes one label before `{parent}`, and the certificate has none");
        return (2, why);
    }
    let extra = name
        .strip_suffix(parent)
        .and_then(|labels| labels.strip_suffix('.'));
    if let Some(labels) = extra {
        let count = labels.split('.').count();
        let why = format!(
            "the rule takes one label before `{parent}`, and the certificate has {count}: `{labels}`"
        );
        // All but the last of them are too many.
        let last = labels.rsplit('.').next().map_or(0, str::len);
        return (labels.len().saturating_sub(last).max(1), why);
    }
    let tail = name.split_once('.').map_or(name, |(_, tail)| tail);
    (
        strsim::levenshtein(clip(parent), clip(tail)).max(1),
        format!("the certificate has `{tail}` where the rule has `{parent}`"),
    )
}

fn of_address(rule: &IpRule, ip: IpAddr) -> Option<Candidate> {
    let bits = u32::from(rule.bits);
    let common = match (rule.network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => (network.to_bits() ^ ip.to_bits()).leading_zeros(),
        (IpAddr::V6(network), IpAddr::V6(ip)) => (network.to_bits() ^ ip.to_bits()).leading_zeros(),
        _ => return None,
    };
    let distance = usize::try_from(bits.saturating_sub(common)).unwrap_or(usize::MAX);
    let difference = if distance == 0 {
        "it matches".to_owned()
    } else {
        format!("{ip} is not in {rule}: the first {common} of {bits} bits are the same")
    };
    Some(Candidate {
        share: share(distance, usize::from(rule.bits)),
        rule: NearestRule {
            rule: format!("IP:{rule}"),
            san: format!("IP:{ip}"),
            distance,
            difference,
        },
    })
}

/// `scheme://host` of a URI, or its scheme.
fn authority(uri: &str) -> &str {
    let after = uri.find("://").map_or(0, |at| at + 3);
    let end = uri
        .get(after..)
        .and_then(|rest| rest.find('/'))
        .map_or(uri.len(), |at| after + at);
    uri.get(..end).unwrap_or(uri)
}

fn share(distance: usize, of: usize) -> f64 {
    let small = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    small(distance) / small(of.max(1))
}

fn clip(text: &str) -> &str {
    let end = (0..=COMPARED.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use ah_identity_provider::KeyKind;

    use super::*;

    fn leaf(uris: &[&str], dns: &[&str], ips: &[&str]) -> CertificateFacts {
        let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        CertificateFacts {
            subject: String::new(),
            issuer: String::new(),
            serial: "01".into(),
            sha256: "ff".into(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            uris: owned(uris),
            dns: owned(dns),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            key: KeyKind::Ed25519,
            is_ca: false,
        }
    }

    fn rules(uris: &[&str], dns: &[&str], ips: &[&str]) -> SanRules {
        let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        SanRules::parse(&owned(uris), &owned(dns), &owned(ips)).unwrap()
    }

    // AP-5 to AP-7, ER-7: of many rules the one that was meant is found, and what is different is said.
    #[test]
    fn er_7_the_nearest_rule_is_the_one_that_was_meant() {
        let rules = rules(
            &[
                "spiffe://example.org/ah/agent",
                "spiffe://example.org/somewhere/else/",
            ],
            &["*.executors.example.com", "build-1.example.net"],
            &["10.1.0.0/16", "2001:db8::/32"],
        );
        for (leaf, rule, distance, words) in [
            (
                leaf(&["spiffe://example.org/ah/agents/w-1"], &[], &[]),
                "URI:spiffe://example.org/ah/agent",
                1,
                "`spiffe://example.org/ah/agents` where",
            ),
            (
                leaf(&["spiffe://example.org/ah/agen/w-1"], &[], &[]),
                "URI:spiffe://example.org/ah/agent",
                1,
                "`spiffe://example.org/ah/agen` where",
            ),
            (
                leaf(&["spiffe://example.com/ah/agent/w-1"], &[], &[]),
                "URI:spiffe://example.org/ah/agent",
                3,
                "is of `spiffe://example.com`",
            ),
            (
                leaf(&["spiffe://example.org/ah"], &[], &[]),
                "URI:spiffe://example.org/ah/agent",
                6,
                "goes on with `/agent`",
            ),
            (
                leaf(&["spiffe://example.org/somewhere/else"], &[], &[]),
                "URI:spiffe://example.org/somewhere/else/",
                1,
                "what is below",
            ),
            (
                leaf(&[], &["a.b.executors.example.com"], &[]),
                "DNS:*.executors.example.com",
                2,
                "has 2: `a.b`",
            ),
            (
                leaf(&[], &["executors.example.com"], &[]),
                "DNS:*.executors.example.com",
                2,
                "has none",
            ),
            (
                leaf(&[], &["w-1.executor.example.com"], &[]),
                "DNS:*.executors.example.com",
                1,
                "`executor.example.com` where",
            ),
            (
                leaf(&[], &["build-2.example.net"], &[]),
                "DNS:build-1.example.net",
                1,
                "`build-2.example.net` where",
            ),
            (
                leaf(&[], &[], &["10.2.0.9"]),
                "IP:10.1.0.0/16",
                2,
                "the first 14 of 16 bits",
            ),
            (
                leaf(&[], &[], &["2001:db9::1"]),
                "IP:2001:db8::/32",
                1,
                "the first 31 of 32 bits",
            ),
        ] {
            let nearest = rules.nearest(&leaf).unwrap();
            assert_eq!((nearest.rule.as_str(), nearest.distance), (rule, distance));
            assert!(nearest.difference.contains(words), "{nearest:?}");
        }
    }

    #[test]
    fn a_name_that_a_rule_takes_has_no_distance() {
        let rules = rules(
            &["spiffe://example.org/ah"],
            &["*.example.com"],
            &["10.0.0.0/8"],
        );
        for leaf in [
            leaf(&["spiffe://example.org/ah/x"], &["b.a.example.com"], &[]),
            leaf(
                &["spiffe://example.net/"],
                &["A.example.com"],
                &["11.0.0.0"],
            ),
            leaf(&[], &["example.com"], &["10.9.9.9"]),
        ] {
            assert_eq!(rules.nearest(&leaf).unwrap().distance, 0, "{leaf:?}");
        }
    }

    #[test]
    fn names_of_another_kind_or_size_are_no_trouble() {
        let uri_only = rules(&["spiffe://example.org/ah"], &[], &[]);
        assert_eq!(
            uri_only.nearest(&leaf(&[], &["a.example.org"], &["::1"])),
            None
        );
        assert_eq!(
            rules(&[], &[], &["10.0.0.0/8"]).nearest(&leaf(&[], &[], &["::1"])),
            None
        );
        assert_eq!(
            SanRules::default().nearest(&leaf(&["spiffe://a/b"], &[], &[])),
            None
        );
        let long = format!("spiffe://example.org/{}", "ä".repeat(40_000));
        let nearest = uri_only.nearest(&leaf(&[&long, "x:"], &[], &[])).unwrap();
        assert!(nearest.distance <= COMPARED);
    }
}
