//! Exponential backoff with full jitter (EN-13).

use std::time::Duration;

/// First window.
const FIRST: Duration = Duration::from_millis(500);
/// Last window.
const LAST: Duration = Duration::from_secs(30);
/// A session of this length shows that the way is sound: the next failure starts over.
const SOUND: Duration = Duration::from_secs(20);

/// How long to wait before each further attempt: a random part of a window that doubles.
///
/// Full jitter keeps ten thousand executors from returning in one instant after an access point restarts.
pub(super) struct Backoff {
    window: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { window: FIRST }
    }

    /// The wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.window.mul_f64(rand::random::<f64>());
        self.window = (self.window * 2).min(LAST);
        wait
    }

    /// Notes how long an enrollment lasted before it failed.
    pub(super) fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= SOUND {
            self.window = FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // EN-13
    #[test]
    fn windows_double_to_a_limit_and_start_over_after_a_sound_session() {
        let mut backoff = Backoff::new();
        let mut window = FIRST;
        for _ in 0..12 {
            assert!(backoff.next() <= window);
            window = (window * 2).min(LAST);
        }
        assert_eq!(backoff.window, LAST);
        backoff.session_lasted(Duration::from_secs(1));
        assert_eq!(backoff.window, LAST);
        backoff.session_lasted(SOUND);
        assert_eq!(backoff.window, FIRST);
    }

    #[test]
    fn waits_spread_over_the_whole_window() {
        let waits = (0..200)
            .map(|_| Backoff { window: LAST }.next())
            .collect::<Vec<_>>();
        assert!(waits.iter().any(|wait| *wait < LAST / 4));
        assert!(waits.iter().any(|wait| *wait > LAST * 3 / 4));
    }
}
