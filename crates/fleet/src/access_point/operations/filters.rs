//! Which executors and events an operator asks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::views::{ExecutorView, FleetEvent};

/// Which executors to list. Every condition given has to hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct ListFilter {
    /// Labels that the executor has: `key=value`, comma separated; a `key` alone matches any value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Live ones only, or only those that are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
    /// Revoked ones only, or only those that are not. With `true`, and no other condition, the bars in force are told besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,
}

impl ListFilter {
    /// Whether all that is barred is asked for. A bar on a serial number has no labels and no session.
    pub(super) fn wants_bars(&self) -> bool {
        self.revoked == Some(true) && self.live.is_none() && self.labels.is_none()
    }

    /// Whether `view` is to be listed.
    pub(super) fn admits(&self, view: &ExecutorView) -> bool {
        self.live.is_none_or(|live| live == view.live.is_some())
            && self
                .revoked
                .is_none_or(|revoked| revoked == view.revocation.is_some())
            && labels_admit(self.labels.as_deref(), &view.labels)
    }
}

/// Which events to watch.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// Labels of the executor concerned: `key=value`, comma separated; a `key` alone matches any value. An
    /// event whose executor is not known by its labels (a refused handshake, a barred serial number) matches none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
}

impl EventFilter {
    /// Whether `event` is to be shown.
    pub fn admits(&self, event: &FleetEvent) -> bool {
        labels_admit(self.labels.as_deref(), &event.labels)
    }
}

/// Whether `labels` meet every one of the comma-separated `conditions`.
fn labels_admit(conditions: Option<&str>, labels: &BTreeMap<String, String>) -> bool {
    conditions
        .into_iter()
        .flat_map(|conditions| conditions.split(','))
        .map(str::trim)
        .filter(|condition| !condition.is_empty())
        .all(|condition| match condition.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|has| has == value),
            None => labels.contains_key(condition),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_condition_has_to_hold() {
        let labels = BTreeMap::from([("zone".into(), "a".into()), ("gpu".into(), "".into())]);
        for (conditions, admitted) in [
            (None, true),
            (Some(""), true),
            (Some("zone=a, gpu"), true),
            (Some("gpu="), true),
            (Some("zone"), true),
            (Some("zone=b"), false),
            (Some("zone=a,rack=1"), false),
        ] {
            assert_eq!(
                labels_admit(conditions, &labels),
                admitted,
                "{conditions:?}"
            );
        }
    }
}
