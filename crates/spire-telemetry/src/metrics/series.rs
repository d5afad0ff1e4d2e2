//! One series: its name, its numbers, and where each change of them goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::sinks::buckets::Buckets;
use super::sinks::memory::Memory;
use super::sinks::{Event, Queue};
use super::window::Window;

/// What the numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The value at one time.
    Gauge,
    /// A value without more, of a plugin.
    Point,
    /// What only goes up.
    Counter,
    /// Numbers that something happens with.
    Sample,
    /// Times, in milliseconds.
    Timer,
}

impl Kind {
    /// The part of the name that M3's filter sees after the program's.
    pub(super) fn type_prefix(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Point => "kv",
            Self::Counter => "counter",
            Self::Sample => "sample",
            Self::Timer => "timer",
        }
    }
}

/// Who a series is.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) kind: Kind,
    /// The parts, with the program's first.
    pub(super) parts: Vec<String>,
    /// Name and value, in the order in which upstream tells them.
    pub(super) labels: Vec<(String, String)>,
}

/// A counter's whole number, or the bits of a gauge.
#[derive(Debug, Default)]
pub(super) struct Number {
    bits: AtomicU64,
    changes: AtomicU64,
}

impl Number {
    pub(super) fn is_set(&self) -> bool {
        self.changes() > 0
    }

    /// How often it was changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> u64 {
        self.bits.load(Ordering::Relaxed)
    }

    pub(super) fn value(&self) -> f64 {
        f64::from_bits(self.count())
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds `by` to a number kept as bits. Returns what there is then.
pub(super) fn add_to(bits: &AtomicU64, by: f64) -> f64 {
    let add = |bits| Some((f64::from_bits(bits) + by).to_bits());
    // `add` always has an answer.
    let (Ok(before) | Err(before)) = bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    f64::from_bits(before) + by
}

/// Which sinks a series is for.
#[derive(Debug, Default)]
pub(super) struct Outlets {
    /// Prometheus and all below, which see the same names.
    pub(super) printed: bool,
    pub(super) m3: bool,
    pub(super) queues: Vec<Queue>,
    pub(super) memory: Option<Arc<Memory>>,
}

/// The numbers of one name with one set of labels.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: Arc<Name>,
    pub(super) number: Number,
    /// A gauge that is the time since then, in milliseconds.
    pub(super) since: Option<Instant>,
    /// For Prometheus.
    pub(super) window: Option<Window>,
    /// For M3.
    pub(super) buckets: Option<Buckets>,
    outlets: Outlets,
}

impl Series {
    pub(super) fn new(name: Name, outlets: Outlets, since: Option<Instant>) -> Self {
        let sampled = matches!(name.kind, Kind::Sample | Kind::Timer);
        Self {
            number: Number::default(),
            since,
            window: (sampled && outlets.printed).then(Window::default),
            buckets: (sampled && outlets.m3).then(|| Buckets::of(name.kind)),
            name: Arc::new(name),
            outlets,
        }
    }

    pub(super) fn is_printed(&self) -> bool {
        self.outlets.printed && self.name.kind != Kind::Point
    }

    pub(super) fn is_for_m3(&self) -> bool {
        self.outlets.m3 && self.name.kind != Kind::Point
    }

    /// A counter's.
    pub(super) fn count(&self, by: u64) {
        self.number.bits.fetch_add(by, Ordering::Relaxed);
        self.number.changed();
        self.tell(by as f64);
    }

    /// A gauge's.
    pub(super) fn set(&self, value: f64) {
        self.number.bits.store(value.to_bits(), Ordering::Relaxed);
        self.number.changed();
        self.tell(value);
    }

    /// A gauge's, up or down.
    pub(super) fn move_by(&self, by: f64) {
        let value = add_to(&self.number.bits, by);
        self.number.changed();
        self.tell(value);
    }

    /// A sample's or a timer's.
    pub(super) fn observe(&self, value: f64) {
        if let Some(window) = &self.window {
            window.observe(value);
        }
        if let Some(buckets) = &self.buckets {
            buckets.observe(value);
        }
        self.tell(value);
    }

    /// A point's.
    pub(super) fn tell(&self, value: f64) {
        for queue in &self.outlets.queues {
            queue.offer(Event {
                name: self.name.clone(),
                value,
            });
        }
        if let Some(memory) = &self.outlets.memory {
            memory.record(&self.name, value);
        }
    }
}
