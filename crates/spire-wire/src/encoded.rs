//! Answers of the service of entries that are put together from entries encoded before: an agent is given thousands.
//!
//! On the wire there is no difference between a message and its bytes.

use prost::Message;
use prost::bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use spiffe::SpiffeId;

use crate::convert::entry_rest_to_wire;
use crate::model::Entry;
use crate::server::entry::EntryRevision;

mod service {
    #![expect(
        clippy::allow_attributes,
        reason = "generated; the .proto files say what there is to say"
    )]
    include!(concat!(
        env!("OUT_DIR"),
        "/encoded/spire.api.server.entry.v1.rs"
    ));
}

pub use service::entry_server;

/// [`crate::server::entry::GetAuthorizedEntriesResponse`] of encoded entries.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetAuthorizedEntriesResponse {
    /// An encoded [`crate::types::Entry`] each.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub entries: Vec<Bytes>,
}

/// [`crate::server::entry::SyncAuthorizedEntriesResponse`] of encoded entries.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SyncAuthorizedEntriesResponse {
    /// Which there are, where there are too many to send all of them unasked.
    #[prost(message, repeated, tag = "1")]
    pub entry_revisions: Vec<EntryRevision>,
    /// An encoded [`crate::types::Entry`] each.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub entries: Vec<Bytes>,
    /// Whether another message with entries follows.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// Room for an entry with a selector or two.
const USUAL: usize = 256;

/// An encoded [`crate::types::Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedEntry {
    /// All fields, in the order of their numbers.
    pub bytes: Box<[u8]>,
    /// Where the entry's own ID ends in them.
    pub id_end: usize,
    /// Where the path of the SPIFFE ID that is issued ends.
    pub path_end: usize,
}

/// What [`crate::entry_to_wire`] encodes to, without a copy of each text in between: a server that starts does it for all
/// entries there are.
pub fn encode_entry(entry: &Entry) -> EncodedEntry {
    let mut room = Vec::with_capacity(USUAL);
    put_text(1, &entry.id, &mut room);
    let id_end = room.len();
    put_spiffe_id(2, &entry.spiffe_id, &mut room);
    let path_end = room.len();
    put_spiffe_id(3, &entry.parent_id, &mut room);
    for selector in &entry.selectors {
        put_texts(4, &selector.kind, &selector.value, &mut room);
    }
    room.append(&mut entry_rest_to_wire(entry).encode_to_vec());
    EncodedEntry {
        bytes: room.into(),
        id_end,
        path_end,
    }
}

fn put_spiffe_id(number: u32, id: &SpiffeId, room: &mut Vec<u8>) {
    put_texts(number, id.trust_domain_name(), id.path(), room);
}

/// A message of two texts.
fn put_texts(number: u32, first: &str, second: &str, room: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, room);
    let length = |text: &str| match text.len() {
        0 => 0,
        n => 1 + encoded_len_varint(n as u64) + n,
    };
    encode_varint((length(first) + length(second)) as u64, room);
    put_text(1, first, room);
    put_text(2, second, room);
}

/// An empty text is not sent.
fn put_text(number: u32, text: &str, room: &mut Vec<u8>) {
    if text.is_empty() {
        return;
    }
    encode_key(number, WireType::LengthDelimited, room);
    encode_varint(text.len() as u64, room);
    room.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{server::entry, types};

    // inventory §8 Entry: GetAuthorizedEntries, SyncAuthorizedEntries
    #[test]
    fn clients_read_what_was_encoded_before() {
        let one = |id: &str| types::Entry {
            id: id.to_owned(),
            x509_svid_ttl: 60,
            ..Default::default()
        };
        let entries = vec![one("a"), one("b")];
        let encoded: Vec<Bytes> = entries
            .iter()
            .map(|one| one.encode_to_vec().into())
            .collect();
        let all = GetAuthorizedEntriesResponse {
            entries: encoded.clone(),
        };
        let read = entry::GetAuthorizedEntriesResponse::decode(&*all.encode_to_vec());
        assert_eq!(read.unwrap().entries, entries);

        let revision = EntryRevision {
            id: "a".to_owned(),
            revision_number: 2,
            created_at: 3,
        };
        let page = SyncAuthorizedEntriesResponse {
            entry_revisions: vec![revision.clone()],
            entries: encoded,
            more: true,
        };
        let read = entry::SyncAuthorizedEntriesResponse::decode(&*page.encode_to_vec());
        let wanted = entry::SyncAuthorizedEntriesResponse {
            entry_revisions: vec![revision],
            entries,
            more: true,
        };
        assert_eq!(read, Ok(wanted));
    }
}
