//! Texts in JSON.

use zeroize::Zeroizing;

use super::super::scanner::Cursor;
use super::super::{HclError, Position};

/// Reads up to the closing quote. The cursor stands after the opening one.
pub(super) fn scan(
    cursor: &mut Cursor<'_>,
    start: Position,
) -> Result<Zeroizing<String>, HclError> {
    let mut text = Zeroizing::new(String::new());
    loop {
        let at = cursor.position();
        match cursor.next() {
            Some('"') => return Ok(text),
            Some('\\') => text.push(escape(cursor, at)?),
            None | Some('\n') => {
                return Err(HclError::new(
                    start,
                    "the text is not closed on its line; expected '\"'",
                ));
            }
            Some(c) => text.push(c),
        }
    }
}

fn escape(cursor: &mut Cursor<'_>, at: Position) -> Result<char, HclError> {
    Ok(match cursor.next() {
        Some('"') => '"',
        Some('\\') => '\\',
        Some('/') => '/',
        Some('a') => '\u{7}',
        Some('b') => '\u{8}',
        Some('f') => '\u{c}',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('v') => '\u{b}',
        Some('u') => {
            let first = four_digits(cursor, at)?;
            if !(0xd800..0xdc00).contains(&first) {
                return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            if !(cursor.take('\\') && cursor.take('u')) {
                return Err(HclError::new(
                    at,
                    "expected the second half of the character, \"\\u\", after its first",
                ));
            }
            let second = four_digits(cursor, at)?;
            let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400);
            let pair = low.and_then(|low| char::from_u32(0x10000 + ((first - 0xd800) << 10) + low));
            pair.ok_or_else(|| HclError::new(at, "the second half of the character is none"))?
        }
        _ => {
            return Err(HclError::new(
                at,
                "illegal escape in a text; write \"\\\\\" for a backslash",
            ));
        }
    })
}

fn four_digits(cursor: &mut Cursor<'_>, at: Position) -> Result<u32, HclError> {
    let mut value = 0;
    for _ in 0..4 {
        let digit = cursor.next().and_then(|c| c.to_digit(16));
        let digit = digit
            .ok_or_else(|| HclError::new(at, "expected four hexadecimal digits after \"\\u\""))?;
        value = value * 16 + digit;
    }
    Ok(value)
}
