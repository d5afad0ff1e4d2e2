//! URI name constraints of a signer (RFC 5280 §4.2.1.10), which the path validator does not read.

use spiffe::SpiffeId;
use x509_parser::extensions::{GeneralName, GeneralSubtree};
use x509_parser::prelude::X509Certificate;

use crate::svid::{SV_35, SvidFault};

/// The hosts that a signer may and may not name in URIs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UriConstraints {
    permitted: Vec<String>,
    excluded: Vec<String>,
}

impl UriConstraints {
    /// The constraints that `signer` sets; empty when it sets none on URIs.
    pub(crate) fn of(signer: &X509Certificate<'_>) -> Self {
        let Ok(Some(constraints)) = signer.name_constraints() else {
            return Self::default();
        };
        let hosts = |subtrees: &Option<Vec<GeneralSubtree<'_>>>| {
            subtrees
                .iter()
                .flatten()
                .filter_map(|subtree| match subtree.base {
                    GeneralName::URI(host) => Some(host.to_ascii_lowercase()),
                    _ => None,
                })
                .collect()
        };
        Self {
            permitted: hosts(&constraints.value.permitted_subtrees),
            excluded: hosts(&constraints.value.excluded_subtrees),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.permitted.is_empty() && self.excluded.is_empty()
    }

    /// SV-35, when `id` is outside.
    pub(crate) fn fault(&self, id: &SpiffeId) -> Option<SvidFault> {
        let host = id.trust_domain_name();
        if let Some(constraint) = self.excluded.iter().find(|c| within(host, c)) {
            return Some(SV_35.fault(format!("`{id}` is in the excluded `{constraint}`")));
        }
        if self.permitted.is_empty() || self.permitted.iter().any(|c| within(host, c)) {
            return None;
        }
        let permitted = self.permitted.join("`, `");
        Some(SV_35.fault(format!("`{id}` is outside the permitted `{permitted}`")))
    }
}

/// A constraint that begins with a period names every host below it, any other one host.
fn within(host: &str, constraint: &str) -> bool {
    if constraint.is_empty() {
        return true;
    }
    if constraint.starts_with('.') {
        return host.len() > constraint.len() && host.ends_with(constraint);
    }
    host == constraint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leading_period_means_below_and_nothing_else_does() {
        assert!(within("example.org", "example.org"));
        assert!(within("a.b.example.org", ".example.org"));
        assert!(within("anything", ""));
        assert!(!within("example.org", ".example.org"));
        assert!(!within("a.example.org", "example.org"));
        assert!(!within("evilexample.org", "example.org"));
    }
}
