//! Keeping up with what other servers write.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::SpiffeId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::build::Building;
use super::{EntryCache, Own, locked};
use crate::store::{Changed, Store, StoreError, counted};

/// How far back gaps in the log of changes are looked for at the start: transactions that were not yet committed
/// when everything was read.
const WINDOW: u64 = 1_000;

/// When other servers' changes are looked for; upstream's keys in `server.experimental` and their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// `cache_reload_interval`: between two looks.
    pub interval: Duration,
    /// `full_cache_reload_interval`: between two times that everything is read anew.
    pub full_interval: Duration,
    /// `event_timeout`: for how long a gap in the log of changes may still fill.
    pub gap_timeout: Duration,
    /// `prune_events_older_than`: how long events are kept.
    pub keep_events: Duration,
}

impl Default for Follow {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            full_interval: Duration::from_secs(24 * 60 * 60),
            gap_timeout: Duration::from_secs(15 * 60),
            keep_events: Duration::from_secs(12 * 60 * 60),
        }
    }
}

/// How far the logs of changes were followed.
#[derive(Default)]
pub(super) struct State {
    entries: Log,
    agents: Log,
    /// Unix seconds up to which the ends of entries were told.
    expired: i64,
}

#[derive(Default)]
struct Log {
    last: u64,
    /// Numbers that were left out, and since when: a transaction that commits late, or never.
    gaps: BTreeMap<u64, Instant>,
    /// To be read again: this server changed them while they were being read.
    again: HashSet<String>,
}

impl Log {
    /// Begins behind all that is there, `recent` being the last of it.
    fn begin(&mut self, recent: &[Changed], now: Instant) {
        *self = Self::default();
        self.last = recent.first().map_or(0, |first| first.event);
        self.read(recent, now);
    }

    /// The IDs that changed.
    fn read(&mut self, events: &[Changed], now: Instant) -> HashSet<String> {
        for changed in events {
            let event = changed.event;
            if event > self.last {
                let first = (self.last + 1).max(event.saturating_sub(WINDOW));
                self.gaps.extend((first..event).map(|gap| (gap, now)));
                self.last = event;
            } else {
                self.gaps.remove(&event);
            }
        }
        let changed = events.iter().map(|changed| changed.id.clone());
        changed.chain(self.again.drain()).collect()
    }

    fn forget_gaps(&mut self, timeout: Duration, now: Instant) {
        self.gaps
            .retain(|_, since| now.duration_since(*since) < timeout);
    }

    fn gaps(&self) -> Vec<u64> {
        self.gaps.keys().copied().collect()
    }
}

impl EntryCache {
    /// Keeps up with the store for as long as it is polled. A store that fails is asked again at the next turn.
    pub async fn follow(&self, store: &impl Store, how: &Follow) {
        let mut turns = interval(how.interval.max(Duration::from_millis(1)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut full, mut pruned) = (Instant::now(), None);
        let mut failing = false;
        loop {
            turns.tick().await;
            let done = if full.elapsed() >= how.full_interval {
                let done = self.reload(store).await;
                if done.is_ok() {
                    full = Instant::now();
                }
                done
            } else {
                self.catch_up(store, how.gap_timeout).await
            };
            let due = pruned.is_none_or(|last: Instant| last.elapsed() >= how.keep_events / 2);
            let done = match done {
                Ok(()) if due => {
                    pruned = Some(Instant::now());
                    prune(store, how.keep_events).await
                }
                done => done,
            };
            match done {
                Err(error) if !failing => {
                    tracing::warn!(%error, "entries of other servers are not followed until the datastore answers");
                    failing = true;
                }
                Err(_) => {}
                Ok(()) if failing => {
                    tracing::info!("entries of other servers are followed again");
                    failing = false;
                }
                Ok(()) => {}
            }
        }
    }

    /// Takes over what changed since the last look. Gaps in the log that are older than `gap_timeout` are given up.
    ///
    /// # Errors
    /// What the store says; nothing was taken over, and the next look finds it.
    pub async fn catch_up(
        &self,
        store: &impl Store,
        gap_timeout: Duration,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let began = Instant::now();
        let recording = Recording::begin(self);
        let doubts = self.doubts.begin_settling();
        let entry_events = {
            let mut events = store.entry_events_among(&state.entries.gaps()).await?;
            events.extend(store.entry_events(Some(state.entries.last)).await?);
            events
        };
        let agent_events = {
            let mut events = store.agent_events_among(&state.agents.gaps()).await?;
            events.extend(store.agent_events(Some(state.agents.last)).await?);
            events
        };
        let ids = changed(&entry_events, &state.entries);
        let mut entries: HashMap<_, _> = ids.iter().map(|id| (id.clone(), None)).collect();
        for entry in store.entries_by_id(&ids).await? {
            entries.insert(entry.id.clone(), Some(entry));
        }
        let mut agents = HashMap::new();
        let ids = changed(&agent_events, &state.agents);
        let ids = ids.iter().filter_map(|id| SpiffeId::new(id).ok());
        for id in ids.chain(doubts.iter().cloned()) {
            let agent = store.agent(&id).await?.map(Arc::new);
            agents.insert(id, agent);
        }

        let now = Instant::now();
        state.entries.read(&entry_events, now);
        state.agents.read(&agent_events, now);
        state.entries.forget_gaps(gap_timeout, now);
        state.agents.forget_gaps(gap_timeout, now);
        let (before, clock) = (state.expired, (self.clock)());
        state.expired = clock.max(before);
        self.change(|index, affected| {
            // What this server changed meanwhile may be older or newer than what was read.
            let own = recording.end();
            for (id, entry) in entries {
                match entry {
                    _ if own.entries.contains_key(&id) => {
                        state.entries.again.insert(id);
                    }
                    Some(entry) => index.put(entry, affected),
                    None => index.remove(&id, affected),
                }
            }
            for (id, agent) in agents {
                match agent {
                    _ if own.agents.contains_key(&id) => {
                        state.agents.again.insert(id.to_string());
                    }
                    Some(agent) => index.put_agent(agent, affected),
                    None => index.remove_agent(&id, affected),
                }
            }
            index.expire(before, clock, affected);
        });
        self.followed_since(began, &doubts);
        self.tell_sizes(&state);
        Ok(())
    }

    /// Reads everything anew. Every agent is told to look again.
    ///
    /// # Errors
    /// What the store says; the cache stays as it is.
    pub async fn reload(&self, store: &impl Store) -> Result<(), StoreError> {
        counted(&self.counts.reload, self.read_anew(store)).await
    }

    async fn read_anew(&self, store: &impl Store) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let began = Instant::now();
        let recording = Recording::begin(self);
        let doubts = self.doubts.begin_settling();
        // The logs come first: what is written after this is read again later.
        let entry_events = {
            let last = store.entry_events(None).await?;
            store.entry_events(Some(window(&last))).await?
        };
        let agent_events = {
            let last = store.agent_events(None).await?;
            store.agent_events(Some(window(&last))).await?
        };
        let mut building = Building::new(self.index().trust_domain().clone());
        store.each_entry(|entry| building.add(entry)).await?;
        let agents = store.all_agents().await?;
        let built = tokio::task::spawn_blocking(|| building.finish(agents)).await;
        let built = built.map_err(|e| StoreError::Unavailable(format!("reading entries: {e}")))?;

        let now = Instant::now();
        state.entries.begin(&entry_events, now);
        state.agents.begin(&agent_events, now);
        state.expired = (self.clock)();
        let mut old = None;
        self.change(|index, affected| {
            let own = recording.end();
            old = Some(std::mem::replace(index, built));
            for (id, entry) in own.entries {
                state.entries.again.insert(id.clone());
                match entry {
                    Some(entry) => index.put(entry, affected),
                    None => index.remove(&id, affected),
                }
            }
            for (id, agent) in own.agents {
                state.agents.again.insert(id.to_string());
                match agent {
                    Some(agent) => index.put_agent(agent, affected),
                    None => index.remove_agent(&id, affected),
                }
            }
            affected.everybody();
        });
        self.followed_since(began, &doubts);
        self.tell_sizes(&state);
        // Freeing a hundred thousand entries takes a while, and nobody has to wait for it.
        drop(state);
        drop(old);
        Ok(())
    }

    fn followed_since(&self, began: Instant, doubts: &[SpiffeId]) {
        self.doubts.settle(doubts);
        *locked(&self.followed) = began;
    }

    fn tell_sizes(&self, state: &State) {
        if self.counts.are_on() {
            let sizes = self.index().sizes();
            let gaps = (state.entries.gaps.len(), state.agents.gaps.len());
            self.counts.tell(&sizes, gaps);
        }
    }
}

/// What this server changes is written down until [`Recording::end`], or until reading is given up.
struct Recording<'a>(&'a EntryCache);

impl<'a> Recording<'a> {
    fn begin(cache: &'a EntryCache) -> Self {
        *locked(&cache.own) = Some(Own::default());
        Self(cache)
    }

    fn end(&self) -> Own {
        locked(&self.0.own).take().unwrap_or_default()
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn changed(events: &[Changed], log: &Log) -> Vec<String> {
    let ids: HashSet<_> = events
        .iter()
        .map(|changed| &changed.id)
        .chain(&log.again)
        .collect();
    ids.into_iter().cloned().collect()
}

fn window(last: &[Changed]) -> u64 {
    last.first()
        .map_or(0, |last| last.event.saturating_sub(WINDOW))
}

async fn prune(store: &impl Store, keep: Duration) -> Result<(), StoreError> {
    let before = SystemTime::now().checked_sub(keep);
    let before = before.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
    let before = before.map_or(0, |t| i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
    store.prune_entry_events(before).await?;
    store.prune_agent_events(before).await?;
    Ok(())
}
