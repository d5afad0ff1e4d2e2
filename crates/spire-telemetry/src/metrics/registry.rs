//! All series by name and labels, and their text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::filter::Filter;
use super::name::{flatten, quoted, sanitize};
use super::series::{Kind, Name, Outlets, Series};
use super::sinks::Queue;
use super::sinks::memory::Memory;

/// Only making a handle and reading lock it.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) prefix: String,
    pub(super) host: Option<String>,
    pub(super) trust_domain: Option<String>,
    pub(super) filter: Filter,
    pub(super) prometheus: bool,
    pub(super) m3: bool,
    pub(super) queues: Vec<Queue>,
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) known: RwLock<Known>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    families: BTreeMap<String, BTreeMap<Labels, Arc<Series>>>,
    /// As they came.
    all: Vec<Arc<Series>>,
}

/// By name.
type Labels = BTreeMap<String, String>;

impl Registry {
    /// The series of that name and labels: the one that is there, or a new one; `None` when it is filtered out. Labels
    /// that are filtered out bring several series together in one.
    pub(super) fn series(
        &self,
        kind: Kind,
        key: &[&str],
        labels: &[(&str, &str)],
    ) -> Option<Arc<Series>> {
        self.add(kind, key, labels, None)
    }

    /// A gauge of the milliseconds from now.
    pub(super) fn time_from_now(&self, key: &[&str]) -> Option<Arc<Series>> {
        self.add(Kind::Gauge, key, &[], Some(Instant::now()))
    }

    fn add(
        &self,
        kind: Kind,
        key: &[&str],
        labels: &[(&str, &str)],
        since: Option<Instant>,
    ) -> Option<Arc<Series>> {
        let outlets = self.outlets(kind, key)?;
        let mut parts = vec![self.prefix.as_str()];
        parts.extend(key);
        let labels = match kind {
            // As upstream: a plugin's point has no labels, and gets none.
            Kind::Point => Vec::new(),
            _ => self.labels(labels),
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let family = known.families.entry(flatten(&parts)).or_default();
        // Of one name, all are of one type.
        if let Some(other) = family.values().next()
            && other.kind() != shown(kind)
        {
            other.clashes(key);
            return None;
        }
        let by_name = labels.iter().cloned().collect::<Labels>();
        if let Some(there) = family.get(&by_name) {
            return Some(there.clone());
        }
        let name = Name {
            kind,
            parts: parts.into_iter().map(str::to_owned).collect(),
            labels,
        };
        let series = Arc::new(Series::new(name, outlets, since));
        family.insert(by_name, series.clone());
        known.all.push(series.clone());
        Some(series)
    }

    /// Where a series of that name is told; `None` for nowhere.
    fn outlets(&self, kind: Kind, key: &[&str]) -> Option<Outlets> {
        let name = |parts: &[&str]| [parts, key].concat().join(".");
        let plain = self.filter.allows(&name(&[&self.prefix]));
        let m3 = self.m3
            && self
                .filter
                .allows(&name(&[&self.prefix, kind.type_prefix()]));
        (plain || m3).then(|| Outlets {
            printed: plain && self.prometheus,
            m3,
            queues: match plain {
                true => self.queues.clone(),
                false => Vec::new(),
            },
            memory: self.memory.clone().filter(|_| plain),
        })
    }

    fn labels(&self, own: &[(&str, &str)]) -> Vec<(String, String)> {
        let trust_domain = self.trust_domain.as_deref().map(|it| ("trust_domain", it));
        let made_fit = own
            .iter()
            .copied()
            .chain(trust_domain)
            .map(|(name, value)| (sanitize(name), sanitize(value)));
        // The host's name is told as it is.
        let host = self.host.clone().map(|host| ("host".to_owned(), host));
        made_fit
            .chain(host)
            .filter(|(name, _)| self.filter.allows_label(name))
            .collect()
    }

    /// Those that came after the first `known`.
    pub(super) fn newer(&self, known: usize) -> Vec<Arc<Series>> {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        all.all.iter().skip(known).cloned().collect()
    }

    /// Gauges of time are told anew to those who are not asking.
    pub(super) fn tell_times(&self) {
        for series in self.newer(0) {
            if let Some(since) = series.since {
                series.set(since.elapsed().as_millis() as f64);
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, family) in &known.families {
            let mut lines = String::new();
            for (labels, series) in family {
                if series.is_printed() {
                    series.write(&mut lines, name, labels);
                }
            }
            if let Some(first) = family.values().next().filter(|_| !lines.is_empty()) {
                let kind = first.kind();
                let _ = writeln!(text, "# HELP {name} {name}\n# TYPE {name} {kind}");
                text.push_str(&lines);
            }
        }
        text
    }
}

/// As Prometheus calls it.
fn shown(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Sample | Kind::Timer => "summary",
        Kind::Point => "point",
    }
}

impl Series {
    fn kind(&self) -> &'static str {
        shown(self.name.kind)
    }

    /// A name that is in use with another type: a mistake in the program. Its other numbers matter more.
    fn clashes(&self, key: &[&str]) {
        tracing::error!(
            metric = key.join("."),
            kind = self.kind(),
            "metric is already there with another type and not counted"
        );
    }

    fn write(&self, text: &mut String, name: &str, labels: &Labels) {
        let mut line = |name: &str, quantile: Option<&str>, value: f64| {
            let labels = labels
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .chain(quantile.map(|it| ("quantile", it)))
                .map(|(name, value)| format!("{name}=\"{}\"", quoted(value)))
                .collect::<Vec<_>>()
                .join(",");
            let labels = match labels.is_empty() {
                true => labels,
                false => format!("{{{labels}}}"),
            };
            let _ = writeln!(text, "{name}{labels} {value}");
        };
        let number = &self.number;
        match (self.name.kind, self.since, &self.window) {
            (_, Some(start), _) => line(name, None, start.elapsed().as_millis() as f64),
            (Kind::Counter, ..) if number.is_set() => line(name, None, number.count() as f64),
            (Kind::Gauge, ..) if number.is_set() => line(name, None, number.value()),
            (.., Some(window)) => {
                let Some(read) = window.read() else { return };
                for (quantile, value) in read.quantiles {
                    line(name, Some(quantile), value);
                }
                line(&format!("{name}_sum"), None, read.sum);
                line(&format!("{name}_count"), None, read.count as f64);
            }
            _ => {}
        }
    }
}
