//! Moments as people and logs read them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// Milliseconds since 1970, as the protocol tells the time.
pub(crate) fn unix_millis(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `then` as seen from `now`: `in 41m`, `3m ago`, `now`.
pub fn relative(now: SystemTime, then: SystemTime) -> String {
    match then.duration_since(now) {
        Ok(ahead) if ahead < Duration::from_secs(1) => "now".to_owned(),
        Ok(ahead) => format!("in {}", brief(ahead)),
        Err(behind) if behind.duration() < Duration::from_secs(1) => "now".to_owned(),
        Err(behind) => format!("{} ago", brief(behind.duration())),
    }
}

/// A length of time in its largest unit, rounded down; with the next unit where that matters.
pub fn brief(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (seconds, minutes, hours) {
        (0, _, _) => format!("{}ms", time.as_millis()),
        (_, 0, _) => format!("{seconds}s"),
        (_, _, 0) => format!("{minutes}m"),
        (_, _, 1..=9) => match minutes % 60 {
            0 => format!("{hours}h"),
            rest => format!("{hours}h{rest}m"),
        },
        (_, _, 10..=47) => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_do() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let after = |s| relative(now, now + Duration::from_secs(s));
        let before = |s| relative(now, now - Duration::from_secs(s));
        assert_eq!(after(41 * 60 + 59), "in 41m");
        assert_eq!(before(180), "3m ago");
        assert_eq!(before(0), "now");
        assert_eq!(after(3600 + 120), "in 1h2m");
        assert_eq!(before(20 * 3600), "20h ago");
        assert_eq!(before(90 * 86400), "90d ago");
        assert_eq!(relative(now, now + Duration::from_millis(999)), "now");
    }
}
