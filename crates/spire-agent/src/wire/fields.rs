//! Messages written by hand, field by field into buffers that never grow: a growing buffer leaves copies of the keys in
//! it behind.

use zeroize::Zeroizing;

/// Length-delimited fields of a protobuf message. Wiped when they go.
pub(crate) struct Fields(Zeroizing<Vec<u8>>);

impl Fields {
    /// All of `fields`, each a number below 16 and its content.
    pub(crate) fn of(fields: &[(u8, &[u8])]) -> Self {
        const LENGTH_DELIMITED: u8 = 2;
        // A tag is one byte here, a length at most ten.
        let room = fields.iter().map(|(_, content)| content.len() + 11).sum();
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        for (number, content) in fields {
            out.push(number << 3 | LENGTH_DELIMITED);
            prost::encoding::encode_varint(content.len() as u64, &mut *out);
            out.extend_from_slice(content);
        }
        Self(out)
    }

    /// As [`Fields::of`], without those that have no content: a string or bytes that are empty are not sent (proto3).
    pub(crate) fn without_empty(fields: &[(u8, &[u8])]) -> Self {
        let full = fields.iter().filter(|(_, content)| !content.is_empty());
        Self::of(&full.copied().collect::<Vec<_>>())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
