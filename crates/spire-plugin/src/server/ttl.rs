//! Whether SVIDs can live as long as configured. A CA prepares its successor in time, so that an SVID of at most a
//! sixth of the CA's life, and of at most 7 days, is never cut short by a rotation.

use std::time::Duration;

use crate::duration;

const DIVISOR: u32 = 6;
const MAX_SVID_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A warning for each TTL that may be cut short.
pub(super) fn warnings(ca_ttl: Duration, svid_ttls: &[(&str, Option<Duration>)]) -> Vec<String> {
    let longest = (ca_ttl / DIVISOR).min(MAX_SVID_TTL);
    svid_ttls
        .iter()
        .filter_map(|(key, ttl)| Some((key, (*ttl)?)))
        .filter(|(_, ttl)| *ttl > longest)
        .map(|(key, ttl)| {
            let remedy = if ttl < MAX_SVID_TTL {
                format!(
                    "set {key} to {} or less, or ca_ttl to {} or more",
                    short(longest),
                    short(ttl * DIVISOR)
                )
            } else if ca_ttl < MAX_SVID_TTL * DIVISOR {
                let ca_ttl = short(MAX_SVID_TTL * DIVISOR);
                format!(
                    "set {key} to {} or less, and ca_ttl to {ca_ttl} or more",
                    short(MAX_SVID_TTL)
                )
            } else {
                format!("set {key} to {} or less", short(longest))
            };
            format!("{key} is too high: SVIDs may end early when the CA is rotated; {remedy}")
        })
        .collect()
}

/// `1h` rather than `1h0m0s`.
fn short(ttl: Duration) -> String {
    let text = duration::format(Duration::from_secs(ttl.as_secs()));
    let text = text
        .strip_suffix("m0s")
        .map_or(text.clone(), |text| format!("{text}m"));
    text.strip_suffix("h0m")
        .map_or(text.clone(), |text| format!("{text}h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    #[test]
    fn an_svid_may_live_a_sixth_of_the_ca() {
        assert!(warnings(hours(24), &[("a", Some(hours(4))), ("b", None)]).is_empty());
        assert!(
            warnings(hours(24), &[("a", Some(hours(5)))])[0]
                .contains("a to 4h or less, or ca_ttl to 30h or more")
        );
        assert!(
            warnings(hours(24), &[("a", Some(hours(200)))])[0]
                .contains("a to 168h or less, and ca_ttl to 1008h")
        );
        assert!(
            warnings(hours(2000), &[("a", Some(hours(200)))])[0].ends_with("set a to 168h or less")
        );
    }

    #[test]
    fn durations_are_told_shortly() {
        assert_eq!(short(hours(1)), "1h");
        assert_eq!(short(Duration::from_secs(90)), "1m30s");
        assert_eq!(short(Duration::from_secs(5400)), "1h30m");
        assert_eq!(short(Duration::from_secs(600)), "10m");
        assert_eq!(short(Duration::from_secs(36_000)), "10h");
    }
}
