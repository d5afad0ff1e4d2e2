//! `M3`: each second what changed, in batches of Thrift's compact protocol.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::telemetry::M3;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::compact::{Struct, one_way};
use super::destination::{Destination, Sender};
use crate::metrics::registry::Registry;
use crate::metrics::series::{Kind, Series};

const EVERY: Duration = Duration::from_secs(1);

/// Bytes of a datagram.
const MOST: usize = 32_768;

/// What a message takes beside its metrics and common tags.
const AROUND: usize = 32;

/// As M3's collectors number them.
const COUNTER: i32 = 1;
const GAUGE: i32 = 2;

/// A sink that has yet to be run.
#[derive(Debug)]
pub(super) struct M3Sink {
    destination: Destination,
    common: Vec<Vec<u8>>,
}

impl M3Sink {
    /// # Errors
    /// No address, or no `env`, without which no collector takes anything.
    pub(super) fn new(config: &M3, service: &str) -> Result<Self, Explained> {
        if config.environment.is_empty() {
            return Err(Explained::new(Code::Usage, "telemetry.M3: env must be set")
                .hint("name the environment that metrics are told with, as in env = \"prod\""));
        }
        let tag = |(name, value): (&str, &str)| tag(name, value);
        Ok(Self {
            destination: Destination::udp("M3", &config.address)?,
            common: [("service", service), ("env", &config.environment)]
                .map(tag)
                .into(),
        })
    }

    pub(super) async fn run(self, registry: Arc<Registry>, stop: CancellationToken) {
        let mut sender = Sender::new("M3", self.destination);
        let mut reports = Reports {
            common: self.common,
            seen: Vec::new(),
            sequence: 0,
        };
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                _ = every.tick() => false,
            };
            for message in reports.next(&registry) {
                sender.send(&message).await;
            }
            if stopped {
                return;
            }
        }
    }
}

/// What was told already.
struct Reports {
    common: Vec<Vec<u8>>,
    seen: Vec<Seen>,
    sequence: u32,
}

/// A series at the last report.
struct Seen {
    series: Arc<Series>,
    /// Changes of a gauge, count of a counter.
    number: u64,
    counts: Vec<u64>,
}

impl Reports {
    /// The messages of all that changed.
    fn next(&mut self, registry: &Registry) -> Vec<Vec<u8>> {
        let new = registry.newer(self.seen.len()).into_iter();
        self.seen.extend(new.map(|series| {
            Seen {
                counts: series
                    .buckets
                    .iter()
                    .flat_map(|it| it.counts().map(|_| 0))
                    .collect(),
                number: 0,
                series,
            }
        }));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        let told = self.seen.iter_mut().filter(|seen| seen.series.is_for_m3());
        let metrics = told.flat_map(|seen| seen.changes(now)).collect();
        self.messages(metrics)
    }

    fn messages(&mut self, metrics: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let room = MOST
            - AROUND
            - self
                .common
                .iter()
                .map(Vec::len)
                .sum::<usize>()
                .min(MOST / 2);
        let mut batches = Vec::new();
        let (mut batch, mut size) = (Vec::new(), 0);
        for metric in metrics {
            if size + metric.len() > room && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                size = 0;
            }
            size += metric.len();
            batch.push(metric);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        let message = |metrics: Vec<Vec<u8>>| {
            self.sequence = self.sequence.wrapping_add(1);
            let batch = Struct::default().list(1, &metrics).list(2, &self.common);
            let arguments = Struct::default().inner(1, batch);
            one_way("emitMetricBatchV2", self.sequence, arguments)
        };
        batches.into_iter().map(message).collect()
    }
}

impl Seen {
    fn changes(&mut self, now: i64) -> Vec<Vec<u8>> {
        let series = &self.series;
        let count = |by: u64, range| {
            let by = i64::try_from(by).unwrap_or(i64::MAX);
            let value = Struct::default().i32(1, COUNTER).i64(2, by).double(3, 0.0);
            metric(series, value.i64(4, 0), now, range)
        };
        match (series.name.kind, &series.buckets) {
            (Kind::Counter, _) => {
                let (before, is) = (self.number, series.number.count());
                self.number = is;
                let by = is.wrapping_sub(before);
                (by > 0).then(|| count(by, None)).into_iter().collect()
            }
            (Kind::Gauge, _) => {
                let changes = series.number.changes();
                if std::mem::replace(&mut self.number, changes) == changes {
                    return Vec::new();
                }
                let value = Struct::default().i32(1, GAUGE).i64(2, 0);
                let value = value.double(3, series.number.value()).i64(4, 0);
                vec![metric(series, value, now, None)]
            }
            (_, Some(buckets)) => {
                let mut told = Vec::new();
                for (at, (before, is)) in self.counts.iter_mut().zip(buckets.counts()).enumerate() {
                    let by = is.wrapping_sub(std::mem::replace(before, is));
                    if by > 0 {
                        told.push(count(by, Some((at, buckets.range(at)))));
                    }
                }
                told
            }
            (_, None) => Vec::new(),
        }
    }
}

/// The program is a tag of M3's and no part of the name.
fn metric(series: &Series, value: Struct, now: i64, range: Option<(usize, String)>) -> Vec<u8> {
    let parts = series.name.parts.iter().skip(1).map(String::as_str);
    let name = parts.collect::<Vec<_>>().join("_");
    let labels = series.name.labels.iter();
    let mut tags = labels
        .map(|(name, value)| tag(name, value))
        .collect::<Vec<_>>();
    if let Some((at, range)) = range {
        tags.extend([tag("bucketid", &format!("{at:04}")), tag("bucket", &range)]);
    }
    let metric = Struct::default().text(1, &name).inner(2, value).i64(3, now);
    match tags.is_empty() {
        true => metric.end(),
        false => metric.list(4, &tags).end(),
    }
}

fn tag(name: &str, value: &str) -> Vec<u8> {
    Struct::default().text(1, name).text(2, value).end()
}
