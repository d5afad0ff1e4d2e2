//! What entries are found by in a set, without a copy of it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use spiffe::SpiffeId;

use super::held::Held;

/// By its own ID.
pub(super) struct ById(pub(super) Arc<Held>);

impl Borrow<[u8]> for ById {
    fn borrow(&self) -> &[u8] {
        self.0.id_bytes()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id_bytes().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id_bytes() == other.0.id_bytes()
    }
}

impl Eq for ById {}

/// By the path of what it issues, then by its own ID. All are of one trust domain.
pub(super) struct ByIssued(pub(super) Arc<Held>);

/// What entries are sorted by on the way up, so that a search needs no entry.
pub(super) trait Issued {
    fn key(&self) -> (&[u8], &[u8]);
}

impl Issued for ByIssued {
    fn key(&self) -> (&[u8], &[u8]) {
        (self.0.path(), self.0.id_bytes())
    }
}

impl Issued for (&[u8], &[u8]) {
    fn key(&self) -> (&[u8], &[u8]) {
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

/// What entries stand below, found by its path. All are of one trust domain.
pub(super) struct Parent(pub(super) Arc<SpiffeId>);

impl Borrow<[u8]> for Parent {
    fn borrow(&self) -> &[u8] {
        self.0.path().as_bytes()
    }
}

impl Hash for Parent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.path().as_bytes().hash(state);
    }
}

impl PartialEq for Parent {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}

impl Eq for Parent {}
