//! How M3 is told of samples: how many were in each range.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::series::Kind;

/// Upper ends of times, in milliseconds: the call of an agent may take 30 seconds.
const TIMES: [u64; 20] = [
    0, 10, 25, 50, 75, 100, 200, 300, 400, 500, 600, 800, 1_000, 2_000, 5_000, 10_000, 15_000,
    20_000, 25_000, 30_000,
];

/// Upper ends of other numbers.
const VALUES: [u64; 6] = [0, 1, 10, 100, 1_000, 10_000];

/// Counts by range. The last is without end.
#[derive(Debug)]
pub(in crate::metrics) struct Buckets {
    ends: &'static [u64],
    kind: Kind,
    counts: Box<[AtomicU64]>,
}

impl Buckets {
    pub(in crate::metrics) fn of(kind: Kind) -> Self {
        let ends: &'static [u64] = match kind {
            Kind::Timer => &TIMES,
            _ => &VALUES,
        };
        Self {
            ends,
            kind,
            counts: (0..=ends.len()).map(|_| AtomicU64::default()).collect(),
        }
    }

    pub(in crate::metrics) fn observe(&self, value: f64) {
        // A time counts by its whole milliseconds.
        let value = match self.kind {
            Kind::Timer => value.trunc(),
            _ => value,
        };
        let at = self.ends.partition_point(|end| (*end as f64) < value);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(|it| it.load(Ordering::Relaxed))
    }

    /// As M3 tells the range of that place: `10ms-25ms`.
    pub(super) fn range(&self, at: usize) -> String {
        let end = |at: Option<usize>| match at {
            None => "-infinity".to_owned(),
            Some(at) => self
                .ends
                .get(at)
                .map_or_else(|| "infinity".to_owned(), |end| self.written(*end)),
        };
        format!("{}-{}", end(at.checked_sub(1)), end(Some(at)))
    }

    fn written(&self, end: u64) -> String {
        match self.kind {
            Kind::Timer if end == 0 => "0".to_owned(),
            Kind::Timer if end < 1_000 => format!("{end}ms"),
            // All above are whole seconds, and less than a minute.
            Kind::Timer => format!("{}s", end / 1_000),
            _ => format!("{end}.000000"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: Kind, values: &[f64]) -> Vec<(String, u64)> {
        let buckets = Buckets::of(kind);
        values.iter().for_each(|value| buckets.observe(*value));
        let counts = buckets.counts().enumerate();
        let some = counts.filter(|(_, count)| *count > 0);
        some.map(|(at, count)| (buckets.range(at), count)).collect()
    }

    #[test]
    fn ranges_are_those_that_upstream_tells_m3() {
        // Inventory §10: M3. Times are cut to whole milliseconds, so that one below is in the first range.
        let told = |found: &[(&str, u64)]| {
            let owned = found
                .iter()
                .map(|(range, count)| ((*range).to_owned(), *count));
            owned.collect::<Vec<_>>()
        };
        assert_eq!(
            filled(Kind::Timer, &[0.9, 1.0, 10.9, 11.0, 999.0, 30_001.0]),
            told(&[
                ("-infinity-0", 1),
                ("0-10ms", 2),
                ("10ms-25ms", 1),
                ("800ms-1s", 1),
                ("30s-infinity", 1)
            ])
        );
        assert_eq!(
            filled(Kind::Sample, &[0.0, 0.5, 1.0, 7.0, 10_001.0]),
            told(&[
                ("-infinity-0.000000", 1),
                ("0.000000-1.000000", 2),
                ("1.000000-10.000000", 1),
                ("10000.000000-infinity", 1)
            ])
        );
    }
}
