//! Sinks that are told, where Prometheus asks: `Statsd`, `DogStatsd`, `M3` and `InMem` of `telemetry { }`.
//!
//! Who counts waits for none of them: a change takes a place in a bounded queue, or is dropped where there is none, and
//! each sink has a task of its own.

pub(super) mod buckets;
mod compact;
mod destination;
mod lines;
mod m3;
pub(super) mod memory;

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Explained;
use ah_spire_plugin::telemetry::TelemetryConfig;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::destination::Destination;
use self::lines::{Dialect, LineSink};
use self::m3::M3Sink;
use super::registry::Registry;
use super::series::Name;

/// Changes that wait for a sink; more are dropped.
const QUEUE: usize = 4096;

/// How often gauges of time are told.
const TIMES: Duration = Duration::from_secs(10);

/// What was counted.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: Arc<Name>,
    /// What a counter went up by, what a gauge is, what was observed.
    pub(super) value: f64,
}

/// The way to one sink.
#[derive(Clone, Debug)]
pub(super) struct Queue(mpsc::Sender<Event>);

impl Queue {
    /// Never waits.
    pub(super) fn offer(&self, event: Event) {
        // A sink that is behind, or gone, loses it.
        let _ = self.0.try_send(event);
    }
}

/// Sinks that send, before they do.
#[derive(Debug, Default)]
pub(super) struct Configured {
    queues: Vec<Queue>,
    lines: Vec<LineSink>,
    m3: Vec<M3Sink>,
}

impl Configured {
    /// `service` is the program's own name, whatever prefix metrics have.
    ///
    /// # Errors
    /// An address or `env` that cannot be.
    pub(super) fn new(config: &TelemetryConfig, service: &str) -> Result<Self, Explained> {
        let mut this = Self::default();
        for address in &config.dog_statsd {
            let destination = Destination::of_datadog(address)?;
            let dialect = Dialect::Datadog {
                entity: lines::entity_of_container(),
            };
            this.lines(destination, dialect);
        }
        for address in &config.statsd {
            this.lines(Destination::udp("Statsd", address)?, Dialect::Plain);
        }
        for sink in &config.m3 {
            this.m3.push(M3Sink::new(sink, service)?);
        }
        Ok(this)
    }

    fn lines(&mut self, destination: Destination, dialect: Dialect) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.queues.push(Queue(sender));
        self.lines.push(LineSink {
            destination,
            dialect,
            receiver,
        });
    }

    pub(super) fn are_none(&self) -> bool {
        self.queues.is_empty() && !self.have_m3()
    }

    pub(super) fn have_m3(&self) -> bool {
        !self.m3.is_empty()
    }

    pub(super) fn queues(&self) -> Vec<Queue> {
        self.queues.clone()
    }

    pub(super) fn with(self, registry: Arc<Registry>) -> Sinks {
        Sinks(Some((registry, self.lines, self.m3)))
    }
}

/// What sends metrics to where they are configured to go, once it is run.
#[derive(Debug, Default)]
pub struct Sinks(Option<(Arc<Registry>, Vec<LineSink>, Vec<M3Sink>)>);

impl Sinks {
    /// Sends until `stop`, then what is left.
    pub async fn run(self, stop: CancellationToken) {
        let Some((registry, lines, m3)) = self.0 else {
            return stop.cancelled().await;
        };
        let mut tasks = JoinSet::new();
        for sink in lines {
            tasks.spawn(sink.run(stop.clone()));
        }
        for sink in m3 {
            tasks.spawn(sink.run(registry.clone(), stop.clone()));
        }
        let mut times = tokio::time::interval(TIMES);
        // Told at the start.
        times.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = times.tick() => registry.tell_times(),
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests;
