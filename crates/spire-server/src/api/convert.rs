//! Requests as values, judged in the words of upstream.

use std::collections::BTreeSet;

use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::types;
use ah_spire_wire::types::federates_with_match::MatchBehavior as FederatesMatch;
use ah_spire_wire::types::selector_match::MatchBehavior as SelectorsMatch;
use spiffe::{SpiffeId, TrustDomain};

use super::dns;
use crate::ids::{self, Kind};
use crate::store::{self, EntryMask, Match};

/// Bytes.
const LONGEST_HINT: usize = 1024;

/// The fields of `entry` that `mask` names, judged; the others are empty.
pub(super) fn entry(
    entry: &types::Entry,
    of: &TrustDomain,
    mask: &EntryMask,
) -> Result<Entry, String> {
    let parent_id = masked_id(mask.parent_id, entry.parent_id.as_ref(), of, Kind::Member)
        .map_err(|why| format!("invalid parent ID: {why}"))?;
    let spiffe_id = masked_id(mask.spiffe_id, entry.spiffe_id.as_ref(), of, Kind::Workload)
        .map_err(|why| format!("invalid spiffe ID: {why}"))?;
    if mask.dns_names {
        for name in &entry.dns_names {
            dns::check(name).map_err(|why| format!("invalid DNS name: {why}"))?;
        }
    }
    let mut federates_with = Vec::new();
    if mask.federates_with {
        for domain in &entry.federates_with {
            let domain = ids::trust_domain(domain)
                .map_err(|why| format!("invalid federated trust domain: {why}"))?;
            if !federates_with.contains(&domain) {
                federates_with.push(domain);
            }
        }
    }
    let mut found = Vec::new();
    if mask.selectors {
        if entry.selectors.is_empty() {
            return Err("selector list is empty".into());
        }
        found = selectors(&entry.selectors)?.into_iter().collect();
    }
    if mask.hint && entry.hint.len() > LONGEST_HINT {
        return Err(format!(
            "hint is too long, max length is {LONGEST_HINT} characters"
        ));
    }
    if (mask.x509_svid_ttl && entry.x509_svid_ttl < 0)
        || (mask.jwt_svid_ttl && entry.jwt_svid_ttl < 0)
    {
        return Err("a TTL cannot be negative".into());
    }
    let more = entry.additional_attributes.unwrap_or_default();
    Ok(Entry {
        id: entry.id.clone(),
        spiffe_id,
        parent_id,
        selectors: found,
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names.clone(),
        revision: 0,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        created_at: 0,
        disable_x509_svid_prefetch: more.disable_x509_svid_prefetch,
        jwt_svid_include_jti: more.jwt_svid_include_jti,
    })
}

/// An ID that an update leaves alone still needs a value of its type: the server's own, which no mask takes over.
fn masked_id(
    wanted: bool,
    id: Option<&types::Spiffeid>,
    of: &TrustDomain,
    kind: Kind,
) -> Result<SpiffeId, String> {
    if wanted {
        ids::of_domain(id, of, kind)
    } else {
        ids::server(of)
    }
}

/// Selectors without duplicates.
pub(super) fn selectors(wire: &[types::Selector]) -> Result<BTreeSet<Selector>, String> {
    let mut found = BTreeSet::new();
    for selector in wire {
        if selector.r#type.is_empty() {
            return Err("missing selector type".into());
        }
        if selector.r#type.contains(':') {
            return Err("selector type contains ':'".into());
        }
        if selector.value.is_empty() {
            return Err("missing selector value".into());
        }
        found.insert(Selector::from(selector.clone()));
    }
    Ok(found)
}

/// A filter by selectors.
pub(super) fn selector_match(
    wire: &types::SelectorMatch,
) -> Result<(Match, BTreeSet<Selector>), String> {
    let how = match wire.r#match() {
        SelectorsMatch::MatchExact => Match::Exact,
        SelectorsMatch::MatchSubset => Match::Subset,
        SelectorsMatch::MatchSuperset => Match::Superset,
        SelectorsMatch::MatchAny => Match::Any,
    };
    Ok((how, selectors(&wire.selectors)?))
}

/// A filter by trust domains.
pub(super) fn federates_match(
    wire: &types::FederatesWithMatch,
) -> Result<(Match, BTreeSet<TrustDomain>), String> {
    let how = match wire.r#match() {
        FederatesMatch::MatchExact => Match::Exact,
        FederatesMatch::MatchSubset => Match::Subset,
        FederatesMatch::MatchSuperset => Match::Superset,
        FederatesMatch::MatchAny => Match::Any,
    };
    let domains = wire
        .trust_domains
        .iter()
        .map(|domain| ids::trust_domain(domain));
    Ok((how, domains.collect::<Result<_, _>>()?))
}

/// An agent as it is told.
pub(super) fn agent(agent: &store::Agent) -> types::Agent {
    types::Agent {
        id: Some(ah_spire_wire::spiffe_id_to_wire(&agent.id)),
        attestation_type: agent.attestation_type.clone(),
        x509svid_serial_number: agent.serial_number.clone(),
        x509svid_expires_at: agent.expires_at,
        selectors: agent.selectors.iter().cloned().map(Into::into).collect(),
        banned: agent.serial_number.is_empty(),
        can_reattest: agent.can_reattest,
        agent_version: agent.version.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> types::Entry {
        let id = |path: &str| {
            Some(types::Spiffeid {
                trust_domain: "example.org".into(),
                path: path.into(),
            })
        };
        types::Entry {
            spiffe_id: id("/w"),
            parent_id: id("/spire/agent/join_token/a"),
            selectors: vec![types::Selector {
                r#type: "unix".into(),
                value: "uid:0".into(),
            }],
            ..types::Entry::default()
        }
    }

    fn judge(change: impl FnOnce(&mut types::Entry)) -> Result<Entry, String> {
        let mut wire = wire();
        change(&mut wire);
        entry(
            &wire,
            &TrustDomain::new("example.org").unwrap(),
            &EntryMask::ALL,
        )
    }

    // Inventory section 8: the texts that clients of BatchCreateEntry see.
    #[test]
    fn an_entry_is_judged_in_the_words_of_upstream() {
        assert!(judge(|_| {}).is_ok());
        for (error, text) in [
            (
                judge(|e| e.parent_id = None),
                "invalid parent ID: request must specify SPIFFE ID",
            ),
            (
                judge(|e| e.spiffe_id.as_mut().unwrap().path = "/spire/server".into()),
                "invalid spiffe ID: \"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
            ),
            (
                judge(|e| e.spiffe_id.as_mut().unwrap().trust_domain = "other.org".into()),
                "invalid spiffe ID: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
            ),
            (judge(|e| e.selectors.clear()), "selector list is empty"),
            (
                judge(|e| e.selectors[0].r#type.clear()),
                "missing selector type",
            ),
            (
                judge(|e| e.selectors[0].r#type = "a:b".into()),
                "selector type contains ':'",
            ),
            (
                judge(|e| e.selectors[0].value.clear()),
                "missing selector value",
            ),
            (
                judge(|e| e.dns_names = vec!["a.*".into()]),
                "invalid DNS name: wildcard must be first label",
            ),
            (
                judge(|e| e.federates_with = vec!["Bad".into()]),
                "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
            ),
            (
                judge(|e| e.hint = "h".repeat(1025)),
                "hint is too long, max length is 1024 characters",
            ),
        ] {
            assert_eq!(error.unwrap_err(), text);
        }
    }

    #[test]
    fn an_update_may_leave_out_what_its_mask_leaves_out() {
        let mut mask = EntryMask::ALL;
        (mask.spiffe_id, mask.parent_id, mask.selectors) = (false, false, false);
        let only_hint = types::Entry {
            id: "e".into(),
            hint: "h".into(),
            ..types::Entry::default()
        };
        let ours = TrustDomain::new("example.org").unwrap();
        assert_eq!(entry(&only_hint, &ours, &mask).unwrap().hint, "h");
    }
}
