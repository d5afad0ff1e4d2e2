//! `Statsd` and `DogStatsd`: a line for each change, as many lines in a datagram as fit.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Event;
use super::destination::{Destination, Sender, variable};
use crate::metrics::series::Kind;

/// How long a line waits for others.
const FLUSH: Duration = Duration::from_millis(100);

/// Lines taken at a time.
const BATCH: usize = 256;

/// How lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Labels are parts of the name, by their values alone; values have six places.
    Plain,
    /// Labels are tags; counters are whole numbers.
    Datadog {
        /// A tag of all lines, that has Datadog's agent find the container.
        entity: Option<String>,
    },
}

/// `DD_ENTITY_ID`, that Datadog sets in a pod.
pub(super) fn entity_of_container() -> Option<String> {
    variable("DD_ENTITY_ID")
}

impl Dialect {
    fn block(&self) -> &'static str {
        match self {
            Self::Plain => "Statsd",
            Self::Datadog { .. } => "DogStatsd",
        }
    }

    /// Bytes of a datagram.
    fn most(&self) -> usize {
        match self {
            Self::Plain => 1400,
            Self::Datadog { .. } => 1432,
        }
    }

    /// The line, without its end; `None` for what the dialect has no words for.
    pub(super) fn line(&self, event: &Event) -> Option<String> {
        let name = &event.name;
        let (value, labels) = (event.value, name.labels.iter());
        match self {
            Self::Plain => {
                let parts = name.parts.iter();
                let values = labels.map(|(_, value)| value);
                let name = fit(&parts.chain(values).cloned().collect::<Vec<_>>().join("."));
                let what = name_of(event).unwrap_or("kv");
                Some(format!("{name}:{:.6}|{what}", rounded(event)))
            }
            Self::Datadog { entity } => {
                let what = name_of(event)?;
                let value = match event.name.kind {
                    Kind::Counter => format!("{value:.0}"),
                    Kind::Gauge => format!("{value}"),
                    _ => format!("{:.6}", rounded(event)),
                };
                let entity = entity
                    .iter()
                    .map(|id| format!("dd.internal.entity_id:{id}"));
                let tags = labels.map(|(name, value)| match value.is_empty() {
                    true => fit(name),
                    false => format!("{}:{}", fit(name), fit(value)),
                });
                let tags = entity.chain(tags).collect::<Vec<_>>().join(",");
                let tags = match tags.is_empty() {
                    true => tags,
                    false => format!("|#{tags}"),
                };
                let line = format!("{}:{value}|{what}{tags}", fit(&name.parts.join(".")));
                Some(line.replace('\n', ""))
            }
        }
    }

    /// Whether every line ends with a newline, or only has one before the next.
    fn ends_lines(&self) -> bool {
        *self == Self::Plain
    }
}

fn name_of(event: &Event) -> Option<&'static str> {
    match event.name.kind {
        Kind::Counter => Some("c"),
        Kind::Gauge => Some("g"),
        Kind::Sample | Kind::Timer => Some("ms"),
        Kind::Point => None,
    }
}

/// Times and samples are upstream's floats of 32 bits. Gauges keep their value: some of upstream's have 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "what upstream sends")]
fn rounded(event: &Event) -> f64 {
    match event.name.kind {
        Kind::Gauge => event.value,
        _ => f64::from(event.value as f32),
    }
}

/// What would end a name is an underscore.
fn fit(name: &str) -> String {
    name.replace([':', ' '], "_")
}

/// A sink that has yet to be run.
#[derive(Debug)]
pub(super) struct LineSink {
    pub(super) destination: Destination,
    pub(super) dialect: Dialect,
    pub(super) receiver: mpsc::Receiver<Event>,
}

impl LineSink {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut sender = Sender::new(self.dialect.block(), self.destination);
        let mut flush = tokio::time::interval(FLUSH);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut datagram = Datagram::default();
        let mut events = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = flush.tick(), if !datagram.0.is_empty() => {
                    sender.send(&datagram.take()).await;
                }
                taken = self.receiver.recv_many(&mut events, BATCH) => {
                    if taken == 0 {
                        break;
                    }
                    if datagram.0.is_empty() {
                        flush.reset();
                    }
                    fill(&mut datagram, &mut sender, &self.dialect, events.drain(..)).await;
                }
            }
        }
        let left = std::iter::from_fn(|| self.receiver.try_recv().ok());
        fill(&mut datagram, &mut sender, &self.dialect, left).await;
        if !datagram.0.is_empty() {
            sender.send(&datagram.take()).await;
        }
    }
}

async fn fill(
    datagram: &mut Datagram,
    sender: &mut Sender,
    dialect: &Dialect,
    events: impl Iterator<Item = Event>,
) {
    for line in events.filter_map(|event| dialect.line(&event)) {
        if let Some(full) = datagram.add(&line, dialect) {
            sender.send(&full).await;
        }
    }
}

/// Lines that wait.
#[derive(Default)]
struct Datagram(String);

impl Datagram {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).into_bytes()
    }

    /// Returns what was there, if `line` does not fit beside it.
    fn add(&mut self, line: &str, dialect: &Dialect) -> Option<Vec<u8>> {
        let full = !self.0.is_empty() && self.0.len() + line.len() + 1 > dialect.most();
        let before = full.then(|| self.take());
        if !dialect.ends_lines() && !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(line);
        if dialect.ends_lines() {
            self.0.push('\n');
        }
        before
    }
}
