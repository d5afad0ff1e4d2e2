//! What entries are found by in a set, without a copy of it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use spiffe::SpiffeId;

use super::held::Held;

/// By its own ID.
pub(super) struct ById(pub(super) Arc<Held>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

/// By what it issues, then by its own ID.
pub(super) struct ByIssued(pub(super) Arc<Held>);

/// What entries are sorted by on the way up, so that a search needs no entry.
pub(super) trait Issued {
    fn key(&self) -> (&SpiffeId, &str);
}

impl Issued for ByIssued {
    fn key(&self) -> (&SpiffeId, &str) {
        (&self.0.spiffe_id, &self.0.id)
    }
}

impl Issued for (&SpiffeId, &str) {
    fn key(&self) -> (&SpiffeId, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Issued + 'a> for ByIssued {
    fn borrow(&self) -> &(dyn Issued + 'a) {
        self
    }
}

impl PartialEq for ByIssued {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByIssued {}

impl PartialOrd for ByIssued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByIssued {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialEq for dyn Issued + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn Issued + '_ {}

impl PartialOrd for dyn Issued + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Issued + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}
