//! Times as upstream's command line and APIs write them.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
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

/// As Go prints a time in the zone of this process (`TZ`, or else the machine's): `2026-11-22 06:00:00 +0100 CET`.
pub fn local(unix: i64) -> String {
    // Go takes an empty one for UTC.
    let zone = match std::env::var_os("TZ") {
        Some(name) if name.is_empty() => TimeZone::UTC,
        _ => TimeZone::try_system().unwrap_or(TimeZone::UTC),
    };
    local_in(unix, zone)
}

fn local_in(unix: i64, zone: TimeZone) -> String {
    let at = Timestamp::from_second(unix).unwrap_or(Timestamp::UNIX_EPOCH);
    let shown = strtime::format("%Y-%m-%d %H:%M:%S %z %Z", &at.to_zoned(zone));
    shown.unwrap_or_else(|_| utc(unix))
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
        let in_zone = |rule: &str| local_in(1_795_323_600, TimeZone::posix(rule).unwrap());
        assert_eq!(
            in_zone("CET-1CEST,M3.5.0,M10.5.0/3"),
            "2026-11-22 06:00:00 +0100 CET"
        );
        assert_eq!(in_zone("<+0545>-5:45"), "2026-11-22 10:45:00 +0545 +0545");
        let utc = local_in(1_795_323_600, TimeZone::UTC);
        assert_eq!(utc, "2026-11-22 05:00:00 +0000 UTC");
    }
}
