//! Numbers, truth values and quotes as Go's `strconv` reads and writes them.

/// Why a text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberError {
    Syntax,
    Range,
}

/// Reads an integer as `strconv.ParseInt(text, 0, 64)` does: sign, `0x`, `0o`, `0b` or a leading `0` for octal,
/// underscores between digits after a base prefix or in decimals.
pub(crate) fn parse_int(text: &str) -> Result<i64, NumberError> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits, prefixed) = radix_of(unsigned);
    let digits = without_underscores(digits, prefixed).ok_or(NumberError::Syntax)?;
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(NumberError::Syntax);
    }
    let magnitude =
        i128::from(u64::from_str_radix(&digits, radix).map_err(|_| NumberError::Range)?);
    let value = if negative { -magnitude } else { magnitude };
    i64::try_from(value).map_err(|_| NumberError::Range)
}

/// Reads a truth value as `strconv.ParseBool` does.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Writes a text in double quotes as Go's `%q` does.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn radix_of(unsigned: &str) -> (u32, &str, bool) {
    let lower = |letter: char| {
        let rest = unsigned.strip_prefix('0')?;
        rest.strip_prefix(letter)
            .or_else(|| rest.strip_prefix(letter.to_ascii_uppercase()))
    };
    if let Some(digits) = lower('x') {
        (16, digits, true)
    } else if let Some(digits) = lower('b') {
        (2, digits, true)
    } else if let Some(digits) = lower('o') {
        (8, digits, true)
    } else if let Some(digits) = unsigned
        .strip_prefix('0')
        .filter(|digits| !digits.is_empty())
    {
        (8, digits, true)
    } else {
        (10, unsigned, false)
    }
}

/// An underscore may stand between two digits, or between a base prefix and the first digit.
fn without_underscores(digits: &str, prefixed: bool) -> Option<String> {
    if !digits.contains('_') {
        return Some(digits.to_owned());
    }
    let leading = digits.starts_with('_');
    if (leading && !prefixed) || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    Some(digits.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_go_bases_and_bounds() {
        let cases = [
            ("8081", 8081),
            ("-5", -5),
            ("+7", 7),
            ("0", 0),
            ("0x1F", 31),
            ("0X1f", 31),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("1_000", 1000),
            ("0x_ff", 255),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ];
        for (text, value) in cases {
            assert_eq!(parse_int(text), Ok(value), "{text}");
        }
        for text in [
            "", "-", "+", "08", "0x", "abc", "1.5", "_1", "1_", "1__0", " 1", "--1", "+-1",
        ] {
            assert_eq!(parse_int(text), Err(NumberError::Syntax), "{text}");
        }
        for text in ["9223372036854775808", "99999999999999999999999"] {
            assert_eq!(parse_int(text), Err(NumberError::Range), "{text}");
        }
    }

    #[test]
    fn quotes_hide_nothing_and_break_no_line() {
        assert_eq!(quote("a\"b\\c\nd\u{1}"), "\"a\\\"b\\\\c\\nd\\u0001\"");
    }
}
