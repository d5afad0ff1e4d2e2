//! Texts in double quotes.

use zeroize::Zeroizing;

use super::scanner::Cursor;
use super::{HclError, Position};

/// Reads up to the closing quote and resolves escapes. The cursor stands after the opening one.
///
/// Between `${` and its `}` nothing is resolved and quotes and line ends are plain characters: HCL 1 leaves
/// interpolations to others.
pub(super) fn scan(
    cursor: &mut Cursor<'_>,
    start: Position,
) -> Result<Zeroizing<String>, HclError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut braces = 0_usize;
    loop {
        let at = cursor.position();
        let c = match cursor.next() {
            Some('\n') if braces == 0 => None,
            other => other,
        };
        let Some(c) = c else {
            return Err(HclError::new(
                start,
                "the quoted text is not closed on its line; expected '\"'",
            ));
        };
        match c {
            '"' if braces == 0 => break,
            '$' if braces == 0 && cursor.take('{') => {
                braces = 1;
                bytes.extend_from_slice(b"${");
            }
            '\\' if braces == 0 => escape(cursor, at, &mut bytes)?,
            '\\' => {
                // Looked at so that an escaped quote does not end anything, but kept as written.
                let before = cursor.clone();
                escape(cursor, at, &mut Vec::new())?;
                push(&mut bytes, '\\');
                copy_between(before, cursor.position(), &mut bytes);
            }
            '{' if braces > 0 => {
                braces += 1;
                push(&mut bytes, c);
            }
            '}' if braces > 0 => {
                braces -= 1;
                push(&mut bytes, c);
            }
            c => push(&mut bytes, c),
        }
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| HclError::new(start, "the escapes of the text do not make up UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn escape(cursor: &mut Cursor<'_>, at: Position, bytes: &mut Vec<u8>) -> Result<(), HclError> {
    let illegal = |what: &str| {
        Err(HclError::new(
            at,
            format!("illegal escape in a text: {what}"),
        ))
    };
    let Some(c) = cursor.next() else {
        return illegal("the text ends after \"\\\"");
    };
    match c {
        'a' => bytes.push(0x07),
        'b' => bytes.push(0x08),
        'f' => bytes.push(0x0c),
        'n' => bytes.push(b'\n'),
        'r' => bytes.push(b'\r'),
        't' => bytes.push(b'\t'),
        'v' => bytes.push(0x0b),
        '\\' => bytes.push(b'\\'),
        '"' => bytes.push(b'"'),
        'x' => match digits(cursor, 16, 2).map(u8::try_from) {
            Some(Ok(byte)) => bytes.push(byte),
            _ => return illegal("expected two hexadecimal digits after \"\\x\""),
        },
        'u' | 'U' => {
            let count = if c == 'u' { 4 } else { 8 };
            match digits(cursor, 16, count) {
                Some(code) if code <= u32::from(char::MAX) => {
                    push(
                        bytes,
                        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
                    );
                }
                _ => {
                    return illegal(&format!(
                        "expected {count} hexadecimal digits of a character after \"\\{c}\""
                    ));
                }
            }
        }
        '0'..='7' => {
            let rest = digits(cursor, 8, 2);
            let value = rest
                .map(|rest| c.to_digit(8).unwrap_or(0) * 64 + rest)
                .map(u8::try_from);
            match value {
                Some(Ok(byte)) => bytes.push(byte),
                _ => return illegal("expected three octal digits, at most \\377"),
            }
        }
        c => return illegal(&format!("\"\\{c}\"; write \"\\\\\" for a backslash")),
    }
    Ok(())
}

fn digits(cursor: &mut Cursor<'_>, radix: u32, count: usize) -> Option<u32> {
    let mut value: u32 = 0;
    for _ in 0..count {
        let digit = cursor.peek()?.to_digit(radix)?;
        cursor.next();
        value = value.checked_mul(radix)?.checked_add(digit)?;
    }
    Some(value)
}

fn copy_between(mut from: Cursor<'_>, to: Position, bytes: &mut Vec<u8>) {
    while from.position() < to {
        match from.next() {
            Some(c) => push(bytes, c),
            None => return,
        }
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
