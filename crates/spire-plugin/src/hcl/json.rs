//! The JSON form. What is valid JSON is read; trailing commas and Go's escapes are too, as upstream reads them.

mod flatten;
mod text;

use zeroize::Zeroizing;

use super::scanner::{Cursor, Token};
use super::{HclError, Item, Key, KeyStyle, List, Literal, Object, Scalar, Value, deeper, number};

pub(super) fn parse(text: &str) -> Result<Object, HclError> {
    let mut cursor = Cursor::new(text);
    let Value::Object(mut object) = value(&mut cursor, 0)? else {
        return cursor.error("expected an object");
    };
    skip_blank(&mut cursor);
    if cursor.peek().is_some() {
        return cursor.error("expected the end of the text after the closing \"}\"");
    }
    object.items = flatten::items(object.items);
    Ok(object)
}

fn value(cursor: &mut Cursor<'_>, depth: usize) -> Result<Value, HclError> {
    skip_blank(cursor);
    let position = cursor.position();
    let scalar = match cursor.peek() {
        Some('{') => {
            cursor.next();
            let items = object(cursor, deeper(depth, position)?)?;
            return Ok(Value::Object(Object { position, items }));
        }
        Some('[') => {
            cursor.next();
            let values = list(cursor, deeper(depth, position)?)?;
            return Ok(Value::List(List { position, values }));
        }
        Some('"') => {
            cursor.next();
            Scalar::Text(text::scan(cursor, position)?)
        }
        Some('-' | '0'..='9') => number(cursor)?,
        _ => word(cursor)?,
    };
    Ok(Value::Literal(Literal { position, scalar }))
}

fn object(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<Item>, HclError> {
    let mut items = Vec::new();
    loop {
        skip_blank(cursor);
        if cursor.take('}') {
            return Ok(items);
        }
        let position = cursor.position();
        if !cursor.take('"') {
            return cursor.error("expected a key in double quotes or \"}\"");
        }
        let name = (*text::scan(cursor, position)?).clone();
        skip_blank(cursor);
        if !cursor.take(':') {
            return cursor.error(format!("expected \":\" after the key {name:?}"));
        }
        let key = Key {
            position,
            name,
            style: KeyStyle::Json,
        };
        items.push(Item {
            keys: vec![key],
            value: value(cursor, depth)?,
        });
        skip_blank(cursor);
        if !cursor.take(',') && cursor.peek() != Some('}') {
            return cursor.error("expected \",\" or \"}\" in an object");
        }
    }
}

fn list(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<Value>, HclError> {
    let mut values = Vec::new();
    loop {
        skip_blank(cursor);
        if cursor.take(']') {
            return Ok(values);
        }
        values.push(value(cursor, depth)?);
        skip_blank(cursor);
        if !cursor.take(',') && cursor.peek() != Some(']') {
            return cursor.error("expected \",\" or \"]\" in a list");
        }
    }
}

fn number(cursor: &mut Cursor<'_>) -> Result<Scalar, HclError> {
    let start = cursor.position();
    match number::scan(cursor)? {
        Token::Number(text) => {
            let unsigned = text.trim_start_matches('-');
            if unsigned.len() > 1 && unsigned.starts_with('0') {
                return Err(HclError::new(
                    start,
                    "a number in JSON does not begin with 0",
                ));
            }
            Ok(Scalar::Number(text))
        }
        Token::Float(text) => Ok(Scalar::Float(text)),
        other => Err(HclError::new(
            start,
            format!("expected a number, found {}", other.describe()),
        )),
    }
}

/// `true`, `false` or `null`, which counts as an empty text.
fn word(cursor: &mut Cursor<'_>) -> Result<Scalar, HclError> {
    let start = cursor.position();
    let mut word = String::new();
    cursor.take_while(&mut word, |c| c.is_ascii_alphabetic());
    match word.as_str() {
        "true" => Ok(Scalar::Bool(true)),
        "false" => Ok(Scalar::Bool(false)),
        "null" => Ok(Scalar::Text(Zeroizing::new(String::new()))),
        _ => Err(HclError::new(
            start,
            "expected a value: a text, number, true, false, null, \"{\" or \"[\"",
        )),
    }
}

fn skip_blank(cursor: &mut Cursor<'_>) {
    while matches!(cursor.peek(), Some(' ' | '\t' | '\n' | '\r')) {
        cursor.next();
    }
}
