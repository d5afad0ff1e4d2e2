//! A writer of DER (X.690 §10), as much of it as keys and certificates need.

/// Context-specific and constructed, number 0: `[0]` of an explicit tag.
pub const CONTEXT_CONSTRUCTED: u8 = 0xa0;
/// Context-specific and primitive, number 0: `[0]` of an implicit tag.
pub const CONTEXT: u8 = 0x80;
/// SEQUENCE
pub const SEQUENCE: u8 = 0x30;
/// SET
pub const SET: u8 = 0x31;
/// OCTET STRING
pub const OCTET_STRING: u8 = 0x04;
/// BIT STRING
pub const BIT_STRING: u8 = 0x03;
/// OBJECT IDENTIFIER
pub const OID: u8 = 0x06;
/// INTEGER
pub const INTEGER: u8 = 0x02;

/// Writes forwards into one buffer; lengths are filled in when a value ends.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// With room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// A value whose content is what `content` writes.
    pub fn nested(&mut self, tag: u8, content: impl FnOnce(&mut Self)) {
        self.0.push(tag);
        let start = self.0.len();
        content(self);
        let (header, used) = length(self.0.len().saturating_sub(start));
        self.0.splice(start..start, header.into_iter().take(used));
    }

    /// A value with this content.
    pub fn primitive(&mut self, tag: u8, content: &[u8]) {
        self.0.push(tag);
        let (header, used) = length(content.len());
        self.0.extend(header.into_iter().take(used));
        self.0.extend_from_slice(content);
    }

    /// DER that is there already.
    pub fn raw(&mut self, der: &[u8]) {
        self.0.extend_from_slice(der);
    }

    /// SEQUENCE
    pub fn sequence(&mut self, content: impl FnOnce(&mut Self)) {
        self.nested(SEQUENCE, content);
    }

    /// A non-negative INTEGER, big-endian.
    pub fn unsigned(&mut self, magnitude: &[u8]) {
        let zeros = magnitude.iter().take_while(|byte| **byte == 0).count();
        let digits = magnitude.get(zeros..).unwrap_or_default();
        self.nested(INTEGER, |w| {
            // A sign bit that is set would make it negative; no digits are the number 0.
            if digits.first().is_none_or(|byte| byte & 0x80 != 0) {
                w.0.push(0);
            }
            w.raw(digits);
        });
    }

    /// BOOLEAN
    pub fn boolean(&mut self, value: bool) {
        self.primitive(0x01, &[if value { 0xff } else { 0 }]);
    }

    /// NULL
    pub fn null(&mut self) {
        self.primitive(0x05, &[]);
    }

    /// A BIT STRING of whole bytes.
    pub fn bit_string(&mut self, content: impl FnOnce(&mut Self)) {
        self.nested(BIT_STRING, |w| {
            w.0.push(0);
            content(w);
        });
    }
}

/// Tag and length stand before `used` bytes of the header: 1 to 9.
fn length(content: usize) -> ([u8; 9], usize) {
    let mut header = [0; 9];
    let digits = content.to_be_bytes();
    let zeros = digits.iter().take_while(|byte| **byte == 0).count();
    let significant = digits.get(zeros..).unwrap_or_default();
    if content < 0x80 {
        header[0] = significant.first().copied().unwrap_or_default();
        return (header, 1);
    }
    header[0] = 0x80 | u8::try_from(significant.len()).unwrap_or_default();
    for (to, from) in header.iter_mut().skip(1).zip(significant) {
        *to = *from;
    }
    (header, significant.len().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_as_few_bytes_as_they_can() {
        for (content, header) in [
            (0, vec![0x04, 0x00]),
            (127, vec![0x04, 0x7f]),
            (128, vec![0x04, 0x81, 0x80]),
            (256, vec![0x04, 0x82, 0x01, 0x00]),
            (70_000, vec![0x04, 0x83, 0x01, 0x11, 0x70]),
        ] {
            let bytes = vec![7; content];
            let mut flat = Writer::default();
            flat.primitive(OCTET_STRING, &bytes);
            let mut nested = Writer::default();
            nested.nested(OCTET_STRING, |w| w.raw(&bytes));
            assert_eq!(flat.as_slice(), nested.as_slice());
            assert!(flat.as_slice().starts_with(&header), "{content}");
            assert_eq!(flat.finish().len(), header.len() + content);
        }
    }

    #[test]
    fn integers_are_positive_and_minimal() {
        for (magnitude, der) in [
            (&[][..], &[2, 1, 0][..]),
            (&[0, 0], &[2, 1, 0]),
            (&[0, 0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
        ] {
            let mut w = Writer::default();
            w.unsigned(magnitude);
            assert_eq!(w.finish(), der);
        }
    }
}
