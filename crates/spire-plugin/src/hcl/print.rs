//! From a tree back to text, for plugins in processes of their own: they are sent HCL.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::scanner::{is_digit, is_letter};
use super::{Item, Key, KeyStyle, Object, Scalar, Value};

/// Writes an object's items as HCL 1 that reads back as the same. Comments and layout are not kept.
#[must_use]
pub fn print(object: &Object) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    print_items(&object.items, 0, &mut text);
    text
}

fn print_items(items: &[Item], depth: usize, text: &mut String) {
    for item in items {
        indent(depth, text);
        for key in &item.keys {
            print_key(key, text);
            text.push(' ');
        }
        if !matches!(item.value, Value::Object(_)) {
            text.push_str("= ");
        }
        print_value(&item.value, depth, text);
        text.push('\n');
    }
}

fn print_key(key: &Key, text: &mut String) {
    if key.style == KeyStyle::Bare && is_bare(&key.name) {
        text.push_str(&key.name);
    } else {
        print_text(&key.name, text);
    }
}

fn print_value(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Literal(literal) => match &literal.scalar {
            Scalar::Number(number) => text.push_str(number),
            Scalar::Float(number) => text.push_str(number),
            Scalar::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Scalar::Text(value) => print_text(value, text),
        },
        Value::Object(object) if object.items.is_empty() => text.push_str("{}"),
        Value::Object(object) => {
            text.push_str("{\n");
            print_items(&object.items, depth + 1, text);
            indent(depth, text);
            text.push('}');
        }
        Value::List(list) => {
            text.push('[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                print_value(value, depth, text);
            }
            text.push(']');
        }
    }
}

fn print_text(value: &str, text: &mut String) {
    text.push('"');
    let mut rest = value.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            // Else what follows would be taken for an interpolation, where escapes do not count.
            '$' if rest.peek() == Some(&'{') => text.push_str("\\x24"),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

fn is_bare(name: &str) -> bool {
    let mut rest = name.chars();
    rest.next().is_some_and(is_letter)
        && rest.all(|c| is_letter(c) || is_digit(c) || c == '-' || c == '.')
        && !matches!(name, "true" | "false")
}

fn indent(depth: usize, text: &mut String) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}
