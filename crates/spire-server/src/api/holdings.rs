//! What agents hold, as they told this server or another one of its database: the ground for a safe change of an
//! authority.
//!
//! Whoever is connected to no server, or is an agent of upstream, has told nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use spiffe::SpiffeId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::PeerSvid;
use crate::store::{SqlStore, StoreError, ToldHolding};

/// What one agent holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// Of the own trust domain's bundle.
    pub(super) bundle_sequence: u64,
    /// X509-SVIDs of a tainted authority that are not replaced yet.
    pub(super) tainted_svids: u32,
}

/// What every agent holds that has told it since this server started, and until when its SVID lasts. A renewed one tells
/// it again, on its new connection.
#[derive(Debug, Default)]
pub struct Holdings {
    told: Mutex<Told>,
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Told {
    by_agent: BTreeMap<SpiffeId, OfAgent>,
    /// Unix milliseconds, each larger than the one before.
    last: i64,
}

#[derive(Clone, Copy, Debug)]
struct OfAgent {
    holding: Holding,
    ends: SystemTime,
    told_at: i64,
    /// The other servers do not know it yet.
    unwritten: bool,
}

/// The way to the other servers.
#[derive(Debug)]
struct Shared {
    store: SqlStore,
    /// This process's name for its rows.
    server: String,
    news: Notify,
}

/// From this number on, agents that are gone are looked for whenever it has doubled.
const MANY: usize = 1024;

/// What agents tell within this time is one write: after a change of the bundle all of them do.
const GATHERED: Duration = Duration::from_millis(500);

/// After a write that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// How often agents that are gone are taken out of the table, if anything is written at all.
const TIDY: Duration = Duration::from_secs(600);

impl Holdings {
    /// For a server that is one of several on `store`: what is told to one is known to all while [`Self::run`] runs.
    pub fn shared(store: SqlStore) -> Self {
        let random: u128 = rand::random();
        Self {
            told: Mutex::default(),
            shared: Some(Shared {
                store,
                server: format!("{random:032x}"),
                news: Notify::new(),
            }),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, agent: &PeerSvid, holding: Holding, now: SystemTime) {
        let mut told = self.told();
        if told.by_agent.len() >= MANY && told.by_agent.len().is_power_of_two() {
            told.by_agent.retain(|_, of| of.ends > now);
        }
        let millis = now.duration_since(SystemTime::UNIX_EPOCH);
        let millis = i64::try_from(millis.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
        told.last = millis.max(told.last.saturating_add(1));
        let of = OfAgent {
            holding,
            ends: agent.not_after,
            told_at: told.last,
            unwritten: self.shared.is_some(),
        };
        told.by_agent.insert(agent.id.clone(), of);
        if let Some(shared) = &self.shared {
            shared.news.notify_one();
        }
    }

    /// Those of `agents` that do not hold the bundle with number `newest`, or serve SVIDs of a tainted authority.
    /// Whoever is none of `agents` is forgotten.
    ///
    /// # Errors
    /// What agents told other servers cannot be read.
    pub(super) async fn behind(
        &self,
        agents: &BTreeSet<SpiffeId>,
        newest: u64,
    ) -> Result<Vec<(SpiffeId, Option<Holding>)>, StoreError> {
        let elsewhere = match &self.shared {
            Some(shared) => shared.store.holdings().await?,
            None => Vec::new(),
        };
        let mut told = self.told();
        told.by_agent.retain(|agent, _| agents.contains(agent));
        let here = { told.by_agent.iter() }.map(|(agent, of)| (agent, of.told_at, of.holding));
        let there = elsewhere.iter().map(|told| {
            let holding = Holding {
                bundle_sequence: told.bundle_sequence,
                tainted_svids: told.tainted_svids,
            };
            (&told.agent, told.told_at, holding)
        });
        // An agent goes from server to server: what it told last counts.
        let mut last: BTreeMap<&SpiffeId, (i64, Holding)> = BTreeMap::new();
        for (agent, at, holding) in here.chain(there) {
            let known = last.entry(agent).or_insert((at, holding));
            if at > known.0 {
                *known = (at, holding);
            }
        }
        let held = |agent: &SpiffeId| last.get(agent).map(|(_, holding)| *holding);
        let holding = agents.iter().map(|agent| (agent, held(agent)));
        Ok(holding
            .filter(|(_, held)| {
                held.is_none_or(|held| held.bundle_sequence < newest || held.tainted_svids > 0)
            })
            .map(|(agent, held)| (agent.clone(), held))
            .collect())
    }

    /// Tells the other servers, until it is dropped. What fails is told, and tried again.
    pub async fn run(&self) {
        let Some(shared) = &self.shared else {
            return std::future::pending().await;
        };
        let mut tidied: Option<Instant> = None;
        let mut failing = false;
        loop {
            let due = tidied.is_none_or(|at| at.elapsed() >= TIDY);
            let done = if due {
                let done = shared.store.tidy_holdings().await;
                tidied = done.is_ok().then(Instant::now);
                done
            } else {
                shared.news.notified().await;
                sleep(GATHERED).await;
                self.write(shared).await
            };
            match done {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::error!(%error, "What agents acknowledged cannot be told to the other servers of the datastore");
                    }
                    failing = true;
                    sleep(PAUSE).await;
                    shared.news.notify_one();
                }
            }
        }
    }

    async fn write(&self, shared: &Shared) -> Result<(), StoreError> {
        let unwritten: Vec<_> = {
            let told = self.told();
            let unwritten = told.by_agent.iter().filter(|(_, of)| of.unwritten);
            let rows = unwritten.map(|(agent, of)| ToldHolding {
                agent: agent.clone(),
                bundle_sequence: of.holding.bundle_sequence,
                tainted_svids: of.holding.tainted_svids,
                told_at: of.told_at,
            });
            rows.collect()
        };
        if unwritten.is_empty() {
            return Ok(());
        }
        shared
            .store
            .put_holdings(&shared.server, &unwritten)
            .await?;
        let mut told = self.told();
        for row in unwritten {
            if let Some(of) = told.by_agent.get_mut(&row.agent) {
                // Unless it told something newer meanwhile.
                of.unwritten &= of.told_at != row.told_at;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
