//! How long to wait after a failure.

use std::time::Duration;

/// Where in its window a wait falls. Chance keeps those who failed in one instant from coming back in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jitter {
    /// Anywhere: many who fail at once spread as far as can be.
    Full,
    /// In the upper half: what failed is left alone for a while at least.
    UpperHalf,
}

impl Jitter {
    /// A wait in `window`.
    pub(crate) fn wait(self, window: Duration) -> Duration {
        let part = match self {
            Self::Full => rand::random_range(0.0..=1.0),
            Self::UpperHalf => rand::random_range(0.5..=1.0),
        };
        window.mul_f64(part)
    }
}

/// The window after `failures` earlier ones: `first`, doubled each time, `last` at most.
pub(crate) fn window(first: Duration, last: Duration, failures: u32) -> Duration {
    let doubled = 2u32.saturating_pow(failures.min(31));
    first.saturating_mul(doubled).min(last)
}

/// Waits in windows that double.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    jitter: Jitter,
    failures: u32,
}

impl Backoff {
    /// Windows from `first` to `last`; a wait is in the upper half of its window.
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            jitter: Jitter::UpperHalf,
            failures: 0,
        }
    }

    /// As [`Self::new`], with waits anywhere in the window.
    pub const fn with_full_jitter(first: Duration, last: Duration) -> Self {
        Self {
            jitter: Jitter::Full,
            ..Self::new(first, last)
        }
    }

    /// The wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.jitter.wait(self.window());
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// What the next wait is at most.
    pub fn window(&self) -> Duration {
        window(self.first, self.last, self.failures)
    }

    /// After a success: the next failure starts over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn windows_double_to_the_last_and_start_over() {
        let mut backoff = Backoff::new(seconds(1), seconds(3));
        for window in [1, 2, 3, 3].map(seconds) {
            assert_eq!(backoff.window(), window);
            let wait = backoff.next_wait();
            assert!(wait <= window && wait >= window / 2, "{wait:?}");
        }
        backoff.reset();
        assert_eq!(backoff.window(), seconds(1));
        assert_eq!(window(seconds(1), seconds(60), u32::MAX), seconds(60));
        assert_eq!(
            window(seconds(1), Duration::MAX, u32::MAX),
            seconds(1 << 31)
        );
    }

    #[test]
    fn full_jitter_spreads_over_the_whole_window() {
        let last = seconds(30);
        let waits = [(); 200].map(|()| Jitter::Full.wait(last));
        assert!(waits.iter().all(|wait| *wait <= last));
        assert!(waits.iter().any(|wait| *wait < last / 4));
        assert!(waits.iter().any(|wait| *wait > last * 3 / 4));
    }
}
