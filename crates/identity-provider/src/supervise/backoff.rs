//! How long to wait after a failure.

use std::time::Duration;

use crate::backoff::window;

/// The first backoff.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// The longest backoff.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The least time between two attempts, whatever the jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Exponential backoff with full jitter. While something is left of the identity in use, the attempt comes before
/// half of that is over, so that an attempt is always made before it expires.
///
/// `failures` counts those before this one, `jitter` is from 0 to 1.
pub(super) fn backoff(failures: u32, left: Option<Duration>, jitter: f64) -> Duration {
    let mut most = window(BACKOFF_FIRST, BACKOFF_MAX, failures);
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        most = most.min(left / 2);
    }
    most.mul_f64(jitter).max(BACKOFF_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn doubles_from_one_second_to_a_minute() {
        let waits: Vec<_> = (0..8)
            .map(|failures| backoff(failures, None, 1.0))
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60].map(seconds));
        assert_eq!(backoff(u32::MAX, None, 1.0), seconds(60));
    }

    #[test]
    fn jitter_is_full_but_never_a_busy_loop() {
        assert_eq!(backoff(3, None, 0.5), seconds(4));
        assert_eq!(backoff(3, None, 0.0), BACKOFF_MIN);
    }

    // EN-14: an attempt is made before the identity in use expires; after that there is nothing to save.
    #[test]
    fn an_attempt_comes_before_expiry() {
        assert_eq!(backoff(9, Some(seconds(30)), 1.0), seconds(15));
        assert_eq!(backoff(9, Some(seconds(3600)), 1.0), seconds(60));
        assert_eq!(backoff(9, Some(Duration::ZERO), 1.0), seconds(60));
    }
}
