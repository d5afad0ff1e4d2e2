//! Metrics under upstream's names, for Prometheus and for the sinks that are told.
//!
//! The text for Prometheus is written here and not by `prometheus-client`: that has no summaries, and gives counters the suffix
//! `_total` of OpenMetrics, which upstream's names lack.

mod filter;
mod handles;
mod name;
mod registry;
mod series;
mod sinks;
mod window;

use std::sync::Arc;

use ah_identity_provider::Explained;
use ah_spire_plugin::telemetry::TelemetryConfig;
use spiffe::TrustDomain;

pub use self::handles::{CallCounter, Counter, Gauge, Running, Summary};
pub use self::sinks::Sinks;

use self::filter::Filter;
use self::registry::Registry;
use self::series::{Kind, Series};
use self::sinks::Configured;

/// Whose metrics they are: the first part of every name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `spire_server`
    Server,
    /// `spire_agent`
    Agent,
}

impl Program {
    fn prefix(self) -> &'static str {
        match self {
            Self::Server => "spire_server",
            Self::Agent => "spire_agent",
        }
    }
}

/// Where handles come from. Without a sink all handles do nothing. Cheap to clone.
///
/// A series is printed once something was counted in it, as upstream does.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Option<Arc<Registry>>);

impl Metrics {
    /// Counts nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// As `telemetry { }` says; off when it names no sink. The sinks send once they are run.
    ///
    /// # Errors
    /// A sink's settings cannot be.
    pub fn new(
        config: &TelemetryConfig,
        program: Program,
        trust_domain: &TrustDomain,
    ) -> Result<(Self, Sinks), Explained> {
        let sinks = Configured::new(config, program.prefix())?;
        let prometheus = config.prometheus.is_some();
        if !prometheus && !config.in_memory && sinks.are_none() {
            return Ok((Self::off(), Sinks::default()));
        }
        let host = config
            .hostname_label
            .then(|| gethostname::gethostname().to_string_lossy().into_owned())
            .filter(|host| !host.is_empty());
        let trust_domain = config
            .trust_domain_label
            .then(|| trust_domain.as_str().to_owned());
        let prefix = config.metric_prefix.as_deref().unwrap_or(program.prefix());
        let registry = Arc::new(Registry {
            prefix: prefix.to_owned(),
            host,
            trust_domain,
            filter: Filter::new(config),
            prometheus,
            m3: sinks.have_m3(),
            queues: sinks.queues(),
            memory: config.in_memory.then(Arc::default),
            known: std::sync::RwLock::default(),
        });
        Ok((Self(Some(registry.clone())), sinks.with(registry)))
    }

    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What only goes up.
    pub fn counter(&self, key: &[&str], labels: &[(&str, &str)]) -> Counter {
        Counter(self.series(Kind::Counter, key, labels))
    }

    /// What is at some value now.
    pub fn gauge(&self, key: &[&str], labels: &[(&str, &str)]) -> Gauge {
        Gauge(self.series(Kind::Gauge, key, labels))
    }

    /// A number that something happens with, with its quantiles.
    pub fn summary(&self, key: &[&str], labels: &[(&str, &str)]) -> Summary {
        Summary(self.series(Kind::Sample, key, labels))
    }

    /// A time that something takes, in milliseconds.
    pub fn timer(&self, key: &[&str], labels: &[(&str, &str)]) -> Summary {
        Summary(self.series(Kind::Timer, key, labels))
    }

    /// A value by itself, which Statsd and the memory have words for, and the other sinks have not.
    pub fn point(&self, key: &[&str], value: f64) {
        if let Some(series) = self.series(Kind::Point, key, &[]) {
            series.tell(value);
        }
    }

    fn series(&self, kind: Kind, key: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Series>> {
        self.0.as_ref()?.series(kind, key, labels)
    }

    /// Calls with their outcome and what time they took: `KEY` counts, `KEY.elapsed_time` has milliseconds, both with
    /// the label `status`.
    pub fn calls(&self, key: &[&str], labels: &[(&str, &str)]) -> CallCounter {
        CallCounter::new(self.0.as_ref(), key, labels)
    }

    /// `started` and `uptime_in_ms`, counted from now.
    pub fn started(&self, version: &str, trust_domain: &TrustDomain) {
        let labels = [
            ("version", version),
            ("trust_domain_id", trust_domain.as_str()),
        ];
        self.gauge(&["started"], &labels).set(1.0);
        if let Some(registry) = &self.0 {
            registry.time_from_now(&["uptime_in_ms"]);
            registry.tell_times();
        }
    }

    /// What `InMem { }` keeps goes to the log, a line for each series of each second of the last hour.
    pub async fn log_memory(&self) {
        let memory = self.0.as_ref().and_then(|it| it.memory.clone());
        let Some(memory) = memory else { return };
        let write = move || {
            for line in memory.lines() {
                tracing::info!(subsystem_name = "telemetry", "{line}");
            }
        };
        // It writes; a panic there is none of ours.
        let _ = tokio::task::spawn_blocking(write).await;
    }

    /// All of it in the text format 0.0.4 of Prometheus.
    pub fn text(&self) -> String {
        self.0
            .as_ref()
            .map(|registry| registry.text())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
