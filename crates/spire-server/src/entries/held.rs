//! An entry as it is held by the hundred thousand.

use std::sync::Arc;

use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::{spiffe_id_to_wire, types};
use spiffe::{SpiffeId, TrustDomain};

/// A registration entry without what makes [`Entry`] large: parents are shared, and what few entries have is apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name in the datastore.
    pub id: Box<str>,
    /// What is issued.
    pub spiffe_id: SpiffeId,
    /// The agent, or the entry of nodes, that may serve it.
    pub parent_id: Arc<SpiffeId>,
    /// Sorted, without duplicates.
    pub selectors: Box<[Selector]>,
    /// Unix seconds; 0 is never.
    pub expires_at: i64,
    /// Counts the changes.
    pub revision: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Seconds; 0 is the server's default.
    pub x509_svid_ttl: i32,
    /// Seconds; 0 is the server's default.
    pub jwt_svid_ttl: i32,
    /// JWT-SVIDs carry a unique `jti`.
    pub jwt_svid_include_jti: bool,
    disable_x509_svid_prefetch: bool,
    admin: bool,
    downstream: bool,
    store_svid: bool,
    rare: Option<Box<Rare>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    federates_with: Vec<TrustDomain>,
    dns_names: Vec<String>,
    hint: String,
}

impl Held {
    /// `parent_id` is `entry`'s, shared with those that have the same.
    pub(super) fn new(entry: Entry, parent_id: Arc<SpiffeId>) -> Self {
        let rare = Rare {
            federates_with: entry.federates_with,
            dns_names: entry.dns_names,
            hint: entry.hint,
        };
        Self {
            id: entry.id.into(),
            spiffe_id: entry.spiffe_id,
            parent_id,
            selectors: entry.selectors.into(),
            expires_at: entry.expires_at,
            revision: entry.revision,
            created_at: entry.created_at,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            jwt_svid_include_jti: entry.jwt_svid_include_jti,
            disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
            admin: entry.admin,
            downstream: entry.downstream,
            store_svid: entry.store_svid,
            rare: (rare != Rare::default()).then(|| Box::new(rare)),
        }
    }

    /// DNS SANs of the SVID; the first one becomes its common name.
    pub fn dns_names(&self) -> &[String] {
        self.rare.as_ref().map_or(&[], |rare| &rare.dns_names)
    }

    /// As agents get it: all fields.
    pub fn to_wire(&self) -> types::Entry {
        let rare = self.rare.as_deref().cloned().unwrap_or_default();
        let more = types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
        };
        types::Entry {
            id: self.id.to_string(),
            spiffe_id: Some(spiffe_id_to_wire(&self.spiffe_id)),
            parent_id: Some(spiffe_id_to_wire(&self.parent_id)),
            selectors: self.selectors.iter().cloned().map(Into::into).collect(),
            x509_svid_ttl: self.x509_svid_ttl,
            federates_with: rare
                .federates_with
                .iter()
                .map(ToString::to_string)
                .collect(),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.expires_at,
            dns_names: rare.dns_names,
            revision_number: self.revision,
            store_svid: self.store_svid,
            jwt_svid_ttl: self.jwt_svid_ttl,
            hint: rare.hint,
            created_at: self.created_at,
            additional_attributes: (more != Default::default()).then_some(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::entry_to_wire;

    use super::*;

    fn held(entry: &Entry) -> Held {
        Held::new(entry.clone(), Arc::new(entry.parent_id.clone()))
    }

    #[test]
    fn agents_get_what_is_stored() {
        let id = |path: &str| SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap();
        let selectors = vec![
            Selector::new("unix", "uid:1"),
            Selector::new("unix", "uid:2"),
        ];
        let mut entry = Entry::new(id("w"), id("spire/agent/a"), selectors);
        entry.id = "e".into();
        assert_eq!(held(&entry).to_wire(), entry_to_wire(&entry));
        let all = Entry {
            x509_svid_ttl: 1,
            jwt_svid_ttl: 2,
            federates_with: vec![TrustDomain::new("other.org").unwrap()],
            admin: true,
            downstream: true,
            expires_at: 3,
            dns_names: vec!["b".into(), "a".into()],
            revision: 4,
            store_svid: true,
            hint: "h".into(),
            created_at: 5,
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
            ..entry.clone()
        };
        assert_eq!(held(&all).to_wire(), entry_to_wire(&all));
        assert_eq!(held(&all).dns_names(), ["b", "a"]);
        assert_ne!(held(&all), held(&entry));
    }
}
