//! The few words of Thrift's compact protocol that M3's collectors are told in.

/// Types of fields and elements.
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// The protocol's number, then its version and the type of a call without an answer.
const ONE_WAY: [u8; 2] = [0x82, 4 << 5 | 1];

/// A struct that is being written, field by field in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Struct {
    bytes: Vec<u8>,
    last: u8,
}

impl Struct {
    fn field(&mut self, id: u8, kind: u8) {
        // All structs here have few fields, so that the step fits its four bits.
        self.bytes.push(id.saturating_sub(self.last) << 4 | kind);
        self.last = id;
    }

    pub(super) fn i32(mut self, id: u8, value: i32) -> Self {
        self.field(id, I32);
        signed(&mut self.bytes, value.into());
        self
    }

    pub(super) fn i64(mut self, id: u8, value: i64) -> Self {
        self.field(id, I64);
        signed(&mut self.bytes, value);
        self
    }

    pub(super) fn double(mut self, id: u8, value: f64) -> Self {
        self.field(id, DOUBLE);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub(super) fn text(mut self, id: u8, text: &str) -> Self {
        self.field(id, BINARY);
        binary(&mut self.bytes, text);
        self
    }

    pub(super) fn inner(mut self, id: u8, inner: Self) -> Self {
        self.field(id, STRUCT);
        self.bytes.extend(inner.end());
        self
    }

    /// Of structs that have ended.
    pub(super) fn list(mut self, id: u8, items: &[Vec<u8>]) -> Self {
        self.field(id, LIST);
        match u8::try_from(items.len()) {
            Ok(few @ 0..15) => self.bytes.push(few << 4 | STRUCT),
            _ => {
                self.bytes.push(0xf0 | STRUCT);
                unsigned(&mut self.bytes, items.len() as u64);
            }
        }
        self.bytes.extend(items.iter().flatten());
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}

/// The message of a call that nobody answers.
pub(super) fn one_way(method: &str, sequence: u32, arguments: Struct) -> Vec<u8> {
    let mut bytes = ONE_WAY.to_vec();
    unsigned(&mut bytes, sequence.into());
    binary(&mut bytes, method);
    bytes.extend(arguments.end());
    bytes
}

fn binary(bytes: &mut Vec<u8>, text: &str) {
    unsigned(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

fn signed(bytes: &mut Vec<u8>, value: i64) {
    unsigned(bytes, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn unsigned(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
