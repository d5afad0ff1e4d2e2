//! Exponential backoff with full jitter (EN-13).

use std::time::Duration;

use ah_identity_provider::Backoff as Windows;

/// First window.
const FIRST: Duration = Duration::from_millis(500);
/// Last window.
const LAST: Duration = Duration::from_secs(30);
/// A session of this length shows that the way is sound: the next failure starts over.
const SOUND: Duration = Duration::from_secs(20);

/// How long to wait before each further attempt: a random part of a window that doubles.
///
/// Full jitter keeps ten thousand executors from returning in one instant after an access point restarts.
pub(super) struct Backoff(Windows);

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self(Windows::with_full_jitter(FIRST, LAST))
    }

    /// The wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        self.0.next_wait()
    }

    /// Notes how long an enrollment lasted before it failed.
    pub(super) fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= SOUND {
            self.0.reset();
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
            assert_eq!(backoff.0.window(), window);
            assert!(backoff.next() <= window);
            window = (window * 2).min(LAST);
        }
        assert_eq!(backoff.0.window(), LAST);
        backoff.session_lasted(Duration::from_secs(1));
        assert_eq!(backoff.0.window(), LAST);
        backoff.session_lasted(SOUND);
        assert_eq!(backoff.0.window(), FIRST);
    }
}
