//! An index made at once, which is quicker and smaller than one entry after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use ah_spire_wire::model::Entry;
use spiffe::TrustDomain;

use super::index::Index;
use super::order::{ById, ByIssued, Parent};
use crate::store::Agent;

/// An index that nobody looks into yet.
pub(super) struct Building {
    index: Index,
    issued: Vec<ByIssued>,
}

impl Building {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            index: Index::new(trust_domain),
            issued: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, entry: Entry) {
        let index = &mut self.index;
        if !index.is_ours(&entry) {
            return;
        }
        let entry = Arc::new(index.hold(&entry));
        self.issued.push(ByIssued(Arc::clone(&entry)));
        if entry.expires_at != 0 {
            let end = (entry.expires_at, entry.id().to_owned());
            index.ends.insert(end);
        }
        if entry.is_alias() {
            index.add_alias(entry);
        } else if let Some(siblings) = index.children.get_mut(entry.parent_id.path().as_bytes()) {
            siblings.push(entry);
        } else {
            let parent = Parent(Arc::clone(&entry.parent_id));
            index.children.insert(parent, vec![entry]);
        }
    }

    /// With all `agents` there are.
    pub(super) fn finish(self, agents: Vec<Agent>) -> Index {
        let Self { mut index, issued } = self;
        for siblings in index.children.values_mut() {
            siblings.sort_unstable_by(|a, b| a.id_bytes().cmp(b.id_bytes()));
            siblings.shrink_to_fit();
        }
        index.by_id.reserve(issued.len());
        let entries = issued.iter();
        index
            .by_id
            .extend(entries.map(|ByIssued(entry)| ById(Arc::clone(entry))));
        index.issued = BTreeSet::from_iter(issued);
        for agent in agents {
            index.agents.insert(agent.id.clone(), Arc::new(agent));
        }
        index
    }
}
