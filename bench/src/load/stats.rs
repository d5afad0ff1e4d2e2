//! What a load run counts and reports.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::procfs;

/// Counters that all simulated executors of a process share.
#[derive(Debug)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    completed: u64,
    failed: BTreeMap<String, u64>,
    latency_us: Histogram<u64>,
}

/// Longest latency told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(600);

impl Tally {
    pub(crate) fn new() -> io::Result<Self> {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        Ok(Self(Mutex::new(Counts {
            completed: 0,
            failed: BTreeMap::new(),
            latency_us: Histogram::new_with_max(longest, 3).map_err(io::Error::other)?,
        })))
    }

    pub(crate) fn completed(&self, latency: Duration) {
        let mut counts = self.lock();
        counts.completed += 1;
        let micros = u64::try_from(latency.min(LONGEST).as_micros()).unwrap_or(u64::MAX);
        counts.latency_us.saturating_record(micros);
    }

    pub(crate) fn failed(&self, error: &io::Error) {
        *self.lock().failed.entry(error.to_string()).or_default() += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.lock().completed
    }

    /// Forgets what was counted so far: the warm-up is over.
    pub(crate) fn reset(&self) {
        let mut counts = self.lock();
        counts.completed = 0;
        counts.failed.clear();
        counts.latency_us.reset();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self, used: Used) -> Report {
        let counts = self.lock();
        let quantile = |q| counts.latency_us.value_at_quantile(q);
        Report {
            completed: counts.completed,
            failed: counts.failed.values().sum(),
            errors: counts.failed.clone(),
            seconds: used.wall.as_secs_f64(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: counts.latency_us.max(),
            load_cpu_seconds: used.load.as_secs_f64(),
            server_cpu_seconds: used.server.map(|cpu| cpu.as_secs_f64()),
            bottleneck: used.bottleneck(),
        }
    }
}

/// Times what is between its start and [`Clock::stop`], and the CPU time that both sides used.
#[derive(Debug)]
pub(crate) struct Clock {
    server_pid: Option<u32>,
    started: Instant,
    load: Duration,
    server: Option<Duration>,
}

/// What a stretch of time cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    wall: Duration,
    load: Duration,
    server: Option<Duration>,
}

impl Clock {
    pub(crate) fn start(server_pid: Option<u32>) -> io::Result<Self> {
        Ok(Self {
            server_pid,
            started: Instant::now(),
            load: procfs::cpu_time(std::process::id())?,
            server: server_pid.map(procfs::cpu_time).transpose()?,
        })
    }

    pub(crate) fn stop(&self) -> io::Result<Used> {
        let now = Self::start(self.server_pid)?;
        Ok(Used {
            wall: self.started.elapsed(),
            load: now.load.saturating_sub(self.load),
            server: now
                .server
                .zip(self.server)
                .map(|(now, then)| now.saturating_sub(then)),
        })
    }
}

/// Result of a load run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    /// Length of the measured time.
    pub(crate) seconds: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
    pub(crate) load_cpu_seconds: f64,
    pub(crate) server_cpu_seconds: Option<f64>,
    pub(crate) bottleneck: Bottleneck,
}

impl Report {
    /// Completed sessions for each second of the server's CPU time.
    pub(crate) fn per_core_second(&self) -> Option<f64> {
        let cpu = self.server_cpu_seconds.filter(|cpu| *cpu > 0.0)?;
        Some(self.completed as f64 / cpu)
    }

    /// Share of the time that the server, on one core, was busy.
    pub(crate) fn server_busy(&self) -> Option<f64> {
        Some(self.server_cpu_seconds? / self.seconds)
    }

    /// Share of the time that the load generator, on one core, was busy.
    pub(crate) fn load_busy(&self) -> f64 {
        self.load_cpu_seconds / self.seconds
    }
}

/// Which side of a load run held the other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bottleneck {
    Server,
    LoadGenerator,
    /// Both had time left: the load was not meant to fill them, or something else used their cores.
    Neither,
}

/// Share of its one core from which a side counts as full.
const FULL: f64 = 0.95;

impl Used {
    fn bottleneck(&self) -> Bottleneck {
        let full = |cpu: Duration| cpu.as_secs_f64() >= FULL * self.wall.as_secs_f64();
        if self.server.is_some_and(full) {
            Bottleneck::Server
        } else if full(self.load) {
            Bottleneck::LoadGenerator
        } else {
            Bottleneck::Neither
        }
    }
}

/// A line of a load run's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// Preparations are over, the first connection follows.
    Begun { unix_us: u64 },
    /// So many sessions are open, all that were asked for.
    Held { count: u32, unix_us: u64 },
    /// A held session was ended by the server.
    Closed {
        executor: u32,
        reason: String,
        unix_us: u64,
    },
    /// A certificate was replaced: how long after it the last handshake with an older one began, in microseconds.
    Swapped {
        swap: usize,
        unix_us: u64,
        late_us: u64,
    },
    /// Sockets of a noise run: how many the server has cut, and the age of the oldest cut one.
    Noise {
        open: u64,
        cut: u64,
        median_age_us: u64,
        oldest_us: u64,
        unix_us: u64,
    },
    /// The run is over.
    Done(Report),
}

impl Event {
    pub(crate) fn print(&self) {
        match serde_json::to_string(self) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("cannot print an event: {error}"),
        }
    }
}

/// Microseconds since 1970, to compare times of two processes of one machine.
pub(crate) fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(server_ms: u64, load_ms: u64) -> Used {
        Used {
            wall: Duration::from_secs(1),
            load: Duration::from_millis(load_ms),
            server: Some(Duration::from_millis(server_ms)),
        }
    }

    #[test]
    fn the_full_side_is_the_bottleneck_and_the_server_counts_first() {
        assert_eq!(used(970, 500).bottleneck(), Bottleneck::Server);
        assert_eq!(used(970, 990).bottleneck(), Bottleneck::Server);
        assert_eq!(used(800, 990).bottleneck(), Bottleneck::LoadGenerator);
        assert_eq!(used(800, 700).bottleneck(), Bottleneck::Neither);
    }

    #[test]
    fn a_warm_up_leaves_nothing_in_the_report() {
        let tally = Tally::new().unwrap();
        tally.completed(Duration::from_secs(3));
        tally.failed(&io::Error::other("early"));
        tally.reset();
        tally.completed(Duration::from_millis(2));
        let report = tally.report(used(500, 0));
        assert_eq!((report.completed, report.failed), (1, 0));
        assert!((1_990..=2_010).contains(&report.max_us));
        assert_eq!(report.per_core_second(), Some(2.0));
    }
}
