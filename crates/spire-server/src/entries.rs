//! Which entries an agent may serve, kept in memory.
//!
//! The cache begins with everything the store holds. From then on the APIs hand it what this server writes, and
//! the store's log of changes tells what other servers wrote.

mod build;
mod doubt;
mod follow;
mod held;
mod index;
mod metrics;
mod order;
mod through;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use ah_spire_telemetry::Metrics;
use ah_spire_wire::model::Entry;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tokio::time::Instant;

use doubt::Doubts;
pub use follow::Follow;
use follow::State;
pub use held::{Fields, Held, encoded};
use index::{Affected, Index};
use metrics::Counts;
pub use through::CachedStore;

use crate::store::{Agent, Store, StoreError};

/// Unix seconds.
type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// The authorized entries of all agents. Reading takes microseconds and waits for no I/O.
pub struct EntryCache {
    index: RwLock<Index>,
    clock: Clock,
    subscribers: Mutex<HashMap<SpiffeId, watch::Sender<u64>>>,
    /// Counts the changes of bundles.
    bundles: watch::Sender<u64>,
    /// What this server changed while the store was being read: newer than what was read.
    own: Mutex<Option<Own>>,
    state: tokio::sync::Mutex<State>,
    doubts: Doubts,
    /// What other servers wrote before this is known.
    followed: Mutex<Instant>,
    counts: Counts,
}

#[derive(Default)]
struct Own {
    entries: HashMap<String, Option<Entry>>,
    agents: HashMap<SpiffeId, Option<Arc<Agent>>>,
}

impl EntryCache {
    /// Reads everything there is.
    ///
    /// # Errors
    /// What the store says.
    pub async fn load(store: &impl Store, trust_domain: TrustDomain) -> Result<Self, StoreError> {
        Self::load_counted(store, trust_domain, &Metrics::off()).await
    }

    /// As [`Self::load`]; how much there is and how often it is read anew is counted in `metrics`.
    ///
    /// # Errors
    /// What the store says.
    pub async fn load_counted(
        store: &impl Store,
        trust_domain: TrustDomain,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut cache = Self::empty(trust_domain, Box::new(now));
        cache.counts = Counts::new(metrics);
        cache.reload(store).await?;
        Ok(cache)
    }

    fn empty(trust_domain: TrustDomain, clock: Clock) -> Self {
        Self {
            counts: Counts::default(),
            index: RwLock::new(Index::new(trust_domain)),
            clock,
            subscribers: Mutex::default(),
            bundles: watch::Sender::new(0),
            own: Mutex::default(),
            state: tokio::sync::Mutex::default(),
            doubts: Doubts::default(),
            followed: Mutex::new(Instant::now()),
        }
    }

    /// All entries that `agent` may serve: those below it and below the aliases whose selectors it has, with
    /// theirs in turn. Nothing for a banned agent; no entry that has expired.
    pub fn authorized(&self, agent: &SpiffeId) -> Vec<Arc<Held>> {
        self.index().authorized(agent, (self.clock)())
    }

    /// The entry with this ID when `agent` may serve it.
    pub fn authorized_entry(&self, agent: &SpiffeId, id: &str) -> Option<Arc<Held>> {
        self.index().authorized_entry(agent, id, (self.clock)())
    }

    /// By entry ID, whoever may serve it.
    pub fn entry(&self, id: &str) -> Option<Arc<Held>> {
        self.index().entry(id).cloned()
    }

    /// By SPIFFE ID.
    pub fn agent(&self, id: &SpiffeId) -> Option<Arc<Agent>> {
        self.index().agent(id).cloned()
    }

    /// The agent as the store has it: with all that this server wrote, and with what others wrote until `staleness` ago
    /// (`None`: there are no others). `None` where that is not known, and where there is no such agent.
    pub fn agent_within(&self, id: &SpiffeId, staleness: Option<Duration>) -> Option<Arc<Agent>> {
        let is_old = |most| locked(&self.followed).elapsed() >= most;
        if staleness.is_some_and(is_old) || self.doubts.contain(id) {
            return None;
        }
        self.agent(id)
    }

    /// Changes each time that [`EntryCache::authorized`] of this agent may have. Subscribe first, then read.
    pub fn subscribe(&self, agent: &SpiffeId) -> watch::Receiver<u64> {
        let mut subscribers = locked(&self.subscribers);
        if let Some(sender) = subscribers.get(agent) {
            return sender.subscribe();
        }
        // Only when it would have to grow: a look at all of them for each that comes takes long with many.
        if subscribers.len() == subscribers.capacity() {
            subscribers.retain(|_, sender| sender.receiver_count() > 0);
        }
        let (sender, receiver) = watch::channel(0);
        subscribers.insert(agent.clone(), sender);
        receiver
    }

    /// Changes each time that this server has changed a bundle.
    pub fn subscribe_to_bundles(&self) -> watch::Receiver<u64> {
        self.bundles.subscribe()
    }

    /// This server has changed a bundle.
    pub fn bundles_changed(&self) {
        self.bundles
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    /// This server has created or updated the entry.
    pub fn put(&self, entry: Entry) {
        self.change(|index, affected| {
            self.record(|own| own.entries.insert(entry.id.clone(), Some(entry.clone())));
            index.put(entry, affected);
        });
    }

    /// This server has deleted the entry.
    pub fn remove(&self, id: &str) {
        self.change(|index, affected| {
            self.record(|own| own.entries.insert(id.to_owned(), None));
            index.remove(id, affected);
        });
    }

    /// This server has attested, renewed or banned the agent.
    pub fn put_agent(&self, agent: Agent) {
        let agent = Arc::new(agent);
        self.change(|index, affected| {
            self.record(|own| {
                own.agents
                    .insert(agent.id.clone(), Some(Arc::clone(&agent)))
            });
            index.put_agent(agent, affected);
        });
    }

    /// This server has evicted the agent.
    pub fn remove_agent(&self, id: &SpiffeId) {
        self.change(|index, affected| {
            self.record(|own| own.agents.insert(id.clone(), None));
            index.remove_agent(id, affected);
        });
    }

    /// Under the lock of the index, so that a change is either seen by who reads the store or written down for it.
    fn record<T>(&self, change: impl FnOnce(&mut Own) -> T) {
        if let Some(own) = &mut *locked(&self.own) {
            change(own);
        }
    }

    /// Changes the index and tells the agents that see the difference.
    fn change(&self, change: impl FnOnce(&mut Index, &mut Affected<'_>)) {
        let mut index = self.index_mut();
        let subscribers = locked(&self.subscribers);
        let mut affected = Affected::among(&subscribers);
        change(&mut index, &mut affected);
        // Who looks now sees the difference.
        drop(index);
        for agent in affected.agents() {
            if let Some(sender) = subscribers.get(agent) {
                sender.send_modify(|generation| *generation = generation.wrapping_add(1));
            }
        }
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for EntryCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntryCache")
            .field("entries", &self.index().len())
            .finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
