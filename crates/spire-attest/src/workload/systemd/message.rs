//! Messages of D-Bus and their bytes (D-Bus Specification, "Message Protocol").

/// The largest message that is read, in bytes. What is asked for has some hundred.
const MAX_BYTES: usize = 64 * 1024;

/// What breaks the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bus sent {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// A call of a method.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) arguments: &'a [Argument<'a>],
}

/// What a method is told.
pub(super) enum Argument<'a> {
    /// `u`
    Number(u32),
    /// `s`
    Text(&'a str),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Reply,
    Error,
    /// A signal, or a call of this client's methods, of which there are none.
    Other,
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// The serial number of the call.
    pub(super) reply_to: Option<u32>,
    /// The error's name.
    pub(super) error: String,
    /// The types of the body's values.
    signature: String,
    order: Order,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

impl Call<'_> {
    /// Its bytes, in little-endian order. Fails if a text is longer than a message may be.
    pub(super) fn encode(&self, serial: u32) -> Result<Vec<u8>, Malformed> {
        let mut body = Writer::default();
        let mut signature = String::new();
        for argument in self.arguments {
            match argument {
                Argument::Number(number) => {
                    signature.push('u');
                    body.number(*number);
                }
                Argument::Text(text) => {
                    signature.push('s');
                    body.text(text)?;
                }
            }
        }
        let mut fields = Writer::default();
        for (code, kind, text) in [
            (PATH, "o", self.path),
            (INTERFACE, "s", self.interface),
            (MEMBER, "s", self.member),
            (DESTINATION, "s", self.destination),
        ] {
            fields.field(code, kind)?;
            fields.text(text)?;
        }
        if !signature.is_empty() {
            fields.field(SIGNATURE, "g")?;
            fields.signature(&signature)?;
        }
        // Little-endian, a call, no flags, version 1 of the protocol.
        let mut message = Writer(vec![b'l', 1, 0, 1]);
        message.number(length(&body.0)?);
        message.number(serial);
        message.number(length(&fields.0)?);
        message.0.extend(fields.0);
        message.align(8);
        message.0.extend(body.0);
        Ok(message.0)
    }
}

fn length(bytes: &[u8]) -> Result<u32, Malformed> {
    let length = u32::try_from(bytes.len()).ok();
    length.ok_or(Malformed("a name that is too long"))
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) -> Result<(), Malformed> {
        self.number(length(text.as_bytes())?);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        Ok(())
    }

    fn signature(&mut self, text: &str) -> Result<(), Malformed> {
        let length = u8::try_from(text.len());
        self.0
            .push(length.map_err(|_| Malformed("a name that is too long"))?);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        Ok(())
    }

    /// The start of a header field whose value is of type `kind`.
    fn field(&mut self, code: u8, kind: &str) -> Result<(), Malformed> {
        self.align(8);
        self.0.push(code);
        self.signature(kind)
    }
}

impl Message {
    /// The bytes of every message that say how long it is.
    pub(super) const FIXED: usize = 16;

    /// How long the message is whose first [`Self::FIXED`] bytes are `start`.
    pub(super) fn length(start: &[u8]) -> Result<usize, Malformed> {
        let (_, body, fields) = fixed(start)?;
        let whole = Self::FIXED
            .checked_add(fields.next_multiple_of(8))
            .and_then(|whole| whole.checked_add(body));
        let whole = whole.filter(|whole| *whole <= MAX_BYTES);
        whole.ok_or(Malformed("a message that is too large"))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (order, _, fields) = fixed(bytes)?;
        let cut = Malformed("a message that is cut off");
        let kind = match bytes.get(1) {
            Some(2) => Kind::Reply,
            Some(3) => Kind::Error,
            _ => Kind::Other,
        };
        let end = Self::FIXED + fields;
        let mut message = Self {
            kind,
            reply_to: None,
            error: String::new(),
            signature: String::new(),
            order,
            body: bytes.get(end.next_multiple_of(8)..).ok_or(cut)?.to_vec(),
        };
        let mut reader = Reader {
            bytes: bytes.get(..end).ok_or(cut)?,
            at: Self::FIXED,
            order,
        };
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            let value = reader.signature()?;
            match (code, value.as_str()) {
                (REPLY_SERIAL, "u") => message.reply_to = Some(reader.number()?),
                (ERROR_NAME, "s") => message.error = reader.text()?,
                (SIGNATURE, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => reader.text().map(drop)?,
                (_, "g") => reader.signature().map(drop)?,
                (_, "u") => reader.number().map(|_| ())?,
                _ => return Err(Malformed("a header field of another type")),
            }
        }
        Ok(message)
    }

    /// Its one value, a path.
    pub(super) fn path(&self) -> Result<String, Malformed> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_');
        match self.signature.as_str() {
            "o" => Some(self.reader().text()?),
            _ => None,
        }
        .filter(|path| path.starts_with('/') && path.chars().all(is_path))
        .ok_or(Malformed("another answer than a path"))
    }

    /// Its first value, a text.
    pub(super) fn text(&self) -> Result<String, Malformed> {
        match self.signature.starts_with('s') {
            true => self.reader().text(),
            false => Err(Malformed("another answer than a text")),
        }
    }

    /// Its one value, a variant that holds a text.
    pub(super) fn variant_text(&self) -> Result<String, Malformed> {
        let mut reader = self.reader();
        if self.signature == "v" && reader.signature()? == "s" {
            return reader.text();
        }
        Err(Malformed("another answer than a text in a variant"))
    }

    /// The body begins at a multiple of 8, so that it is aligned as if it stood alone.
    fn reader(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
            order: self.order,
        }
    }
}

/// Byte order, length of the body, length of the header's fields.
fn fixed(bytes: &[u8]) -> Result<(Order, usize, usize), Malformed> {
    let order = match bytes.first() {
        Some(b'l') => Order::Little,
        Some(b'B') => Order::Big,
        _ => return Err(Malformed("something that is no message")),
    };
    let mut reader = Reader {
        bytes,
        at: 4,
        order,
    };
    let body = reader.number()?;
    reader.number()?;
    let fields = reader.number()?;
    let size =
        |number| usize::try_from(number).map_err(|_| Malformed("a message that is too large"));
    Ok((order, size(body)?, size(fields)?))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    order: Order,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let cut = Malformed("a message that is cut off");
        let end = self.at.checked_add(count).ok_or(cut)?;
        let taken = self.bytes.get(self.at..end).ok_or(cut)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.take(1)?.first().copied();
        byte.ok_or(Malformed("a message that is cut off"))
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into();
        let bytes = bytes.map_err(|_| Malformed("a message that is cut off"))?;
        Ok(match self.order {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        })
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.number()?;
        let length = usize::try_from(length).map_err(|_| Malformed("a text that is too long"))?;
        self.ended(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        self.ended(length.into())
    }

    /// A text of `length` bytes, and the zero after it.
    fn ended(&mut self, length: usize) -> Result<String, Malformed> {
        let text = self.take(length)?;
        let text = std::str::from_utf8(text).map_err(|_| Malformed("a text that is not UTF-8"))?;
        match self.byte()? {
            0 => Ok(text.to_owned()),
            _ => Err(Malformed("a text that does not end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `GetUnitByPID(258)`, as the specification lays it out.
    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let call = Call {
            destination: "a.b",
            path: "/c",
            interface: "d.e",
            member: "F",
            arguments: &[Argument::Number(258), Argument::Text("x")],
        };
        let expected = [
            &b"l\x01\x00\x01\x0a\x00\x00\x00\x07\x00\x00\x00\x48\x00\x00\x00"[..],
            b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00F\x00\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x02us\x00",
            b"\x02\x01\x00\x00\x01\x00\x00\x00x\x00",
        ]
        .concat();
        assert_eq!(call.encode(7).unwrap(), expected);
    }

    #[test]
    fn an_answer_is_read_in_either_byte_order() {
        let little = b"l\x02\x01\x01\x07\0\0\0\x05\0\0\0\x0f\0\0\0\x05\x01u\0\x09\0\0\0\x08\x01g\0\x01o\0\0\x02\0\0\0/u\0";
        let big = b"B\x02\x01\x01\0\0\0\x07\0\0\0\x05\0\0\0\x0f\x05\x01u\0\0\0\0\x09\x08\x01g\0\x01o\0\0\0\0\0\x02/u\0";
        for bytes in [&little[..], big] {
            assert_eq!(Message::length(&bytes[..16]), Ok(bytes.len()));
            let message = Message::decode(bytes).unwrap();
            assert_eq!((message.kind, message.reply_to), (Kind::Reply, Some(9)));
            assert_eq!(message.path().unwrap(), "/u");
            assert!(message.text().is_err());
            assert!(message.variant_text().is_err());
            for cut in 0..bytes.len() {
                let part = Message::decode(&bytes[..cut]);
                assert!(part.and_then(|part| part.path()).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let huge = b"l\x02\x01\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0";
        assert!(Message::length(huge).is_err());
        let huge = b"l\x02\x01\x01\0\0\0\0\x01\0\0\0\xff\xff\xff\xff";
        assert!(Message::length(huge).is_err());
        assert!(Message::length(b"HTTP/1.1 200 OK\r").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(
            order in prop_oneof![Just(b'l'), Just(b'B')],
            mut bytes in proptest::collection::vec(any::<u8>(), 16..200),
        ) {
            bytes[0] = order;
            if let Ok(message) = Message::decode(&bytes) {
                let _ = (message.path(), message.text(), message.variant_text());
            }
        }
    }
}
