use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::model::{Bundle, Entry, Selector};
use spiffe::TrustDomain;
use tokio::sync::watch;

use super::index::Index;
use crate::bundles::Bundles;
use crate::identities::{WorkloadUpdate, X509Identity};

/// The selectors of a workload: sorted, none twice.
pub(super) type SelectorSet = Arc<[Selector]>;

pub(super) fn selector_set(selectors: &[Selector]) -> SelectorSet {
    let mut all = selectors.to_vec();
    all.sort_unstable();
    all.dedup();
    all.into()
}

/// An X509-SVID and when to replace it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) identity: Arc<X509Identity>,
    pub(crate) rotate_at: SystemTime,
}

/// What is kept for the next start.
pub(crate) struct Snapshot {
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) federated: Vec<Arc<Bundle>>,
    pub(crate) entries: Vec<(Arc<Entry>, Option<Held>)>,
}

/// What became of the entries with an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EntryChanges {
    pub(super) added: u64,
    pub(super) updated: u64,
    pub(super) removed: u64,
    /// X509-SVIDs whose entry is of another revision now.
    pub(super) outdated: usize,
}

/// SVIDs of a tainted authority that are replaced at a time, as upstream's agents do, and how long after each other: the
/// whole trust domain hears of the taint in one moment.
const TAINTED_AT_ONCE: usize = 100;
const TAINTED_EVERY: Duration = Duration::from_secs(5);

struct Record {
    entry: Arc<Entry>,
    svid: Option<Held>,
    /// The SVID is to be replaced whatever its age: the entry changed since, or its issuer is gone.
    stale: bool,
    /// The SVID's issuer is tainted.
    tainted: bool,
    /// When somebody was last served with it, by a count.
    used: u64,
}

impl Record {
    fn valid_svid(&self, now: SystemTime) -> Option<&Held> {
        self.svid
            .as_ref()
            .filter(|held| now < held.identity.not_after)
    }
}

/// All of the cache but the tokens. Nothing in here waits.
#[derive(Default)]
pub(crate) struct State {
    records: HashMap<Arc<str>, Record>,
    index: Index,
    /// `None` before the server said anything, and nothing was kept of what it said to the process before.
    bundle: Option<Arc<Bundle>>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Both of the above, for those who follow them.
    bundles: watch::Sender<Bundles>,
    /// One for each set of selectors, however many streams there are.
    subscriptions: HashMap<SelectorSet, watch::Sender<Arc<WorkloadUpdate>>>,
    /// Sets that wait for their first update, with how many.
    waiting: HashMap<SelectorSet, usize>,
    uses: u64,
    /// Counts the changes of what is kept for the next start.
    changes: u64,
}

impl State {
    /// Whether it is known what there is to serve.
    pub(super) fn is_filled(&self) -> bool {
        self.bundle.is_some()
    }

    pub(super) fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_deref()
    }

    pub(super) fn set_entries<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
    ) -> EntryChanges {
        let mut counted = EntryChanges::default();
        let mut kept = HashSet::with_capacity(self.records.len());
        for entry in entries {
            let id: Arc<str> = entry.id.as_str().into();
            match self.records.get_mut(&id) {
                Some(record) => {
                    let before = std::mem::replace(&mut record.entry, entry.clone());
                    if !Arc::ptr_eq(&before, entry) && before != *entry {
                        self.changes += 1;
                        counted.updated += 1;
                    }
                    if before.revision != entry.revision || before.created_at != entry.created_at {
                        counted.outdated += usize::from(record.svid.is_some());
                        record.stale = true;
                    }
                    if before.spiffe_id != entry.spiffe_id {
                        // Another name: what was issued under the old one is not this entry's any more.
                        record.svid = None;
                    }
                    if before.selectors != entry.selectors {
                        self.index.put(&id, entry);
                    }
                }
                None => {
                    self.index.put(&id, entry);
                    let record = Record {
                        entry: entry.clone(),
                        svid: None,
                        stale: false,
                        tainted: false,
                        used: 0,
                    };
                    self.records.insert(id.clone(), record);
                    self.changes += 1;
                    counted.added += 1;
                }
            }
            kept.insert(id);
        }
        let (index, changes) = (&mut self.index, &mut self.changes);
        self.records.retain(|id, _| {
            let stays = kept.contains(id);
            if !stays {
                index.remove(id);
                *changes += 1;
                counted.removed += 1;
            }
            stays
        });
        counted
    }

    /// X509-SVIDs whose time to be replaced has come.
    pub(super) fn expiring(&self, now: SystemTime) -> usize {
        let records = self.records.values();
        records
            .filter(|record| {
                let valid = record.valid_svid(now);
                valid.is_some_and(|held| now >= held.rotate_at)
            })
            .count()
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Values that are equal to the ones before stay the same, so that nobody is told of them.
    pub(super) fn set_bundles(&mut self, own: Bundle, federated: BTreeMap<TrustDomain, Bundle>) {
        if self.bundle.as_deref() != Some(&own) {
            self.bundle = Some(Arc::new(own));
            self.changes += 1;
        }
        let mut before = std::mem::take(&mut self.federated);
        for (domain, bundle) in federated {
            let kept = before.remove(&domain).filter(|before| **before == bundle);
            let bundle = kept.unwrap_or_else(|| {
                self.changes += 1;
                Arc::new(bundle)
            });
            self.federated.insert(domain, bundle);
        }
        let own = self.bundle.iter();
        let own = own.map(|bundle| (bundle.trust_domain.clone(), bundle.clone()));
        let all = Bundles(own.chain(self.federated.clone()).collect());
        self.bundles.send_if_modified(|told| {
            let changed = *told != all;
            if changed {
                *told = all;
            }
            changed
        });
    }

    pub(super) fn bundles(&self) -> watch::Receiver<Bundles> {
        self.bundles.subscribe()
    }

    fn matching<'a>(
        &'a self,
        set: &'a [Selector],
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Record)> {
        self.index.candidates(set).filter_map(|id| {
            let record = self.records.get(id)?;
            let has = |selector| set.binary_search(selector).is_ok();
            record
                .entry
                .selectors
                .iter()
                .all(has)
                .then_some((id, record))
        })
    }

    /// In the order of their creation.
    pub(super) fn matching_entries(&self, set: &SelectorSet) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self
            .matching(set)
            .map(|(_, record)| record.entry.clone())
            .collect();
        entries.sort_unstable_by(|a, b| age(a).cmp(&age(b)));
        entries
    }

    /// What a workload with `set` is to be served with. `None` when that is not known yet, or when entries match and
    /// none has a valid SVID: there is something to serve, but not now.
    fn update_for(&self, set: &SelectorSet, now: SystemTime) -> Option<WorkloadUpdate> {
        let bundle = self.bundle.clone()?;
        let mut matching: Vec<_> = self.matching(set).map(|(_, record)| record).collect();
        matching.sort_unstable_by(|a, b| age(&a.entry).cmp(&age(&b.entry)));
        let identities: Vec<_> = matching
            .iter()
            .filter_map(|record| Some(record.valid_svid(now)?.identity.clone()))
            .collect();
        if identities.is_empty() && !matching.is_empty() {
            return None;
        }
        let mut federated = BTreeMap::new();
        for domain in matching
            .iter()
            .flat_map(|record| &record.entry.federates_with)
        {
            if let Some(bundle) = self.federated.get(domain) {
                federated.insert(domain.clone(), bundle.clone());
            }
        }
        Some(WorkloadUpdate {
            identities,
            bundle,
            federated,
        })
    }

    /// A subscription to `set`. `None` while an SVID of it is missing; with `partial` only while all are.
    pub(super) fn subscribe(
        &mut self,
        set: &SelectorSet,
        now: SystemTime,
        partial: bool,
    ) -> Option<watch::Receiver<Arc<WorkloadUpdate>>> {
        let whole = self
            .matching(set)
            .all(|(_, record)| record.valid_svid(now).is_some());
        if !whole && !partial {
            return None;
        }
        let update = self.update_for(set, now)?;
        self.touch(set);
        if let Some(sender) = self.subscriptions.get(set) {
            send_if_changed(sender, update);
            return Some(sender.subscribe());
        }
        let (sender, receiver) = watch::channel(Arc::new(update));
        self.subscriptions.insert(set.clone(), sender);
        Some(receiver)
    }

    pub(super) fn start_waiting(&mut self, set: &SelectorSet) {
        *self.waiting.entry(set.clone()).or_default() += 1;
    }

    pub(super) fn stop_waiting(&mut self, set: &SelectorSet) {
        if let Some(count) = self.waiting.get_mut(set) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(set);
            }
        }
    }

    fn touch(&mut self, set: &SelectorSet) {
        self.uses += 1;
        let ids: Vec<_> = self.matching(set).map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some(record) = self.records.get_mut(&id) {
                record.used = self.uses;
            }
        }
    }

    /// Tells those whose set changed, and forgets subscriptions that nobody holds.
    pub(super) fn publish(&mut self, now: SystemTime) {
        self.subscriptions
            .retain(|_, sender| sender.receiver_count() > 0);
        for (set, sender) in &self.subscriptions {
            if let Some(update) = self.update_for(set, now) {
                send_if_changed(sender, update);
            }
        }
    }

    /// The entries that somebody is served with, or waits for.
    fn active(&self) -> HashSet<Arc<str>> {
        let streams = self.subscriptions.iter();
        let streams = streams.filter(|(_, sender)| sender.receiver_count() > 0);
        let sets = streams.map(|(set, _)| set).chain(self.waiting.keys());
        sets.flat_map(|set| self.matching(set))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Missing ones that somebody wants, then those that are to be replaced, then what there is room for.
    pub(super) fn unsigned(&self, now: SystemTime, limit: usize) -> Vec<Arc<Entry>> {
        let active = self.active();
        let mut wanted = Vec::new();
        let mut aging = Vec::new();
        let mut others = Vec::new();
        let mut count = 0;
        for (id, record) in &self.records {
            match record.valid_svid(now) {
                None if active.contains(id) => wanted.push(record.entry.clone()),
                None if !record.entry.disable_x509_svid_prefetch => {
                    others.push(record.entry.clone());
                }
                None => {}
                Some(held) => {
                    count += 1;
                    if record.stale || now >= held.rotate_at {
                        aging.push((held.identity.not_after, record.entry.clone()));
                    }
                }
            }
        }
        let room = limit.saturating_sub(count + wanted.len());
        others.sort_unstable_by(|a, b| age(a).cmp(&age(b)));
        others.truncate(room);
        aging.sort_unstable_by_key(|(not_after, _)| *not_after);
        wanted.extend(aging.into_iter().map(|(_, entry)| entry));
        wanted.extend(others);
        wanted
    }

    /// When the first SVID is due for replacement.
    pub(super) fn next_rotation(&self) -> Option<SystemTime> {
        let held = self.records.values().filter_map(|it| it.svid.as_ref());
        held.map(|held| held.rotate_at).min()
    }

    /// Takes over an SVID, unless its entry went away or changed while it was made.
    pub(super) fn put(&mut self, held: Held) {
        let entry = &held.identity.entry;
        let Some(record) = self.records.get_mut(entry.id.as_str()) else {
            return;
        };
        if record.entry.spiffe_id != entry.spiffe_id {
            return;
        }
        record.stale = record.entry.revision != entry.revision;
        record.tainted = false;
        record.svid = Some(held);
        self.changes += 1;
    }

    /// Drops those that were not used for the longest time, while there are more than `limit`. One that somebody
    /// is served with stays.
    pub(super) fn evict(&mut self, limit: usize) {
        let mut surplus = self.svids().saturating_sub(limit);
        if surplus == 0 {
            return;
        }
        let active = self.active();
        let mut idle: Vec<_> = self
            .records
            .iter()
            .filter(|(id, record)| record.svid.is_some() && !active.contains(*id))
            .map(|(id, record)| (record.used, id.clone()))
            .collect();
        idle.sort_unstable();
        for (_, id) in idle {
            if surplus == 0 {
                return;
            }
            if let Some(record) = self.records.get_mut(&id) {
                record.svid = None;
                self.changes += 1;
                surplus -= 1;
            }
        }
    }

    /// Has what `issued_by` says replaced: at once, or from `spread` on in batches. How many.
    pub(super) fn taint(
        &mut self,
        issued_by: impl Fn(&X509Identity) -> bool,
        spread: Option<SystemTime>,
    ) -> usize {
        let (mut tainted, mut due) = (0, spread);
        for record in self.records.values_mut() {
            let Some(held) = &mut record.svid else {
                continue;
            };
            if !issued_by(&held.identity) {
                continue;
            }
            tainted += 1;
            match due {
                Some(at) => {
                    record.tainted = true;
                    held.rotate_at = held.rotate_at.min(at);
                    if tainted % TAINTED_AT_ONCE == 0 {
                        due = at.checked_add(TAINTED_EVERY);
                    }
                }
                None => record.stale = true,
            }
        }
        tainted
    }

    /// X509-SVIDs of tainted authorities that are not replaced yet.
    pub(super) fn tainted(&self) -> usize {
        let records = self.records.values();
        records
            .filter(|record| record.tainted && record.svid.is_some())
            .count()
    }

    pub(super) fn svids(&self) -> usize {
        let records = self.records.values();
        records.filter(|record| record.svid.is_some()).count()
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        let records = self.records.values();
        records.map(|record| record.entry.clone()).collect()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let records = self.records.values();
        Some(Snapshot {
            bundle: self.bundle.clone()?,
            federated: self.federated.values().cloned().collect(),
            entries: records
                .map(|record| (record.entry.clone(), record.svid.clone()))
                .collect(),
        })
    }
}

/// Older entries first; the id settles it between those of one second.
fn age(entry: &Entry) -> (i64, &str) {
    (entry.created_at, &entry.id)
}

fn send_if_changed(sender: &watch::Sender<Arc<WorkloadUpdate>>, update: WorkloadUpdate) {
    sender.send_if_modified(|now| {
        let changed = !same(now, &update);
        if changed {
            *now = Arc::new(update);
        }
        changed
    });
}

/// Bundles and identities are made anew only when they differ.
fn same(a: &WorkloadUpdate, b: &WorkloadUpdate) -> bool {
    let same_identities = a.identities.len() == b.identities.len()
        && a.identities
            .iter()
            .zip(&b.identities)
            .all(|(a, b)| Arc::ptr_eq(a, b));
    let same_federated = a.federated.len() == b.federated.len()
        && a.federated
            .iter()
            .zip(&b.federated)
            .all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y));
    same_identities && same_federated && Arc::ptr_eq(&a.bundle, &b.bundle)
}

#[cfg(test)]
mod tests;
