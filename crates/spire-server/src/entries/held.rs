//! An entry as it is held by the hundred thousand.

use std::ops::Range;
use std::sync::Arc;

use ah_spire_wire::encoded::{EncodedEntry, encode_entry};
use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::types;
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};
use spiffe::SpiffeId;

/// Path of the parent of node aliases.
const SERVER_PATH: &str = "/spire/server";

/// A registration entry as agents get it, encoded once: that takes less room than its values do, and an answer is made
/// by copying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    wire: Box<[u8]>,
    id: Part,
    path: Part,
    /// The agent, or the entry of nodes, that may serve it.
    pub(super) parent_id: Arc<SpiffeId>,
    /// Of an alias, which agents are compared with. Those of other entries are nothing to the server.
    pub(super) selectors: Box<[Selector]>,
    /// Unix seconds; 0 is never.
    pub(super) expires_at: i64,
    /// Counts the changes.
    pub revision: i64,
    /// Unix seconds.
    pub created_at: i64,
}

/// Where a text stands in the encoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    end: u32,
    length: u32,
}

impl Held {
    /// `parent_id` is `entry`'s, shared with those that have the same.
    pub(super) fn new(entry: &Entry, parent_id: Arc<SpiffeId>) -> Self {
        let EncodedEntry {
            bytes,
            id_end,
            path_end,
        } = encode_entry(entry);
        let is_alias = parent_id.path() == SERVER_PATH;
        Self {
            wire: bytes,
            id: Part::before(id_end, &entry.id),
            path: Part::before(path_end, entry.spiffe_id.path()),
            parent_id,
            selectors: match is_alias {
                true => entry.selectors.as_slice().into(),
                false => Box::default(),
            },
            expires_at: entry.expires_at,
            revision: entry.revision,
            created_at: entry.created_at,
        }
    }

    /// Whether it stands for agents, by their selectors, instead of for a workload.
    pub(super) fn is_alias(&self) -> bool {
        self.parent_id.path() == SERVER_PATH
    }

    /// Its name in the datastore.
    pub fn id(&self) -> &str {
        std::str::from_utf8(self.id_bytes()).unwrap_or_default()
    }

    /// As [`Self::id`], to compare with.
    pub(crate) fn id_bytes(&self) -> &[u8] {
        self.wire.get(self.id.range()).unwrap_or_default()
    }

    /// The path of the SPIFFE ID that is issued.
    pub(super) fn path(&self) -> &[u8] {
        self.wire.get(self.path.range()).unwrap_or_default()
    }

    /// As agents get it: all fields.
    ///
    /// # Errors
    /// None for what was encoded here.
    pub fn to_wire(&self) -> Result<types::Entry, DecodeError> {
        types::Entry::decode(&*self.wire)
    }

    /// Those fields of it as they are on the wire. `room` is filled and then split off.
    fn encoded(&self, fields: Fields, room: &mut BytesMut) -> Bytes {
        if fields == Fields::ALL {
            room.put_slice(&self.wire);
            return room.split().freeze();
        }
        let mut rest = &*self.wire;
        loop {
            let from = rest;
            let Ok((number, kind)) = decode_key(&mut rest) else {
                break;
            };
            if skip_field(kind, number, &mut rest, DecodeContext::default()).is_err() {
                break;
            }
            if fields.contain(number) {
                room.put_slice(from.get(..from.len() - rest.len()).unwrap_or_default());
            }
        }
        room.split().freeze()
    }
}

/// Those fields of `entries` as they are on the wire.
pub fn encoded(entries: &[Arc<Held>], fields: Fields) -> Vec<Bytes> {
    let mut room = BytesMut::with_capacity(entries.iter().map(|entry| entry.wire.len()).sum());
    let entries = entries.iter();
    entries
        .map(|entry| entry.encoded(fields, &mut room))
        .collect()
}

impl Part {
    fn before(end: usize, text: &str) -> Self {
        let short = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            end: short(end),
            length: short(text.len()),
        }
    }

    fn range(self) -> Range<usize> {
        let end = self.end as usize;
        end.saturating_sub(self.length as usize)..end
    }
}

/// The fields of an entry that a caller wants to see, by their numbers. The ID is always one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields(u32);

impl Fields {
    /// What one gets who masks nothing.
    pub const ALL: Self = Self(u32::MAX);

    fn contain(self, number: u32) -> bool {
        self.0.checked_shr(number).is_some_and(|bits| bits & 1 == 1)
    }
}

impl From<Option<&types::EntryMask>> for Fields {
    fn from(mask: Option<&types::EntryMask>) -> Self {
        let Some(mask) = mask else {
            return Self::ALL;
        };
        let wanted = [
            (1, true),
            (2, mask.spiffe_id),
            (3, mask.parent_id),
            (4, mask.selectors),
            (5, mask.x509_svid_ttl),
            (6, mask.federates_with),
            (7, mask.admin),
            (8, mask.downstream),
            (9, mask.expires_at),
            (10, mask.dns_names),
            (11, mask.revision_number),
            (12, mask.store_svid),
            (13, mask.jwt_svid_ttl),
            (14, mask.hint),
            (15, mask.created_at),
            (16, mask.additional_attributes),
        ];
        let bits = wanted.iter().filter(|(_, wanted)| *wanted);
        Self(bits.fold(0, |bits, (number, _)| bits | 1 << number))
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::entry_to_wire;
    use spiffe::TrustDomain;

    use super::*;

    fn held(entry: &Entry) -> Held {
        Held::new(entry, Arc::new(entry.parent_id.clone()))
    }

    fn id(path: &str) -> SpiffeId {
        SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap()
    }

    fn plain() -> Entry {
        let selectors = vec![
            Selector::new("unix", "uid:1"),
            Selector::new("unix", "uid:2"),
        ];
        Entry {
            id: "e".into(),
            ..Entry::new(id("w"), id("spire/agent/a"), selectors)
        }
    }

    fn full() -> Entry {
        Entry {
            // Longer than what one byte says the length of.
            id: "e".repeat(200),
            spiffe_id: id(&"w".repeat(300)),
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
            ..plain()
        }
    }

    #[test]
    fn agents_get_what_is_stored() {
        let nameless = Entry {
            id: String::new(),
            spiffe_id: SpiffeId::new("spiffe://example.org").unwrap(),
            ..plain()
        };
        for entry in [plain(), full(), nameless] {
            let held = held(&entry);
            assert_eq!(held.to_wire(), Ok(entry_to_wire(&entry)));
            assert_eq!(*held.wire, entry_to_wire(&entry).encode_to_vec());
            assert_eq!(held.id(), entry.id);
            assert_eq!(held.path(), entry.spiffe_id.path().as_bytes());
        }
        assert_ne!(held(&full()), held(&plain()));
    }

    // inventory §8 Entry: output_mask
    #[test]
    fn what_is_masked_is_left_out() {
        let wire = entry_to_wire(&full());
        let read = |mask: Option<&types::EntryMask>| {
            let encoded = held(&full()).encoded(mask.into(), &mut BytesMut::new());
            types::Entry::decode(encoded).unwrap()
        };
        assert_eq!(read(None), wire);
        let id = || types::Entry {
            id: wire.id.clone(),
            ..Default::default()
        };
        assert_eq!(read(Some(&types::EntryMask::default())), id());
        macro_rules! each {
            ($($field:ident),+) => {$(
                let mask = types::EntryMask { $field: true, ..Default::default() };
                let wanted = types::Entry { $field: wire.$field.clone(), ..id() };
                assert_eq!(read(Some(&mask)), wanted);
                assert_ne!(wanted, id(), stringify!($field));
            )+};
        }
        each!(
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl,
            federates_with,
            admin,
            downstream,
            expires_at,
            dns_names,
            revision_number,
            store_svid,
            jwt_svid_ttl,
            hint,
            created_at,
            additional_attributes
        );
    }
}
