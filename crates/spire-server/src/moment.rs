//! Times as upstream's command line and APIs write them.

use std::time::SystemTime;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

/// Go's `2006-01-02 15:04:05 -0700 -07`.
const EXPIRY: &[BorrowedFormatItem<'_>] = format_description!(
    "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
);
const SHOWN: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second] ");

/// Reads `2006-01-02 15:04:05 -0700 -07` to Unix seconds.
pub fn parse(text: &str) -> Result<i64, String> {
    let wrong = || format!("\"{text}\" is not of the form \"2006-01-02 15:04:05 -0700 -07\"");
    let (date, zone) = text.rsplit_once(' ').ok_or_else(wrong)?;
    let at = OffsetDateTime::parse(date, EXPIRY).map_err(|_| wrong())?;
    let sign = zone.starts_with(['+', '-']);
    if !sign || zone.len() != 3 || zone.parse::<i8>().is_err() {
        return Err(wrong());
    }
    Ok(at.unix_timestamp())
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(unix: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| at.to_string())
}

/// As Go prints a time in UTC: `2026-11-22 05:00:00 +0000 UTC`.
pub fn utc(unix: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let at = at.to_offset(UtcOffset::UTC);
    let shown = at.format(SHOWN).unwrap_or_else(|_| at.to_string());
    format!("{shown}+0000 UTC")
}

/// Unix seconds of now.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_go_does() {
        assert_eq!(parse("1970-01-01 01:00:10 +0100 +01"), Ok(10));
        assert_eq!(parse("2026-11-22 05:00:00 +0000 +00"), Ok(1_795_323_600));
        for bad in [
            "",
            "tomorrow",
            "2026-11-22",
            "2026-11-22 05:00:00 +0000 UTC",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(utc(1_795_323_600), "2026-11-22 05:00:00 +0000 UTC");
        assert_eq!(rfc3339(1_795_323_600), "2026-11-22T05:00:00Z");
    }
}
