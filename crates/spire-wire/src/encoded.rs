//! Answers of the service of entries that are put together from entries encoded before: an agent is given thousands.
//!
//! On the wire there is no difference between a message and its bytes.

use prost::bytes::Bytes;

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
