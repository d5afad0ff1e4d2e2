//! All series by name and labels, and their text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::filter::Filter;
use super::name::{flatten, quoted, sanitize};
use super::{Number, Window};

/// Only making a handle and printing lock it.
#[derive(Debug)]
pub(super) struct Registry {
    prefix: String,
    host: Option<String>,
    trust_domain: Option<String>,
    filter: Filter,
    families: RwLock<BTreeMap<String, BTreeMap<Labels, Series>>>,
}

/// By name.
type Labels = BTreeMap<String, String>;

/// One line of the text, or several.
#[derive(Clone, Debug)]
pub(super) enum Series {
    Counter(Arc<Number>),
    Gauge(Arc<Number>),
    Summary(Arc<Window>),
    /// Milliseconds since then.
    Since(Instant),
}

impl Registry {
    pub(super) fn new(
        prefix: &str,
        host: Option<String>,
        trust_domain: Option<String>,
        filter: Filter,
    ) -> Self {
        Self {
            prefix: prefix.to_owned(),
            host,
            trust_domain,
            filter,
            families: RwLock::default(),
        }
    }

    pub(super) fn counter(&self, key: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Number>> {
        match self.add(key, labels, Series::Counter(Arc::default()))? {
            Series::Counter(number) => Some(number),
            other => other.clashes(key),
        }
    }

    pub(super) fn gauge(&self, key: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Number>> {
        match self.add(key, labels, Series::Gauge(Arc::default()))? {
            Series::Gauge(number) => Some(number),
            other => other.clashes(key),
        }
    }

    pub(super) fn summary(&self, key: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Window>> {
        match self.add(key, labels, Series::Summary(Arc::default()))? {
            Series::Summary(window) => Some(window),
            other => other.clashes(key),
        }
    }

    /// The series of that name and labels: the one that is there, or `new`; `None` when it is filtered out. Labels that
    /// are filtered out bring several series together in one.
    pub(super) fn add(&self, key: &[&str], labels: &[(&str, &str)], new: Series) -> Option<Series> {
        let mut parts = vec![self.prefix.as_str()];
        parts.extend(key);
        if !self.filter.allows(&parts.join(".")) {
            return None;
        }
        let mut families = self
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(flatten(&parts)).or_default();
        // Of one name, all are of one type.
        if let Some(other) = family.values().next()
            && other.kind() != new.kind()
        {
            return Some(other.clone());
        }
        let series = family.entry(self.labels(labels)).or_insert(new);
        Some(series.clone())
    }

    fn labels(&self, own: &[(&str, &str)]) -> Labels {
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

    pub(super) fn text(&self) -> String {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, family) in families.iter() {
            let mut lines = String::new();
            for (labels, series) in family {
                series.write(&mut lines, name, labels);
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

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) | Self::Since(_) => "gauge",
            Self::Summary(_) => "summary",
        }
    }

    /// A name that is in use with another type: a mistake in the program. Its other numbers matter more.
    fn clashes<T>(&self, key: &[&str]) -> Option<T> {
        tracing::error!(
            metric = key.join("."),
            kind = self.kind(),
            "metric is already there with another type and not counted"
        );
        None
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
        match self {
            Self::Counter(number) if number.is_set() => line(name, None, number.count() as f64),
            Self::Gauge(number) if number.is_set() => line(name, None, number.value()),
            Self::Counter(_) | Self::Gauge(_) => {}
            Self::Since(start) => line(name, None, start.elapsed().as_millis() as f64),
            Self::Summary(window) => {
                let Some(read) = window.read() else { return };
                for (quantile, value) in read.quantiles {
                    line(name, Some(quantile), value);
                }
                line(&format!("{name}_sum"), None, read.sum);
                line(&format!("{name}_count"), None, read.count as f64);
            }
        }
    }
}
