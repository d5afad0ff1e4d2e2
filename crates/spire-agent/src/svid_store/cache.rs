//! What is to be in the stores, and what is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Backoff;
use ah_spire_plugin_host::svids::StoredSvid;
use ah_spire_wire::model::{Bundle, Entry};
use spiffe::TrustDomain;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::{Held, has_ended};
use crate::identities::X509Identity;
use crate::server_client::SyncedEntries;

/// The longest wait for a store that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// One task fills it, another one empties it.
#[derive(Default)]
pub(crate) struct StoreCache {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Record>,
    bundle: Option<Arc<Bundle>>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

struct Record {
    /// `None` when it has gone and its SVID is to be taken away.
    entry: Option<Arc<Entry>>,
    svid: Option<Held>,
    /// To be replaced whatever its age.
    stale: bool,
    tainted: bool,
    /// Counts the changes of all that goes into the store.
    revision: u64,
    stored: u64,
    /// As which entry it stands in the store.
    stored_as: Option<Arc<Entry>>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

/// What is to be done about one entry.
pub(super) struct Work {
    pub(super) id: String,
    pub(super) revision: u64,
    /// To be taken away first.
    pub(super) delete: Option<Arc<Entry>>,
    /// To be put after that.
    pub(super) put: Option<(Arc<Entry>, StoredSvid)>,
}

impl Record {
    fn new(entry: &Arc<Entry>) -> Self {
        Self {
            entry: Some(entry.clone()),
            svid: None,
            stale: false,
            tainted: false,
            revision: 1,
            stored: 0,
            stored_as: None,
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_WAIT),
            not_before: None,
        }
    }

    /// Something else has to be in the store, and that is tried at once.
    fn change(&mut self) {
        self.revision += 1;
        self.backoff.reset();
        self.not_before = None;
    }
}

impl StoreCache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the server said; entries of workloads that can ask are passed over.
    pub(crate) fn update(
        &self,
        entries: &SyncedEntries,
        bundle: &Bundle,
        federated: &BTreeMap<TrustDomain, Bundle>,
        now: SystemTime,
    ) {
        let mut state = self.state();
        let own_changed = state.bundle.as_deref().map(roots) != Some(roots(bundle));
        if own_changed {
            state.bundle = Some(Arc::new(bundle.clone()));
        }
        let before = std::mem::take(&mut state.federated);
        state.federated = federated
            .iter()
            .map(|(domain, bundle)| (domain.clone(), Arc::new(bundle.clone())))
            .collect();
        let changed = |domain: &TrustDomain| {
            let before = before.get(domain).map(AsRef::as_ref);
            before.map(roots) != federated.get(domain).map(roots)
        };
        let wanted = |id: &String| {
            let entry = entries.get(id)?;
            (entry.store_svid && !has_ended(entry, now)).then_some(entry)
        };
        for (id, record) in &mut state.records {
            let Some(entry) = wanted(id) else {
                if record.entry.take().is_some() {
                    record.svid = None;
                    record.change();
                }
                continue;
            };
            let last = record.entry.replace(entry.clone());
            let last = last.as_deref();
            if last != Some(entry.as_ref()) {
                record.stale = true;
                record.change();
            } else if own_changed || entry.federates_with.iter().any(changed) {
                record.change();
            }
            if last.is_none_or(|last| last.spiffe_id != entry.spiffe_id) {
                record.svid = None;
            }
        }
        for id in entries.keys() {
            if let Some(entry) = wanted(id) {
                let made = || Record::new(entry);
                state.records.entry(id.clone()).or_insert_with(made);
            }
        }
        // What was never stored need not be taken away.
        state
            .records
            .retain(|_, record| record.entry.is_some() || record.stored_as.is_some());
        drop(state);
        self.changed.notify_one();
    }

    /// The entries that need an X509-SVID now.
    pub(crate) fn unsigned(&self, now: SystemTime) -> Vec<Arc<Entry>> {
        let state = self.state();
        let due = state.records.values().filter(|record| {
            let held = record.svid.as_ref();
            record.stale || held.is_none_or(|held| now >= held.rotate_at)
        });
        due.filter_map(|record| record.entry.clone()).collect()
    }

    /// When the first X509-SVID is due for replacement.
    pub(crate) fn next_rotation(&self) -> Option<SystemTime> {
        let state = self.state();
        let held = state.records.values().filter_map(|it| it.svid.as_ref());
        held.map(|held| held.rotate_at).min()
    }

    /// Takes over X509-SVIDs that were made for entries of this cache.
    pub(crate) fn put(&self, svids: Vec<Held>) {
        let mut state = self.state();
        for held in svids {
            let entry = &held.identity.entry;
            let Some(record) = state.records.get_mut(&entry.id) else {
                continue;
            };
            // One of an entry that changed meanwhile is made again.
            let same = record.entry.as_ref() == Some(entry);
            if same {
                record.svid = Some(held);
                record.stale = false;
                record.tainted = false;
                record.change();
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Marks what `issued_by` says for replacement. The count of them is the answer.
    pub(crate) fn taint(&self, issued_by: impl Fn(&X509Identity) -> bool) -> usize {
        let mut state = self.state();
        let mut tainted = 0;
        for record in state.records.values_mut() {
            let held = record.svid.as_ref();
            if held.is_some_and(|held| issued_by(&held.identity)) {
                (record.stale, record.tainted) = (true, true);
                tainted += 1;
            }
        }
        tainted
    }

    /// X509-SVIDs of tainted authorities.
    pub(crate) fn tainted(&self) -> usize {
        self.state()
            .records
            .values()
            .filter(|it| it.tainted)
            .count()
    }

    /// Entries that are in a store, or are to be.
    pub(crate) fn len(&self) -> usize {
        self.state().records.len()
    }

    /// Forgets everything, and leaves the stores as they are: a banned agent has no say in them.
    pub(crate) fn forget(&self) {
        self.state().records.clear();
    }

    /// What is to be done now, in the order of the entries' ids.
    pub(super) fn work(&self, now: Instant) -> Vec<Work> {
        let state = self.state();
        let open = state.records.iter().filter(|(_, record)| {
            record.revision > record.stored && record.not_before.is_none_or(|at| at <= now)
        });
        open.filter_map(|(id, record)| {
            let put = state.stored_svid(record);
            // The SVID is not made yet.
            if record.entry.is_some() && put.is_none() {
                return None;
            }
            let moved = |old: &&Arc<Entry>| {
                let new = record.entry.as_ref();
                new.is_none_or(|new| new.selectors != old.selectors)
            };
            Some(Work {
                id: id.clone(),
                revision: record.revision,
                delete: record.stored_as.as_ref().filter(moved).cloned(),
                put,
            })
        })
        .collect()
    }

    /// What was done: `entry` is what stands in the store now.
    pub(super) fn done(&self, id: &str, revision: u64, entry: Option<&Arc<Entry>>) {
        let mut state = self.state();
        if let Some(record) = state.records.get_mut(id) {
            record.stored = revision;
            record.stored_as = entry.cloned();
            record.backoff.reset();
            if record.entry.is_none() && record.stored_as.is_none() {
                state.records.remove(id);
            }
        }
    }

    /// What stood in the store is away, and nothing else is there yet.
    pub(super) fn taken_away(&self, id: &str) {
        if let Some(record) = self.state().records.get_mut(id) {
            record.stored_as = None;
        }
    }

    /// It is not known whether `entry` stands in the store: it is taken away like one that does.
    pub(super) fn may_stand(&self, id: &str, entry: &Arc<Entry>) {
        if let Some(record) = self.state().records.get_mut(id) {
            record.stored_as = Some(entry.clone());
        }
    }

    /// The store failed: it is tried again after the answer.
    pub(super) fn failed(&self, id: &str, revision: u64) -> Duration {
        let mut state = self.state();
        let Some(record) = state.records.get_mut(id) else {
            return Duration::ZERO;
        };
        if record.revision != revision {
            return Duration::ZERO;
        }
        let wait = record.backoff.next_wait();
        record.not_before = Some(Instant::now() + wait);
        wait
    }

    /// Waits until there may be work.
    pub(super) async fn wait(&self) {
        let next = {
            let state = self.state();
            let open = state.records.values().filter(|it| it.revision > it.stored);
            open.filter_map(|record| record.not_before).min()
        };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = due => {}
        }
    }
}

/// What of a bundle goes into a store.
fn roots(bundle: &Bundle) -> Vec<Vec<u8>> {
    let roots = bundle.x509.iter();
    roots.map(|root| root.der.clone()).collect()
}

impl State {
    fn stored_svid(&self, record: &Record) -> Option<(Arc<Entry>, StoredSvid)> {
        let (entry, held) = (record.entry.as_ref()?, record.svid.as_ref()?);
        let own = self.bundle.as_ref()?;
        let federated = entry.federates_with.iter().filter_map(|domain| {
            let bundle = self.federated.get(domain)?;
            (*domain != own.trust_domain).then(|| (domain.to_string(), roots(bundle)))
        });
        let svid = StoredSvid {
            spiffe_id: entry.spiffe_id.to_string(),
            chain: held.identity.chain.clone(),
            key: held.identity.key.clone(),
            bundle: roots(own),
            not_after: held.identity.not_after,
            federated: federated.collect(),
        };
        Some((entry.clone(), svid))
    }
}
