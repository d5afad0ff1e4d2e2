//! Entries that are stored nowhere: upstream's rules, in its words.

use ah_spire_wire::model::Entry;

use crate::store::{EntryMask, StoreError};

/// Longest ID of an entry, as upstream's.
const ID_LENGTH: usize = 255;

pub(super) fn valid(entry: &Entry, mask: &EntryMask) -> Result<(), StoreError> {
    let refuse = |why: &str| {
        Err(StoreError::Invalid(format!(
            "invalid registration entry: {why}"
        )))
    };
    if mask.selectors && entry.selectors.is_empty() {
        return refuse("missing selector list");
    }
    if mask.x509_svid_ttl && entry.x509_svid_ttl < 0 {
        return refuse("X509SvidTtl is not set");
    }
    if mask.jwt_svid_ttl && entry.jwt_svid_ttl < 0 {
        return refuse("JwtSvidTtl is not set");
    }
    if *mask == EntryMask::ALL {
        one_kind(entry)?;
    }
    Ok(())
}

/// An entry for an SVIDStore plugin is for one kind of plugin.
pub(super) fn one_kind(entry: &Entry) -> Result<(), StoreError> {
    if !entry.store_svid {
        return Ok(());
    }
    if entry.disable_x509_svid_prefetch {
        return Err(StoreError::Invalid(
            "specifying cache behaviour is incompatible with storable SVIDs".into(),
        ));
    }
    let kinds: std::collections::BTreeSet<_> = entry.selectors.iter().map(|s| &s.kind).collect();
    if kinds.len() > 1 {
        return Err(StoreError::Invalid(
            "invalid registration entry: selector types must be the same when store SVID is enabled".into(),
        ));
    }
    Ok(())
}

pub(super) fn valid_id(id: &str) -> Result<(), StoreError> {
    if id.len() > ID_LENGTH {
        return Err(StoreError::Invalid(
            "invalid registration entry: entry ID too long".into(),
        ));
    }
    if !id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Err(StoreError::Invalid(
            "invalid registration entry: entry ID contains invalid characters".into(),
        ));
    }
    Ok(())
}
