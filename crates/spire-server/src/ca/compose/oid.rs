//! Object identifiers (X.660), as text and as DER.

use std::fmt;
use std::str::FromStr;

/// An object identifier, such as `2.5.4.45`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectId {
    text: String,
    /// Without tag and length.
    der: Vec<u8>,
}

/// A text that is no object identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid OID: {0:?} is not a list of numbers such as 2.5.4.45")]
pub struct NotAnOid(pub String);

impl ObjectId {
    /// The content of its DER (X.690 §8.19).
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ObjectId {
    type Err = NotAnOid;

    fn from_str(text: &str) -> Result<Self, NotAnOid> {
        encode(text)
            .map(|der| Self {
                text: text.to_owned(),
                der,
            })
            .ok_or_else(|| NotAnOid(text.to_owned()))
    }
}

fn encode(text: &str) -> Option<Vec<u8>> {
    let arc = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        (plain && (part == "0" || !part.starts_with('0')))
            .then(|| part.parse::<u64>().ok())
            .flatten()
    };
    let mut parts = text.split('.');
    let (first, second) = (arc(parts.next()?)?, arc(parts.next()?)?);
    if first > 2 || (first < 2 && second > 39) {
        return None;
    }
    let mut der = Vec::with_capacity(text.len());
    // The first two share a number.
    push(&mut der, first.checked_mul(40)?.checked_add(second)?);
    for part in parts {
        push(&mut der, arc(part)?);
    }
    Some(der)
}

/// Base 128, the most significant digit first; all but the last have the high bit.
fn push(der: &mut Vec<u8>, number: u64) {
    let digits = (1..10).rev().map(|at| number >> (7_u32 * at));
    let high = digits.skip_while(|digit| *digit == 0);
    der.extend(high.map(|digit| (digit & 0x7f) as u8 | 0x80));
    der.push((number & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_ids_are_read_and_written() {
        for (text, der) in [
            ("2.5.4.45", vec![0x55, 0x04, 0x2d]),
            ("0.0", vec![0]),
            ("1.39", vec![79]),
            ("2.999.3", vec![0x88, 0x37, 0x03]),
            (
                "1.3.6.1.4.1.37476",
                vec![0x2b, 6, 1, 4, 1, 0x82, 0xa4, 0x64],
            ),
        ] {
            let id: ObjectId = text.parse().unwrap();
            assert_eq!((id.as_der(), id.to_string()), (&der[..], text.to_owned()));
        }
        let largest = format!("2.5.{}", u64::MAX);
        assert_eq!(largest.parse::<ObjectId>().unwrap().as_der().len(), 11);
    }

    #[test]
    fn what_is_no_object_id_is_refused() {
        let above = format!("2.{}", u64::MAX);
        for text in [
            "", "2", "2.", ".5", "3.1", "1.40", "2.5.x", "2.-5", "2.+5", "2.05", &above,
        ] {
            let error = text.parse::<ObjectId>().unwrap_err();
            assert_eq!(error, NotAnOid(text.into()));
        }
    }
}
