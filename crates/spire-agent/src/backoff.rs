//! How long to wait after a failure.

use std::time::Duration;

/// Windows that double from a first to a last. Half of each wait is random, so that the agents of a fleet do not
/// come back to their server in one instant.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    window: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            window: first,
        }
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.window.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.window = (self.window * 2).min(self.last);
        wait
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.window = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_double_to_the_last_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        for window in [1, 2, 3, 3] {
            let window = Duration::from_secs(window);
            let wait = backoff.next();
            assert!(wait <= window && wait >= window / 2, "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
