//! SSH's binary encoding (RFC 4251 §5).

use crate::node::binary::{Reader, SHORT, without_zeros};

impl<'a> Reader<'a> {
    pub(super) fn string(&mut self) -> Result<&'a [u8], &'static str> {
        let length = usize::try_from(self.u32()?).map_err(|_| SHORT)?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, &'static str> {
        std::str::from_utf8(self.string()?).map_err(|_| "a text in it is no UTF-8")
    }

    /// A number from 0 on, big-endian, without leading zeros.
    pub(super) fn mpint(&mut self) -> Result<&'a [u8], &'static str> {
        let number = self.string()?;
        if number.first().is_some_and(|first| *first >= 0x80) {
            return Err("a number in it is negative");
        }
        Ok(without_zeros(number))
    }

    /// All strings to the end.
    pub(super) fn strings(mut self) -> Result<Vec<&'a str>, &'static str> {
        let mut all = Vec::new();
        while !self.rest().is_empty() {
            all.push(self.text()?);
        }
        Ok(all)
    }
}

/// `number` (big-endian) as an mpint.
pub(super) fn put_mpint(out: &mut Vec<u8>, number: &[u8]) {
    let number = without_zeros(number);
    let sign = number.first().is_some_and(|first| *first >= 0x80);
    let length = number.len().saturating_add(usize::from(sign));
    out.extend_from_slice(&u32::try_from(length).unwrap_or_default().to_be_bytes());
    out.extend(sign.then_some(0));
    out.extend_from_slice(number);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        // RFC 4251 §5: the examples of mpint.
        for (number, written) in [
            (&[][..], &[0, 0, 0, 0][..]),
            (&[0x80], &[0, 0, 0, 2, 0, 0x80]),
            (
                &[0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
                &[0, 0, 0, 8, 0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
            ),
        ] {
            let mut out = Vec::new();
            put_mpint(&mut out, number);
            assert_eq!(out, written);
            assert_eq!(Reader::new(&out).mpint(), Ok(number));
        }
        let negative = [0, 0, 0, 2, 0xed, 0xcc];
        assert!(Reader::new(&negative).mpint().is_err());
        assert_eq!(Reader::new(&[0, 0, 0, 5, 1]).string(), Err(SHORT));
        assert_eq!(Reader::new(&[0xff; 4]).string(), Err(SHORT));
    }
}
