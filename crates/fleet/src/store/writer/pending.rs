//! What is not committed yet, folded by what it concerns.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::store::{Change, ExecutorId, HistoryEntry, RevocationTarget};

/// Most certificates kept of one executor that enrolls again and again while the store is gone: the first,
/// which says when it first enrolled, and the newest.
const SEEN_LIMIT: usize = 16;

/// Changes in order of arrival, one item for each executor and each revocation target.
#[derive(Debug, Default)]
pub(super) struct Pending {
    items: VecDeque<Item>,
    /// Place of each key's item, counted from the first item ever.
    places: HashMap<Key, u64>,
    /// Place of the front item.
    front: u64,
    /// Number of the last change pushed.
    sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Executor(ExecutorId),
    Bar(RevocationTarget),
}

#[derive(Debug)]
struct Item {
    key: Key,
    first: u64,
    last: u64,
    since: Instant,
    seen: Vec<HistoryEntry>,
    change: Change,
}

/// What one transaction is to write.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) parts: Vec<Part>,
    /// Every change with a number up to this is settled when the batch is.
    pub(super) settles: u64,
    /// When the oldest arrived.
    pub(super) since: Option<Instant>,
}

/// A run of changes in a batch that belong together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// How many.
    pub(super) len: usize,
    /// Number of the last.
    pub(super) sequence: u64,
}

impl Pending {
    /// Adds a change and returns its number, from 1.
    pub(super) fn push(&mut self, change: Change, now: Instant) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        let key = match &change {
            Change::Enrolled(enrollment) => Key::Executor(enrollment.id.clone()),
            Change::Seen(id, _) => Key::Executor(id.clone()),
            Change::Revoked(target, _) | Change::Reinstated(target) => Key::Bar(target.clone()),
        };
        let known = self
            .places
            .get(&key)
            .and_then(|place| usize::try_from(place - self.front).ok())
            .and_then(|index| self.items.get_mut(index));
        if let Some(item) = known {
            item.fold(change);
            item.last = sequence;
            return sequence;
        }
        let place = self.front + self.items.len() as u64;
        self.places.insert(key.clone(), place);
        self.items.push_back(Item {
            key,
            first: sequence,
            last: sequence,
            since: now,
            seen: Vec::new(),
            change,
        });
        sequence
    }

    /// Takes the oldest items, at most `limit`.
    pub(super) fn take(&mut self, limit: usize) -> Batch {
        let count = limit.min(self.items.len());
        let mut batch = Batch {
            changes: Vec::with_capacity(count),
            parts: Vec::with_capacity(count),
            settles: 0,
            since: self.oldest(),
        };
        for item in self.items.drain(..count) {
            self.front += 1;
            self.places.remove(&item.key);
            let len = item.seen.len() + 1;
            batch.parts.push(Part {
                len,
                sequence: item.last,
            });
            if let Key::Executor(id) = item.key {
                let seen = item.seen.into_iter();
                batch
                    .changes
                    .extend(seen.map(|entry| Change::Seen(id.clone(), entry)));
            }
            batch.changes.push(item.change);
        }
        // A folded item's last number may be above the first number of an item that stays behind.
        batch.settles = self.items.front().map_or(self.sequence, |i| i.first - 1);
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.items.front().map(|item| item.since)
    }
}

impl Item {
    /// Takes in a later change of the same key.
    fn fold(&mut self, change: Change) {
        match change {
            Change::Seen(_, entry) => self.see(entry),
            change => {
                let before = std::mem::replace(&mut self.change, change);
                match before {
                    Change::Enrolled(enrollment) => self.see(HistoryEntry::from(&*enrollment)),
                    Change::Seen(_, entry) => self.see(entry),
                    Change::Revoked(..) | Change::Reinstated(_) => {}
                }
            }
        }
    }

    fn see(&mut self, entry: HistoryEntry) {
        let again = self.seen.last().is_some_and(|last| {
            last.provider == entry.provider && last.certificate == entry.certificate
        });
        if again {
            return;
        }
        if self.seen.len() >= SEEN_LIMIT {
            self.seen.remove(1);
        }
        self.seen.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::store::{CertificateRecord, Enrollment, HostRecord, Revocation};

    fn enrolled(id: &str, sha256: &str, second: i64) -> Change {
        Change::Enrolled(Box::new(Enrollment {
            id: id.into(),
            name: id.into(),
            provider: None,
            version: String::new(),
            labels: [].into(),
            host: HostRecord::default(),
            certificate: CertificateRecord {
                serial: "01".into(),
                sha256: sha256.into(),
                not_after: OffsetDateTime::UNIX_EPOCH,
            },
            at: OffsetDateTime::from_unix_timestamp(second).unwrap(),
        }))
    }

    fn bar(id: &str) -> RevocationTarget {
        RevocationTarget::Id(id.into())
    }

    // RG-1: a store that is gone costs memory by executor, not by enrollment.
    #[test]
    fn enrollments_of_one_executor_fold_into_the_last_with_a_bounded_history() {
        let mut pending = Pending::default();
        for n in 0..1_000 {
            pending.push(enrolled("a", &format!("{n:02}"), n), Instant::now());
        }
        assert_eq!(pending.len(), 1);
        let batch = pending.take(10);
        assert_eq!(batch.changes.len(), SEEN_LIMIT + 1);
        assert!(
            matches!(&batch.changes[0], Change::Seen(_, e) if e.at.unix_timestamp() == 0),
            "the first enrollment is kept"
        );
        assert!(
            matches!(batch.changes.last(), Some(Change::Enrolled(e)) if e.certificate.sha256 == "999")
        );
        assert_eq!(batch.settles, 1_000);
    }

    #[test]
    fn coming_back_with_the_same_certificate_keeps_the_time_of_the_first() {
        let mut pending = Pending::default();
        for n in 0..5 {
            pending.push(enrolled("a", "aa", n), Instant::now());
        }
        let batch = pending.take(10);
        assert_eq!(batch.changes.len(), 2);
        assert!(matches!(&batch.changes[0], Change::Seen(_, e) if e.at.unix_timestamp() == 0));
    }

    #[test]
    fn what_stays_behind_is_not_settled() {
        let mut pending = Pending::default();
        let now = Instant::now();
        pending.push(enrolled("a", "aa", 1), now);
        pending.push(enrolled("b", "bb", 2), now);
        let folded = pending.push(enrolled("a", "cc", 3), now);
        let first = pending.take(1);
        assert_eq!(first.parts[0].sequence, folded);
        assert_eq!(first.settles, 1, "b is number 2 and still waits");
        assert_eq!(pending.take(1).settles, 3);
        // A key that left starts a new item.
        assert_eq!(pending.push(enrolled("a", "dd", 4), now), 4);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn the_last_word_on_a_bar_wins() {
        let mut pending = Pending::default();
        let revocation = Revocation {
            at: OffsetDateTime::UNIX_EPOCH,
            reason: String::new(),
        };
        pending.push(Change::Revoked(bar("a"), revocation), Instant::now());
        pending.push(Change::Reinstated(bar("a")), Instant::now());
        assert_eq!(pending.take(9).changes, [Change::Reinstated(bar("a"))]);
    }
}
