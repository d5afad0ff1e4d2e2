//! A summary: quantiles of what came in the last ten seconds, sum and count of everything.
//!
//! A ring of atomics in place of a locked sketch: a call that is counted waits for nobody. Of more than [`PLACES`] in
//! ten seconds the quantiles are those of the newest.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::series::add_to;

/// Observations kept: 4 KiB a series.
const PLACES: usize = 512;

/// Ticks a second. A place holds its tick in 32 bits, which last for 17 years.
const TICKS: u32 = 8;

/// How old what counts for the quantiles may be.
const MAX_AGE: u32 = 10 * TICKS;

/// As upstream prints them.
const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99)];

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

#[derive(Debug)]
pub(super) struct Window {
    count: AtomicU64,
    sum: AtomicU64,
    /// Tick in the upper half, the value as `f32` in the lower; 0 is an empty place.
    ring: Box<[AtomicU64]>,
}

/// A summary at one moment.
#[derive(Debug, PartialEq)]
pub(super) struct Read {
    pub(super) quantiles: [(&'static str, f64); 3],
    pub(super) sum: f64,
    pub(super) count: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            count: AtomicU64::default(),
            sum: AtomicU64::new(0f64.to_bits()),
            ring: (0..PLACES).map(|_| AtomicU64::default()).collect(),
        }
    }
}

/// Never 0, so that no place that is taken looks empty.
fn tick() -> u32 {
    let passed = BEGIN.elapsed().as_millis() * u128::from(TICKS) / 1000;
    (passed as u32).max(1)
}

impl Window {
    pub(super) fn observe(&self, value: f64) {
        self.observe_at(value, tick());
    }

    fn observe_at(&self, value: f64, tick: u32) {
        let at = self.count.fetch_add(1, Ordering::Relaxed);
        add_to(&self.sum, value);
        let packed = u64::from(tick) << 32 | u64::from((value as f32).to_bits());
        if let Some(place) = self.ring.get(at as usize % PLACES) {
            place.store(packed, Ordering::Relaxed);
        }
    }

    /// `None` before the first observation.
    pub(super) fn read(&self) -> Option<Read> {
        self.read_at(tick())
    }

    fn read_at(&self, now: u32) -> Option<Read> {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return None;
        }
        let mut recent = self
            .ring
            .iter()
            .map(|place| place.load(Ordering::Relaxed))
            .filter(|packed| *packed != 0)
            .filter(|packed| now.saturating_sub((packed >> 32) as u32) <= MAX_AGE)
            .map(|packed| f32::from_bits(packed as u32))
            .collect::<Vec<_>>();
        recent.sort_by(f32::total_cmp);
        let at = |quantile: f64| {
            let rank = (quantile * recent.len() as f64).ceil() as usize;
            let value = recent.get(rank.saturating_sub(1));
            value.map_or(f64::NAN, |value| f64::from(*value))
        };
        Some(Read {
            quantiles: QUANTILES.map(|(name, quantile)| (name, at(quantile))),
            sum: f64::from_bits(self.sum.load(Ordering::Relaxed)),
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_last_ten_seconds_and_the_sum_of_everything() {
        // Inventory §10
        let window = Window::default();
        assert_eq!(window.read_at(1), None);
        for value in 1..=100 {
            window.observe_at(f64::from(value), 100);
        }
        let read = window.read_at(100 + MAX_AGE).unwrap();
        assert_eq!(
            read.quantiles,
            [("0.5", 50.0), ("0.9", 90.0), ("0.99", 99.0)]
        );
        assert_eq!((read.sum, read.count), (5050.0, 100));

        let later = window.read_at(101 + MAX_AGE).unwrap();
        assert!(later.quantiles.iter().all(|(_, value)| value.is_nan()));
        assert_eq!((later.sum, later.count), (5050.0, 100));
    }

    #[test]
    fn of_a_flood_the_newest_count() {
        let window = Window::default();
        for _ in 0..PLACES {
            window.observe_at(1.0, 5);
        }
        for _ in 0..PLACES {
            window.observe_at(7.0, 6);
        }
        let read = window.read_at(6).unwrap();
        assert_eq!(read.quantiles, [("0.5", 7.0), ("0.9", 7.0), ("0.99", 7.0)]);
        assert_eq!(read.count, 2 * PLACES as u64);
    }
}
