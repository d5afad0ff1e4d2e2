//! Whether this process can do its work, as a set of named conditions.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// The conditions of a process. Cheap to clone; every clone sees the same conditions.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Per condition why it is not met; `None` when it is.
    conditions: watch::Sender<BTreeMap<&'static str, Option<String>>>,
}

/// One condition, held by whoever can tell. It starts unmet.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    conditions: watch::Sender<BTreeMap<&'static str, Option<String>>>,
}

/// A condition that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The condition's name.
    pub name: &'static str,
    /// Why, in a few words for a person.
    pub why: String,
}

impl Readiness {
    /// A process without conditions, which is ready.
    pub fn new() -> Self {
        Self {
            conditions: watch::Sender::new(BTreeMap::new()),
        }
    }

    /// Adds a condition that is not met yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            conditions: self.conditions.clone(),
        };
        condition.unmet("not yet");
        condition
    }

    /// The conditions that are not met, by name. Empty means ready.
    pub fn unmet(&self) -> Vec<Unmet> {
        unmet(&self.conditions.borrow())
    }

    /// Waits until every condition is met.
    pub async fn ready(&self) {
        let mut receiver = self.conditions.subscribe();
        // The sender lives in `self`, so that this cannot end without the condition being true.
        let _ = receiver.wait_for(|all| unmet(all).is_empty()).await;
    }

    /// Yields what is unmet now, and again after each change.
    pub fn watch(&self) -> Changes {
        let mut receiver = self.conditions.subscribe();
        receiver.mark_changed();
        Changes(receiver)
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// The stream of [`Readiness::watch`].
#[derive(Debug)]
pub struct Changes(watch::Receiver<BTreeMap<&'static str, Option<String>>>);

impl Changes {
    /// What is unmet after the next change; `None` when nobody is left to change anything. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Unmet>> {
        self.0.changed().await.ok()?;
        Some(unmet(&self.0.borrow_and_update()))
    }
}

impl Condition {
    /// Says that the condition is met.
    pub fn met(&self) {
        self.set(None);
    }

    /// Says that the condition is not met, and why.
    pub fn unmet(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    fn set(&self, value: Option<String>) {
        self.conditions.send_if_modified(|all| {
            let before = all.insert(self.name, value.clone());
            before != Some(value)
        });
    }
}

fn unmet(all: &BTreeMap<&'static str, Option<String>>) -> Vec<Unmet> {
    all.iter()
        .filter_map(|(name, why)| {
            let why = why.clone()?;
            Some(Unmet { name, why })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_every_condition_is_met_and_not_before() {
        let readiness = Readiness::new();
        let identity = readiness.condition("identity");
        let store = readiness.condition("store");
        identity.met();
        store.unmet("disk full");
        assert_eq!(
            readiness.unmet(),
            [Unmet {
                name: "store",
                why: "disk full".into()
            }]
        );
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        store.met();
        waiting.await.unwrap();
        assert!(readiness.unmet().is_empty());
    }

    #[tokio::test]
    async fn a_change_is_told_once_and_a_repetition_never() {
        let readiness = Readiness::new();
        let store = readiness.condition("store");
        let mut changes = readiness.watch();
        assert_eq!(changes.next().await.unwrap().len(), 1);
        store.met();
        store.met();
        assert_eq!(changes.next().await, Some(vec![]));
        let again = tokio::time::timeout(std::time::Duration::ZERO, changes.next()).await;
        assert!(again.is_err(), "nothing changed since");
    }
}
