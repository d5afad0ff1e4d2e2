//! `AllowedPrefixes`, `BlockedPrefixes`, `AllowedLabels`, `BlockedLabels`.

use std::collections::BTreeSet;

use ah_spire_plugin::telemetry::TelemetryConfig;

/// What is counted at all.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// With whether it is let through.
    prefixes: Vec<(String, bool)>,
    /// Everything when empty.
    allowed_labels: BTreeSet<String>,
    blocked_labels: BTreeSet<String>,
}

impl Filter {
    pub(super) fn new(config: &TelemetryConfig) -> Self {
        let set = |labels: &[String]| labels.iter().cloned().collect();
        let blocked = config.blocked_prefixes.iter().map(|it| (it.clone(), false));
        let allowed = config.allowed_prefixes.iter().map(|it| (it.clone(), true));
        Self {
            // What is both is blocked: of equals, the first is found.
            prefixes: blocked.chain(allowed).collect(),
            allowed_labels: set(&config.allowed_labels),
            blocked_labels: set(&config.blocked_labels),
        }
    }

    /// `key` has its parts joined by dots, with the program's name first. The longest prefix decides; what has none is
    /// let through, so that `AllowedPrefixes` alone keeps nothing out.
    pub(super) fn allows(&self, key: &str) -> bool {
        let mut longest: Option<&(String, bool)> = None;
        for candidate in &self.prefixes {
            let longer = longest.is_none_or(|it| candidate.0.len() > it.0.len());
            if longer && key.starts_with(&candidate.0) {
                longest = Some(candidate);
            }
        }
        longest.is_none_or(|(_, allowed)| *allowed)
    }

    pub(super) fn allows_label(&self, name: &str) -> bool {
        !self.blocked_labels.contains(name)
            && (self.allowed_labels.is_empty() || self.allowed_labels.contains(name))
    }
}
