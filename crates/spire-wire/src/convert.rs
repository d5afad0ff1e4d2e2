//! Between messages and values.

use spiffe::{SpiffeId, TrustDomain};

use crate::model::{Entry, Selector};
use crate::types;

/// A message that stands for no valid value. The text names the field, in the words that clients of upstream know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    fn new(field: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("{field}: {why}"))
    }
}

/// `None` and a malformed ID are invalid; `field` names it in the error.
pub fn spiffe_id_from_wire(id: Option<&types::Spiffeid>, field: &str) -> Result<SpiffeId, Invalid> {
    let id = id.ok_or_else(|| Invalid::new(field, "request must specify SPIFFE ID"))?;
    if id.trust_domain.is_empty() {
        return Err(Invalid::new(field, "trust domain is missing"));
    }
    // The wire writes paths with their leading slash, older clients without.
    let slash = if id.path.is_empty() || id.path.starts_with('/') {
        ""
    } else {
        "/"
    };
    SpiffeId::new(format!("spiffe://{}{slash}{}", id.trust_domain, id.path))
        .map_err(|error| Invalid::new(field, error))
}

/// Trust domain and path apart.
pub fn spiffe_id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: id.trust_domain_name().to_owned(),
        path: id.path().to_owned(),
    }
}

/// The values that an entry stands for; which of them a server takes is for the server to say.
pub fn entry_from_wire(entry: &types::Entry) -> Result<Entry, Invalid> {
    let mut selectors = Vec::with_capacity(entry.selectors.len());
    for selector in &entry.selectors {
        selectors.push(selector_from_wire(selector)?);
    }
    selectors.sort_unstable();
    selectors.dedup();
    let mut federates_with = Vec::with_capacity(entry.federates_with.len());
    for domain in &entry.federates_with {
        let domain =
            TrustDomain::new(domain).map_err(|error| Invalid::new("federates_with", error))?;
        federates_with.push(domain);
    }
    let more = entry.additional_attributes.unwrap_or_default();
    Ok(Entry {
        id: entry.id.clone(),
        spiffe_id: spiffe_id_from_wire(entry.spiffe_id.as_ref(), "spiffe_id")?,
        parent_id: spiffe_id_from_wire(entry.parent_id.as_ref(), "parent_id")?,
        selectors,
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names.clone(),
        revision: entry.revision_number,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        disable_x509_svid_prefetch: more.disable_x509_svid_prefetch,
        jwt_svid_include_jti: more.jwt_svid_include_jti,
    })
}

/// Neither half may be empty, and the type has no colon.
pub fn selector_from_wire(selector: &types::Selector) -> Result<Selector, Invalid> {
    if selector.r#type.is_empty() {
        return Err(Invalid::new("selectors", "selector type is empty"));
    }
    if selector.r#type.contains(':') {
        return Err(Invalid::new("selectors", "selector type contains ':'"));
    }
    if selector.value.is_empty() {
        return Err(Invalid::new("selectors", "selector value is empty"));
    }
    Ok(Selector::from(selector.clone()))
}

/// All fields.
pub fn entry_to_wire(entry: &Entry) -> types::Entry {
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: Some(spiffe_id_to_wire(&entry.spiffe_id)),
        parent_id: Some(spiffe_id_to_wire(&entry.parent_id)),
        selectors: entry.selectors.iter().cloned().map(Into::into).collect(),
        ..entry_rest_to_wire(entry)
    }
}

/// The fields after the selectors.
pub(crate) fn entry_rest_to_wire(entry: &Entry) -> types::Entry {
    let more = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    };
    types::Entry {
        x509_svid_ttl: entry.x509_svid_ttl,
        federates_with: entry
            .federates_with
            .iter()
            .map(ToString::to_string)
            .collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names.clone(),
        revision_number: entry.revision,
        store_svid: entry.store_svid,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        additional_attributes: (more != Default::default()).then_some(more),
        ..types::Entry::default()
    }
}

impl From<Selector> for types::Selector {
    fn from(selector: Selector) -> Self {
        Self {
            r#type: selector.kind,
            value: selector.value,
        }
    }
}

impl From<types::Selector> for Selector {
    fn from(selector: types::Selector) -> Self {
        Self::new(selector.r#type, selector.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            id: "e".into(),
            spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
            parent_id: SpiffeId::new("spiffe://example.org/spire/agent/a").unwrap(),
            selectors: vec![
                Selector::new("unix", "gid:2"),
                Selector::new("unix", "uid:1"),
            ],
            x509_svid_ttl: 60,
            jwt_svid_ttl: 30,
            federates_with: vec![TrustDomain::new("other.org").unwrap()],
            admin: true,
            downstream: true,
            expires_at: 5,
            dns_names: vec!["w.example.org".into()],
            revision: 3,
            store_svid: true,
            hint: "h".into(),
            created_at: 4,
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }
    }

    #[test]
    fn an_entry_survives_the_wire() {
        assert_eq!(entry_from_wire(&entry_to_wire(&entry())), Ok(entry()));
    }

    #[test]
    fn what_is_no_entry_is_named() {
        let mut wire = entry_to_wire(&entry());
        wire.parent_id = None;
        let error = entry_from_wire(&wire).unwrap_err().to_string();
        assert!(error.starts_with("parent_id: "), "{error}");
        let mut wire = entry_to_wire(&entry());
        wire.selectors[0].value.clear();
        let error = entry_from_wire(&wire).unwrap_err().to_string();
        assert_eq!(error, "selectors: selector value is empty");
    }

    #[test]
    fn selectors_keep_the_colons_of_their_values() {
        let selector: Selector = "docker:label:app:web".parse().unwrap();
        assert_eq!(selector, Selector::new("docker", "label:app:web"));
        for text in ["", "unix", "unix:", ":uid"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
