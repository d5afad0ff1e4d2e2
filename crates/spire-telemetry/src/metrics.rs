//! Metrics as upstream's sink for Prometheus prints them.
//!
//! The text is written here and not by `prometheus-client`: that has no summaries, and gives counters the suffix
//! `_total` of OpenMetrics, which upstream's names lack.

mod filter;
mod name;
mod registry;
mod series;
mod window;

use std::sync::Arc;
use std::time::Instant;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::telemetry::TelemetryConfig;
use spiffe::TrustDomain;

pub use self::series::{CallCounter, Counter, Gauge, Running, Summary};

use self::filter::Filter;
use self::registry::{Registry, Series};
use self::series::Number;
use self::window::Window;

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

    /// As `telemetry { }` says; off when it names no sink.
    ///
    /// # Errors
    /// A sink is configured that there is none of yet.
    pub fn new(
        config: &TelemetryConfig,
        program: Program,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Explained> {
        refuse_other_sinks(config)?;
        if config.prometheus.is_none() {
            return Ok(Self::off());
        }
        let host = config
            .hostname_label
            .then(|| gethostname::gethostname().to_string_lossy().into_owned())
            .filter(|host| !host.is_empty());
        let trust_domain = config
            .trust_domain_label
            .then(|| trust_domain.as_str().to_owned());
        Ok(Self(Some(Arc::new(Registry::new(
            config.metric_prefix.as_deref().unwrap_or(program.prefix()),
            host,
            trust_domain,
            Filter::new(config),
        )))))
    }

    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What only goes up.
    pub fn counter(&self, key: &[&str], labels: &[(&str, &str)]) -> Counter {
        Counter(self.0.as_ref().and_then(|it| it.counter(key, labels)))
    }

    /// What is at some value now.
    pub fn gauge(&self, key: &[&str], labels: &[(&str, &str)]) -> Gauge {
        Gauge(self.0.as_ref().and_then(|it| it.gauge(key, labels)))
    }

    /// A number that something happens with, with its quantiles.
    pub fn summary(&self, key: &[&str], labels: &[(&str, &str)]) -> Summary {
        Summary(self.0.as_ref().and_then(|it| it.summary(key, labels)))
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
            registry.add(&["uptime_in_ms"], &[], Series::Since(Instant::now()));
        }
    }

    /// All of it in the text format 0.0.4 of Prometheus.
    pub fn text(&self) -> String {
        self.0
            .as_ref()
            .map(|registry| registry.text())
            .unwrap_or_default()
    }
}

fn refuse_other_sinks(config: &TelemetryConfig) -> Result<(), Explained> {
    let configured = [
        ("DogStatsd", !config.dog_statsd.is_empty()),
        ("Statsd", !config.statsd.is_empty()),
        ("M3", !config.m3.is_empty()),
        ("InMem", config.in_memory),
    ];
    match configured.iter().find(|(_, there)| *there) {
        None => Ok(()),
        Some((block, _)) => Err(Explained::new(
            Code::Usage,
            format!("telemetry.{block} is not supported"),
        )
        .hint(format!(
            "remove the block {block} from telemetry; metrics are served by the block Prometheus"
        ))),
    }
}

#[cfg(test)]
mod tests;
