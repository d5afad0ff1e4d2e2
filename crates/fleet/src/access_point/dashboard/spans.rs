//! Lengths of time as the charts sort them: finer the nearer to now.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A span of time, before now or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Span {
    /// Up to five minutes.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// Five to fifteen minutes.
    #[serde(rename = "15m")]
    Quarter,
    /// Up to an hour.
    #[serde(rename = "1h")]
    Hour,
    /// Up to six hours.
    #[serde(rename = "6h")]
    SixHours,
    /// Up to a day.
    #[serde(rename = "1d")]
    Day,
    /// Up to a week.
    #[serde(rename = "7d")]
    Week,
    /// Up to thirty days.
    #[serde(rename = "30d")]
    Month,
    /// Up to ninety days.
    #[serde(rename = "90d")]
    Quarterly,
    /// Longer.
    #[serde(rename = "longer")]
    Longer,
}

impl Span {
    /// From the nearest to the farthest.
    pub(super) const ALL: [Self; 9] = [
        Self::FiveMinutes,
        Self::Quarter,
        Self::Hour,
        Self::SixHours,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Quarterly,
        Self::Longer,
    ];

    /// The span that `then` is in, seen from `now`, whichever of them is earlier.
    pub(super) fn between(now: SystemTime, then: SystemTime) -> Self {
        let away = then
            .duration_since(now)
            .unwrap_or_else(|behind| behind.duration());
        let of = |span: &Self| span.end().is_none_or(|end| away <= end);
        Self::ALL.into_iter().find(of).unwrap_or(Self::Longer)
    }

    fn end(self) -> Option<Duration> {
        let seconds = match self {
            Self::FiveMinutes => 300,
            Self::Quarter => 900,
            Self::Hour => 3600,
            Self::SixHours => 6 * 3600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
            Self::Quarterly => 90 * 86_400,
            Self::Longer => return None,
        };
        Some(Duration::from_secs(seconds))
    }

    /// As a query names it, and a chart.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::FiveMinutes => "5m",
            Self::Quarter => "15m",
            Self::Hour => "1h",
            Self::SixHours => "6h",
            Self::Day => "1d",
            Self::Week => "7d",
            Self::Month => "30d",
            Self::Quarterly => "90d",
            Self::Longer => "longer",
        }
    }

    /// In words.
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::FiveMinutes => "within 5 minutes",
            Self::Quarter => "5 to 15 minutes",
            Self::Hour => "15 minutes to 1 hour",
            Self::SixHours => "1 to 6 hours",
            Self::Day => "6 to 24 hours",
            Self::Week => "1 to 7 days",
            Self::Month => "7 to 30 days",
            Self::Quarterly => "30 to 90 days",
            Self::Longer => "more than 90 days",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_in_one_span_before_and_after_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        for (seconds, span) in [
            (0, Span::FiveMinutes),
            (300, Span::FiveMinutes),
            (301, Span::Quarter),
            (3600, Span::Hour),
            (86_401, Span::Week),
            (90 * 86_400 + 1, Span::Longer),
        ] {
            let away = Duration::from_secs(seconds);
            assert_eq!(Span::between(now, now + away), span, "in {seconds}");
            assert_eq!(Span::between(now, now - away), span, "{seconds} ago");
        }
        for span in Span::ALL {
            let word = serde_json::to_value(span).unwrap();
            assert_eq!(word, span.word());
        }
    }
}
