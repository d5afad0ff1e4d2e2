use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ah_spire_wire::model::{Entry, Selector};

/// Finds the entries whose selectors are all among a workload's.
///
/// Each entry stands under one of its selectors alone, the one with the fewest entries: a workload looks up what it
/// has, and every entry is met at most once.
#[derive(Default)]
pub(super) struct Index {
    by_selector: HashMap<Selector, HashSet<Arc<str>>>,
    under: HashMap<Arc<str>, Selector>,
}

impl Index {
    /// Adds `entry`, or puts it elsewhere when its selectors changed.
    pub(super) fn put(&mut self, id: &Arc<str>, entry: &Entry) {
        self.remove(id);
        let size = |selector: &&Selector| self.by_selector.get(*selector).map_or(0, HashSet::len);
        let Some(rarest) = entry.selectors.iter().min_by_key(size).cloned() else {
            return;
        };
        self.by_selector
            .entry(rarest.clone())
            .or_default()
            .insert(id.clone());
        self.under.insert(id.clone(), rarest);
    }

    pub(super) fn remove(&mut self, id: &Arc<str>) {
        let Some(selector) = self.under.remove(id) else {
            return;
        };
        if let Some(ids) = self.by_selector.get_mut(&selector) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_selector.remove(&selector);
            }
        }
    }

    /// Those that may match; whether all selectors do is for the caller to see.
    pub(super) fn candidates<'a>(
        &'a self,
        selectors: &'a [Selector],
    ) -> impl Iterator<Item = &'a Arc<str>> {
        selectors
            .iter()
            .filter_map(|selector| self.by_selector.get(selector))
            .flatten()
    }
}
