//! What the program holds to count with. Counting is a few atomic operations; a sink besides Prometheus and M3 adds a
//! place in its queue, or a short lock.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tonic::Code;

use super::registry::Registry;
use super::series::{Kind, Series};

/// What only goes up.
#[derive(Clone, Debug, Default)]
pub struct Counter(pub(super) Option<Arc<Series>>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `by` more. With 0 it is printed from now on.
    pub fn add(&self, by: u64) {
        if let Some(series) = &self.0 {
            series.count(by);
        }
    }
}

/// What is at some value now.
#[derive(Clone, Debug, Default)]
pub struct Gauge(pub(super) Option<Arc<Series>>);

impl Gauge {
    /// From now on.
    pub fn set(&self, value: f64) {
        if let Some(series) = &self.0 {
            series.set(value);
        }
    }

    /// A size or count, from now on.
    pub fn set_count(&self, count: usize) {
        self.set(count as f64);
    }

    /// Up or down.
    pub fn add(&self, by: f64) {
        if let Some(series) = &self.0 {
            series.move_by(by);
        }
    }
}

/// A number that something happens with: quantiles of the last ten seconds, sum and count of all.
#[derive(Clone, Debug, Default)]
pub struct Summary(pub(super) Option<Arc<Series>>);

impl Summary {
    /// One more.
    pub fn observe(&self, value: f64) {
        if let Some(series) = &self.0 {
            series.observe(value);
        }
    }
}
/// Calls, by their outcome.
#[derive(Clone, Debug, Default)]
pub struct CallCounter(Option<Arc<Calls>>);

/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;

#[derive(Debug)]
struct Calls {
    registry: Arc<Registry>,
    key: Vec<String>,
    labels: Vec<(String, String)>,
    by_code: [OnceLock<(Counter, Summary)>; CODES],
}

impl CallCounter {
    pub(super) fn new(
        registry: Option<&Arc<Registry>>,
        key: &[&str],
        labels: &[(&str, &str)],
    ) -> Self {
        let owned = |text: &&str| (*text).to_owned();
        Self(registry.map(|registry| {
            Arc::new(Calls {
                registry: registry.clone(),
                key: key.iter().map(owned).collect(),
                labels: labels
                    .iter()
                    .map(|(name, value)| (owned(name), owned(value)))
                    .collect(),
                by_code: Default::default(),
            })
        }))
    }

    /// A call begins.
    pub fn start(&self) -> Running {
        Running(self.0.as_ref().map(|calls| (calls.clone(), Instant::now())))
    }
}

impl Calls {
    fn of(&self, code: Code) -> Option<&(Counter, Summary)> {
        let cell = self.by_code.get(code as usize)?;
        Some(cell.get_or_init(|| {
            let mut key = self.key.iter().map(String::as_str).collect::<Vec<_>>();
            let labels = self
                .labels
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .chain([("status", name_of(code))])
                .collect::<Vec<_>>();
            let count = Counter(self.registry.series(Kind::Counter, &key, &labels));
            key.push("elapsed_time");
            (
                count,
                Summary(self.registry.series(Kind::Timer, &key, &labels)),
            )
        }))
    }
}

/// A call under way. Dropped without an outcome it counts as canceled.
#[derive(Debug)]
pub struct Running(Option<(Arc<Calls>, Instant)>);

impl Running {
    /// It ended.
    pub fn done(mut self, code: Code) {
        self.end(code);
    }

    /// It was none: nothing is counted.
    pub fn discard(mut self) {
        self.0 = None;
    }

    fn end(&mut self, code: Code) {
        if let Some((calls, start)) = self.0.take()
            && let Some((count, elapsed)) = calls.of(code)
        {
            count.increment();
            elapsed.observe(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// As Go's gRPC prints it.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
