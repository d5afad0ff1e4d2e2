//! Numbers as they are written. What they become is decided by the field that takes them.

use zeroize::Zeroizing;

use super::HclError;
use super::scanner::{Cursor, Token};

/// `42`, `-42`, `0x2a`, `052`, `4.2`, `.42`, `4.2e-1`. The cursor stands before the first character.
pub(super) fn scan(cursor: &mut Cursor<'_>) -> Result<Token, HclError> {
    let start = cursor.position();
    let unexpected = |c: char| {
        HclError::new(
            start,
            format!("expected a value, found \"{c}\" without a number"),
        )
    };
    let digit = |c: char| c.is_ascii_digit();
    let mut text = String::new();

    if cursor.take('-') {
        text.push('-');
        if !cursor.peek().is_some_and(digit) {
            return Err(unexpected('-'));
        }
    } else if cursor.peek() == Some('.') {
        let mut ahead = cursor.clone();
        ahead.next();
        if !ahead.peek().is_some_and(digit) {
            return Err(unexpected('.'));
        }
    }

    if cursor.take('0') {
        text.push('0');
        if let Some(x @ ('x' | 'X')) = cursor.peek() {
            cursor.next();
            text.push(x);
            let digits = text.len();
            cursor.take_while(&mut text, |c| c.is_ascii_hexdigit());
            if text.len() == digits {
                return cursor.error("expected hexadecimal digits after \"0x\"");
            }
            return Ok(Token::Number(Zeroizing::new(text)));
        }
    }
    cursor.take_while(&mut text, digit);

    let mut float = false;
    if cursor.take('.') {
        float = true;
        text.push('.');
        cursor.take_while(&mut text, digit);
    }
    if let Some(e @ ('e' | 'E')) = cursor.peek() {
        float = true;
        cursor.next();
        text.push(e);
        if let Some(sign @ ('-' | '+')) = cursor.peek() {
            cursor.next();
            text.push(sign);
        }
        if !cursor.peek().is_some_and(digit) {
            return cursor.error("expected digits in the exponent");
        }
        cursor.take_while(&mut text, digit);
    }
    Ok(if float {
        Token::Float(text)
    } else {
        Token::Number(Zeroizing::new(text))
    })
}
