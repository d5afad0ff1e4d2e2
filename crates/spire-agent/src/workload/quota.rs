//! What one process and one user may hold open, so that none takes the agent from the others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ah_spire_attest::peer::PeerInfo;
use tonic::Status;

/// Numbers of what is open at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Connections of one process.
    pub connections_per_process: u32,
    /// Connections of one user; the workloads of many containers have one.
    pub connections_per_user: u32,
    /// Calls of one process, over all of its connections.
    pub calls_per_process: u32,
    /// Calls of one user.
    pub calls_per_user: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            connections_per_process: 256,
            connections_per_user: 16 * 1024,
            calls_per_process: 512,
            calls_per_user: 16 * 1024,
        }
    }
}

/// A connection over its quota is told so on its calls; so many of them at a time, further ones are closed.
const TURNED_AWAY: u32 = 64;

#[derive(Default)]
struct Tally {
    connections: AtomicU32,
    calls: AtomicU32,
}

/// Counts what is open.
pub(super) struct Quotas {
    quota: Quota,
    processes: Mutex<HashMap<i32, Arc<Tally>>>,
    users: Mutex<HashMap<u32, Arc<Tally>>>,
    turned_away: AtomicU32,
}

/// One place on one side of the accounts; given back when dropped.
struct Place {
    tally: Arc<Tally>,
    count: fn(&Tally) -> &AtomicU32,
}

impl Place {
    fn take(tally: &Arc<Tally>, count: fn(&Tally) -> &AtomicU32, most: u32) -> Option<Self> {
        count(tally)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < most).then(|| taken.saturating_add(1))
            })
            .ok()?;
        Some(Self {
            tally: Arc::clone(tally),
            count,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.count)(&self.tally).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is let in, or one that is only told why it is not.
pub(super) struct Admitted {
    quotas: Arc<Quotas>,
    process: Arc<Tally>,
    user: Arc<Tally>,
    pid: i32,
    uid: u32,
    refusal: Option<String>,
    places: Vec<Place>,
}

/// A call that is let in.
pub(super) struct CallPlace {
    _process: Place,
    _user: Place,
}

impl Quotas {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            processes: Mutex::default(),
            users: Mutex::default(),
            turned_away: AtomicU32::new(0),
        }
    }

    /// `None`: too many are being turned away already.
    pub(super) fn connection(self: &Arc<Self>, peer: &PeerInfo) -> Option<Admitted> {
        let (pid, uid) = (peer.pid(), peer.uid());
        let mut admitted = Admitted {
            process: tally(&self.processes, pid),
            user: tally(&self.users, uid),
            quotas: Arc::clone(self),
            pid,
            uid,
            refusal: None,
            places: Vec::with_capacity(2),
        };
        let sides = [
            (
                Arc::clone(&admitted.process),
                self.quota.connections_per_process,
                format!("process {pid}"),
            ),
            (
                Arc::clone(&admitted.user),
                self.quota.connections_per_user,
                format!("user {uid}"),
            ),
        ];
        for (tally, most, who) in sides {
            if let Some(place) = Place::take(&tally, |tally| &tally.connections, most) {
                admitted.places.push(place);
                continue;
            }
            tracing::warn!(
                pid,
                uid,
                limit = most,
                "too many connections to the Workload API"
            );
            if self.turned_away.fetch_add(1, Ordering::Relaxed) >= TURNED_AWAY {
                self.turned_away.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
            admitted.places.clear();
            admitted.refusal = Some(format!(
                "too many connections: {who} holds {most} to the Workload API, which is the limit; \
                 keep one connection and share it"
            ));
            break;
        }
        Some(admitted)
    }
}

impl Admitted {
    /// A place for one call.
    ///
    /// # Errors
    /// `ResourceExhausted`, with what to do.
    pub(super) fn call(&self) -> Result<CallPlace, Status> {
        if let Some(refusal) = &self.refusal {
            return Err(Status::resource_exhausted(refusal.as_str()));
        }
        let count: fn(&Tally) -> &AtomicU32 = |tally| &tally.calls;
        let quota = &self.quotas.quota;
        let exhausted = |who: String, most: u32| {
            Status::resource_exhausted(format!(
                "too many calls: {who} has {most} open to the Workload API, which is the limit; \
                 keep one stream of a kind open and share what it brings"
            ))
        };
        let most = quota.calls_per_process;
        let process = Place::take(&self.process, count, most)
            .ok_or_else(|| exhausted(format!("process {}", self.pid), most))?;
        let most = quota.calls_per_user;
        let user = Place::take(&self.user, count, most)
            .ok_or_else(|| exhausted(format!("user {}", self.uid), most))?;
        Ok(CallPlace {
            _process: process,
            _user: user,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.refusal.is_some() {
            self.quotas.turned_away.fetch_sub(1, Ordering::Relaxed);
        }
        self.places.clear();
        forget(&self.quotas.processes, self.pid, &self.process);
        forget(&self.quotas.users, self.uid, &self.user);
    }
}

fn tally<K: std::hash::Hash + Eq>(of: &Mutex<HashMap<K, Arc<Tally>>>, key: K) -> Arc<Tally> {
    let mut of = of.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(of.entry(key).or_default())
}

/// Drops the account of whoever holds nothing any more.
fn forget<K: std::hash::Hash + Eq>(of: &Mutex<HashMap<K, Arc<Tally>>>, key: K, mine: &Arc<Tally>) {
    let mut of = of.lock().unwrap_or_else(PoisonError::into_inner);
    if let Entry::Occupied(entry) = of.entry(key)
        // The map's and mine.
        && Arc::ptr_eq(entry.get(), mine)
        && Arc::strong_count(mine) <= 2
    {
        entry.remove();
    }
}
