//! `InMem`: what was counted in each second of the last hour, told in the log when somebody asks.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use crate::metrics::series::{Kind, Name};

/// Seconds that are kept.
const KEPT: usize = 3600;

/// The lock is held for a look into a table.
#[derive(Debug)]
pub(in crate::metrics) struct Memory {
    start: Instant,
    seconds: Mutex<VecDeque<Second>>,
}

#[derive(Clone, Debug)]
struct Second {
    /// Since 1970.
    at: u64,
    /// By the address of their name, which each value holds.
    values: HashMap<usize, Aggregate>,
}

#[derive(Clone, Debug)]
struct Aggregate {
    name: Arc<Name>,
    last: f64,
    count: u64,
    sum: f64,
    squares: f64,
    least: f64,
    most: f64,
    updated: (SystemTime, Instant),
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            seconds: Mutex::default(),
        }
    }
}

impl Memory {
    pub(in crate::metrics) fn record(&self, name: &Arc<Name>, value: f64) {
        self.record_at(name, value, SystemTime::now());
    }

    fn record_at(&self, name: &Arc<Name>, value: f64, now: SystemTime) {
        let at = now.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        let updated = (now, Instant::now());
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds.back().is_none_or(|last| last.at != at) {
            if seconds.len() == KEPT {
                seconds.pop_front();
            }
            let values = HashMap::new();
            seconds.push_back(Second { at, values });
        }
        let Some(second) = seconds.back_mut() else {
            return;
        };
        let known = second.values.entry(Arc::as_ptr(name) as usize);
        let aggregate = known.or_insert_with(|| Aggregate {
            name: name.clone(),
            last: value,
            count: 0,
            sum: 0.0,
            squares: 0.0,
            least: value,
            most: value,
            updated,
        });
        aggregate.last = value;
        aggregate.count += 1;
        aggregate.sum += value;
        aggregate.squares += value * value;
        aggregate.least = aggregate.least.min(value);
        aggregate.most = aggregate.most.max(value);
        aggregate.updated = updated;
    }

    /// A line for each name of each second but this one, which has not ended.
    pub(in crate::metrics) fn lines(&self) -> Vec<String> {
        self.lines_at(SystemTime::now())
    }

    fn lines_at(&self, now: SystemTime) -> Vec<String> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing takes longer than copying.
        let seconds = seconds.clone();
        let mut lines = Vec::new();
        for second in seconds.iter().filter(|second| second.at != now) {
            let mut values = second.values.values().collect::<Vec<_>>();
            values.sort_by_cached_key(|it| {
                (it.name.kind, it.name.parts.clone(), it.name.labels.clone())
            });
            let at = moment(UNIX_EPOCH + std::time::Duration::from_secs(second.at));
            lines.extend(values.iter().map(|it| {
                let (letter, value) = (letter(it.name.kind), self.told(it));
                format!("[{at}][{letter}] '{}': {value}", dotted(&it.name))
            }));
        }
        lines
    }

    fn told(&self, it: &Aggregate) -> String {
        if matches!(it.name.kind, Kind::Gauge | Kind::Point) {
            return format!("{:.3}", it.last);
        }
        let mut told = format!("Count: {} ", it.count);
        let deviation = it.deviation();
        if deviation != 0.0 {
            let mean = it.sum / it.count as f64;
            let (least, most) = (it.least, it.most);
            let _ = write!(
                told,
                "Min: {least:.3} Mean: {mean:.3} Max: {most:.3} Stddev: {deviation:.3} "
            );
        }
        let (wall, monotonic) = it.updated;
        let since_start = monotonic
            .saturating_duration_since(self.start)
            .as_secs_f64();
        let updated = moment(wall);
        let _ = write!(
            told,
            "Sum: {:.3} LastUpdated: {updated} m=+{since_start:.9}",
            it.sum
        );
        told
    }
}

impl Aggregate {
    fn deviation(&self) -> f64 {
        let count = self.count as f64;
        match self.count {
            0 | 1 => 0.0,
            _ => ((count * self.squares - self.sum * self.sum) / (count * (count - 1.0)))
                .max(0.0)
                .sqrt(),
        }
    }
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Gauge => 'G',
        Kind::Point => 'P',
        Kind::Counter => 'C',
        Kind::Sample | Kind::Timer => 'S',
    }
}

/// The name with the labels' values.
fn dotted(name: &Name) -> String {
    let mut told = name.parts.join(".").replace(' ', "_");
    for (_, value) in &name.labels {
        told.push('.');
        told.push_str(&value.replace([' ', ':'], "_"));
    }
    told
}

/// As Go prints a time.
fn moment(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (date, clock) = (at.date(), at.time());
    let nanoseconds = match clock.nanosecond() {
        0 => String::new(),
        nanoseconds => format!(".{nanoseconds:09}")
            .trim_end_matches('0')
            .to_owned(),
    };
    let (hour, minute, second) = (clock.hour(), clock.minute(), clock.second());
    format!("{date} {hour:02}:{minute:02}:{second:02}{nanoseconds} +0000 UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(kind: Kind, part: &str, label: &str) -> Arc<Name> {
        Arc::new(Name {
            kind,
            parts: vec!["spire_server".into(), part.into()],
            labels: vec![("a".into(), label.into())],
        })
    }

    #[test]
    fn seconds_that_ended_are_told_as_upstream_tells_them() {
        // Inventory §10: InMem
        let memory = Memory::default();
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let (gauge, counter) = (name(Kind::Gauge, "g", "x"), name(Kind::Counter, "c", "x y"));
        let timer = name(Kind::Timer, "t", "OK");
        memory.record_at(&gauge, 1.0, at(1_000_000_000.0));
        memory.record_at(&gauge, 2.5, at(1_000_000_000.0));
        memory.record_at(&counter, 1.0, at(1_000_000_000.5));
        memory.record_at(&timer, 1.0, at(1_000_000_000.5));
        memory.record_at(&timer, 3.0, at(1_000_000_000.5));
        memory.record_at(&gauge, 9.0, at(1_000_000_001.0));
        let lines = memory.lines_at(at(1_000_000_001.9));
        let second = "[2001-09-09 01:46:40 +0000 UTC]";
        let updated = "LastUpdated: 2001-09-09 01:46:40.5 +0000 UTC m=+0.";
        assert_eq!(lines.len(), 3, "{lines:?}");
        let begins = [
            format!("{second}[G] 'spire_server.g.x': 2.500"),
            format!("{second}[C] 'spire_server.c.x_y': Count: 1 Sum: 1.000 {updated}"),
            format!(
                "{second}[S] 'spire_server.t.OK': Count: 2 Min: 1.000 Mean: 2.000 Max: 3.000 Stddev: 1.414 Sum: 4.000 {updated}"
            ),
        ];
        for (line, begin) in lines.iter().zip(&begins) {
            assert!(line.starts_with(begin), "{line} {begin}");
        }
        // The second that was under way has ended then.
        assert_eq!(memory.lines_at(at(1_000_000_002.0)).len(), 4);
    }

    #[test]
    fn an_hour_is_kept() {
        // Inventory §10: InMem
        let memory = Memory::default();
        let gauge = name(Kind::Gauge, "g", "x");
        for second in 0..4000 {
            memory.record_at(&gauge, 1.0, UNIX_EPOCH + Duration::from_secs(second));
        }
        let lines = memory.lines_at(UNIX_EPOCH + Duration::from_secs(5000));
        assert_eq!(lines.len(), KEPT);
        assert!(lines[0].starts_with("[1970-01-01 00:06:40 +0000 UTC]"));
    }
}
