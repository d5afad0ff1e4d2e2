//! Texts as Go prints them.

use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

/// A moment as `%v` prints a `time.Time` in UTC: `2006-01-02 15:04:05 +0000 UTC`.
pub(super) fn moment(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    OffsetDateTime::from(at).format(&format).unwrap_or_default()
}

/// `value` as `encoding/json` writes it: on one line, what HTML reads as markup escaped.
pub(super) fn json(value: &Value) -> String {
    let text = value.to_string();
    // None of these stand outside of strings.
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A number of a JSON object that went through `google.protobuf.Struct`: integers have no fraction.
pub(super) fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
        return Value::from(value as i64);
    }
    Value::from(value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_numbers_and_markup_look_as_in_go() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_136_214_245);
        assert_eq!(moment(at), "2006-01-02 15:04:05 +0000 UTC");
        let value = serde_json::json!({"a": number(1.7e9), "b": number(0.5), "c": "<&>"});
        assert_eq!(
            json(&value),
            r#"{"a":1700000000,"b":0.5,"c":"\u003c\u0026\u003e"}"#
        );
    }
}
