//! Durations as Go writes them: `1h30m`, `250ms`, `-2s`.
//!
//! Configuration files and flags of SPIRE carry Go durations, and help texts print them.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form number and unit, repeated.
    #[error(
        "invalid duration {0:?}; write numbers with units, as in \"1h30m\" (units: ns, us, ms, s, m, h)"
    )]
    Syntax(String),
    /// A number without its unit.
    #[error(
        "missing unit in duration {0:?}; write it as in \"1h30m\" (units: ns, us, ms, s, m, h)"
    )]
    MissingUnit(String),
    /// A unit that does not exist.
    #[error("unknown unit {unit:?} in duration {text:?} (units: ns, us, ms, s, m, h)")]
    UnknownUnit {
        /// What stood where a unit belongs.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Below zero where only a span of time has a meaning.
    #[error("duration {0:?} is negative; give zero or more")]
    Negative(String),
}

const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Reads a Go duration. At most 292 years, as in Go; a negative one is refused.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let syntax = || DurationError::Syntax(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(syntax());
    }

    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(syntax());
        }
        let end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end).ok_or_else(syntax)?;
        let nanoseconds = unit_nanoseconds(unit, text)?;
        rest = after;
        let part = scaled(whole, fraction, nanoseconds).ok_or_else(syntax)?;
        total = total.checked_add(part).ok_or_else(syntax)?;
    }
    if total > i64::MAX.unsigned_abs() {
        return Err(syntax());
    }
    if negative && total != 0 {
        return Err(DurationError::Negative(text.to_owned()));
    }
    Ok(Duration::from_nanos(total))
}

/// Writes a duration as Go prints it: `1h0m0s`, `1.5s`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let second = u128::from(SECOND);
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if nanoseconds < second {
        let (unit, size) = match nanoseconds {
            n if n < u128::from(MICROSECOND) => ("ns", NANOSECOND),
            n if n < u128::from(MILLISECOND) => ("µs", MICROSECOND),
            _ => ("ms", MILLISECOND),
        };
        return format!("{}{unit}", with_fraction(nanoseconds, u128::from(size)));
    }
    let minutes = nanoseconds / u128::from(MINUTE);
    let seconds = with_fraction(nanoseconds % u128::from(MINUTE), second);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn unit_nanoseconds(unit: &str, text: &str) -> Result<u64, DurationError> {
    match unit {
        "ns" => Ok(NANOSECOND),
        "us" | "µs" | "μs" => Ok(MICROSECOND),
        "ms" => Ok(MILLISECOND),
        "s" => Ok(SECOND),
        "m" => Ok(MINUTE),
        "h" => Ok(HOUR),
        "" => Err(DurationError::MissingUnit(text.to_owned())),
        other => Err(DurationError::UnknownUnit {
            unit: other.to_owned(),
            text: text.to_owned(),
        }),
    }
}

fn scaled(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut part: u64 = 0;
    let mut scale = unit;
    for digit in fraction.bytes() {
        scale /= 10;
        part += scale * u64::from(digit - b'0');
    }
    whole.checked_mul(unit)?.checked_add(part)
}

fn with_fraction(value: u128, unit: u128) -> String {
    let whole = value / unit;
    let rest = value % unit;
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!(
        "{whole}.{}",
        format!("{rest:0width$}").trim_end_matches('0')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("5s", 5 * SECOND),
            ("+5s", 5 * SECOND),
            ("1h30m", 90 * MINUTE),
            ("1.5h", 90 * MINUTE),
            (".5s", SECOND / 2),
            ("5.s", 5 * SECOND),
            ("3us", 3_000),
            ("3µs", 3_000),
            ("100ms", 100 * MILLISECOND),
            ("24h", 24 * HOUR),
        ];
        for (text, nanoseconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses_and_says_why() {
        assert_eq!(parse("5"), Err(DurationError::MissingUnit("5".into())));
        for text in ["", "s", ".", "-", "1h-5m", "9999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(matches!(parse("1d"), Err(DurationError::UnknownUnit { unit, .. }) if unit == "d"));
        assert_eq!(parse("-1s"), Err(DurationError::Negative("-1s".into())));
    }

    #[test]
    fn prints_what_go_prints() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100 * MILLISECOND, "100ms"),
            (SECOND, "1s"),
            (1_500 * MILLISECOND, "1.5s"),
            (90 * SECOND, "1m30s"),
            (24 * HOUR, "24h0m0s"),
            (720 * HOUR + 1, "720h0m0.000000001s"),
        ];
        for (nanoseconds, text) in cases {
            assert_eq!(format(Duration::from_nanos(nanoseconds)), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_is_read_back(nanoseconds in 0..=i64::MAX.unsigned_abs()) {
            let duration = Duration::from_nanos(nanoseconds);
            proptest::prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
