//! What agents hold, as they told this server: the ground for a safe change of an authority.
//!
//! It is kept in memory. Whoever is not connected to this server, or is an agent of upstream, has told nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use spiffe::SpiffeId;

use super::PeerSvid;

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
pub struct Holdings(Mutex<BTreeMap<SpiffeId, (Holding, SystemTime)>>);

/// From this number on, agents that are gone are looked for whenever it has doubled.
const MANY: usize = 1024;

impl Holdings {
    fn all(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, (Holding, SystemTime)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, agent: &PeerSvid, holding: Holding, now: SystemTime) {
        let mut all = self.all();
        if all.len() >= MANY && all.len().is_power_of_two() {
            all.retain(|_, (_, ends)| *ends > now);
        }
        all.insert(agent.id.clone(), (holding, agent.not_after));
    }

    /// Those of `agents` that do not hold the bundle with number `newest`, or serve SVIDs of a tainted authority.
    /// Whoever is none of `agents` is forgotten.
    pub(super) fn behind(
        &self,
        agents: &BTreeSet<SpiffeId>,
        newest: u64,
    ) -> Vec<(SpiffeId, Option<Holding>)> {
        let mut all = self.all();
        all.retain(|agent, _| agents.contains(agent));
        let held = |agent| all.get(agent).map(|(holding, _)| *holding);
        let holding = agents.iter().map(|agent| (agent, held(agent)));
        holding
            .filter(|(_, held)| {
                held.is_none_or(|held| held.bundle_sequence < newest || held.tainted_svids > 0)
            })
            .map(|(agent, held)| (agent.clone(), held))
            .collect()
    }
}
