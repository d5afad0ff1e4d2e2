//! Which executors are enrolled now, and who may become so.
//!
//! Connections and heartbeats live here in memory; durable facts go to the store through its writer, off
//! the connection's path (RG-1). One executor id has at most one live session (RG-2).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Explained};
use ah_tls::PeerIdentity;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::hello::Greeting;
use crate::store::{CertificateRecord, ExecutorId};

/// What to do when a second live process presents the same identity (RG-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Refuse the newcomer while the older session answers.
    #[default]
    Reject,
    /// Let the newcomer in and end the older session.
    Replace,
}

/// Why a session is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The access point refuses to go on; the executor is told this. Boxed, as each session has room for it.
    Refused(Box<Explained>),
    /// The same process came back on a new connection: finish quietly.
    Superseded,
    /// The access point is going away: tell the executor when to come back.
    Drain {
        reconnect_after: Duration,
        spread: Duration,
    },
}

/// A peer as TLS verified it.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) peer: PeerIdentity,
    pub(crate) remote: SocketAddr,
    /// Generation of the identity whose trust bundles verified it.
    pub(crate) generation: u64,
}

impl Caller {
    /// The name that its certificate gives it.
    pub(crate) fn executor(&self) -> ExecutorId {
        self.peer.name().to_string().into()
    }
}

/// One enrolled executor's session, shared between the task that serves it and those who look at it.
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) executor: ExecutorId,
    pub(crate) greeting: Greeting,
    pub(crate) peer: PeerIdentity,
    pub(crate) remote: SocketAddr,
    pub(crate) enrolled_at: SystemTime,
    /// How far its clock was from ours, either way, where it told.
    pub(crate) clock_skew: Option<Duration>,
    /// How often both sides send a heartbeat, as the welcome says. Settings that change later are for
    /// sessions that begin later.
    pub(crate) heartbeat_interval: Duration,
    started: Instant,
    /// Milliseconds from `started` to the last message heard.
    heard: AtomicU64,
    /// Last round trip in microseconds; 0 when none was measured yet.
    round_trip: AtomicU32,
    orders: Mutex<Orders>,
    wake: Notify,
    answered: Notify,
}

#[derive(Default)]
struct Orders {
    end: Option<End>,
    superseded: bool,
    ping: bool,
}

/// What the serving task is asked to do next.
pub(crate) enum Order {
    End(End),
    Ping,
}

impl Session {
    pub(crate) fn new(
        greeting: Greeting,
        caller: &Caller,
        heartbeat_interval: Duration,
        now: SystemTime,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            clock_skew: greeting.clock.map(|theirs| apart(theirs, now)),
            executor: caller.executor(),
            greeting,
            peer: caller.peer.clone(),
            remote: caller.remote,
            enrolled_at: now,
            heartbeat_interval,
            started: Instant::now(),
            heard: AtomicU64::new(0),
            round_trip: AtomicU32::new(0),
            orders: Mutex::default(),
            wake: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// What is written down of its certificate.
    pub(crate) fn certificate(&self) -> CertificateRecord {
        CertificateRecord::from(self.peer.leaf())
    }

    /// When its certificate, or an earlier one of the path, ends; and the session with it.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.peer.not_after()
    }

    /// Asks the serving task to end the session. The first reason stands, but a drain gives way to a refusal.
    pub(crate) fn end(&self, end: End) {
        let mut orders = lock(&self.orders);
        orders.superseded |= end == End::Superseded;
        match &orders.end {
            None | Some(End::Drain { .. }) => orders.end = Some(end),
            Some(_) => return,
        }
        drop(orders);
        self.wake.notify_one();
    }

    /// Whether its own executor has moved on to another session.
    pub(crate) fn is_superseded(&self) -> bool {
        lock(&self.orders).superseded
    }

    /// A peer that was silent for this long is gone: two heartbeats.
    pub(crate) fn patience(&self) -> Duration {
        2 * self.heartbeat_interval
    }

    /// Asks the peer for a sign of life and waits for any message, at most `patience`.
    async fn answers(&self, patience: Duration) -> bool {
        let answered = self.answered.notified();
        tokio::pin!(answered);
        // From here on an answer counts, even one that comes before the wait begins.
        answered.as_mut().enable();
        lock(&self.orders).ping = true;
        self.wake.notify_one();
        tokio::time::timeout(patience, answered).await.is_ok()
    }

    /// The next thing the serving task has to do.
    pub(crate) async fn order(&self) -> Order {
        loop {
            {
                let mut orders = lock(&self.orders);
                if let Some(end) = orders.end.take() {
                    return Order::End(end);
                }
                if std::mem::take(&mut orders.ping) {
                    return Order::Ping;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Notes that the peer was heard.
    pub(crate) fn note_heard(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(elapsed, Ordering::Relaxed);
        self.answered.notify_waiters();
    }

    pub(crate) fn note_round_trip(&self, round_trip: Duration) {
        let micros = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
        self.round_trip.store(micros.max(1), Ordering::Relaxed);
    }

    /// How long ago the peer was last heard.
    pub(crate) fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(heard)
    }

    /// The last measured round trip.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros.into())),
        }
    }
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    match one.duration_since(other) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    }
}

/// How an admitted session relates to what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Never seen before.
    First,
    /// Known, and not enrolled a moment ago.
    Again,
    /// The same process moved its enrollment to a new connection; `new_certificate` when that was why.
    Moved { new_certificate: bool },
}

/// Limits that the registry enforces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_executors: Option<usize>,
    pub(crate) duplicates: Duplicates,
    /// How long an older session has to answer before a newcomer takes its place.
    pub(crate) patience: Duration,
}

/// All live sessions of this access point, and the ids ever seen.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    emptied: Notify,
}

#[derive(Default)]
struct Inner {
    live: HashMap<ExecutorId, Arc<Session>>,
    known: HashSet<ExecutorId>,
    draining: bool,
}

impl Registry {
    /// Remembers executors that enrolled before this process started.
    pub(crate) fn remember(&self, ids: impl IntoIterator<Item = ExecutorId>) {
        lock(&self.inner).known.extend(ids);
    }

    /// Makes `session` the live one of its executor, or says why not. Whatever it replaces is told to end.
    pub(crate) async fn admit(
        &self,
        session: &Arc<Session>,
        limits: &Limits,
    ) -> Result<Admission, Explained> {
        loop {
            let rival = match self.try_admit(session, limits)? {
                Ok(admission) => return Ok(admission),
                Err(rival) => rival,
            };
            if rival.answers(limits.patience).await {
                return Err(duplicate(session, &rival));
            }
            tracing::info!(
                executor.id = %session.executor,
                peer = %rival.remote,
                "older session did not answer; a newer one takes its place"
            );
            let silent = Explained::new(
                Code::Unavailable,
                "session was silent and another replaced it",
            );
            rival.end(End::Refused(Box::new(silent)));
            self.leave(&rival);
        }
    }

    /// One attempt under the lock: admitted, or the live rival that has to be asked first.
    fn try_admit(
        &self,
        session: &Arc<Session>,
        limits: &Limits,
    ) -> Result<Result<Admission, Arc<Session>>, Explained> {
        let mut inner = lock(&self.inner);
        if inner.draining {
            return Err(Explained::new(Code::Draining, "access point is shutting down")
                .hint("the executor reconnects by itself; with several access points give --remote-server more than once"));
        }
        let previous = inner.live.get(&session.executor).cloned();
        let admission = match &previous {
            None => {
                if limits
                    .max_executors
                    .is_some_and(|max| inner.live.len() >= max)
                {
                    return Err(full(inner.live.len()));
                }
                if inner.known.contains(&session.executor) {
                    Admission::Again
                } else {
                    Admission::First
                }
            }
            Some(old) if old.greeting.instance == session.greeting.instance => Admission::Moved {
                new_certificate: old.peer.leaf().sha256 != session.peer.leaf().sha256,
            },
            Some(_) if limits.duplicates == Duplicates::Replace => Admission::Again,
            Some(old) => return Ok(Err(Arc::clone(old))),
        };
        inner.known.insert(session.executor.clone());
        inner
            .live
            .insert(session.executor.clone(), Arc::clone(session));
        drop(inner);
        if let Some(old) = previous {
            old.end(match admission {
                Admission::Moved { .. } => End::Superseded,
                _ => End::Refused(Box::new(replaced(session))),
            });
        }
        Ok(Ok(admission))
    }

    /// Takes `session` out. False when another has its place already.
    pub(crate) fn leave(&self, session: &Arc<Session>) -> bool {
        let mut inner = lock(&self.inner);
        let is_live = inner
            .live
            .get(&session.executor)
            .is_some_and(|live| live.id == session.id);
        if is_live {
            inner.live.remove(&session.executor);
            if inner.live.is_empty() {
                self.emptied.notify_waiters();
            }
        }
        is_live
    }

    /// Every live session, in no order.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        lock(&self.inner).live.values().cloned().collect()
    }

    /// The live session of one executor.
    pub(crate) fn session(&self, id: &ExecutorId) -> Option<Arc<Session>> {
        lock(&self.inner).live.get(id).cloned()
    }

    /// How many executors are enrolled.
    pub(crate) fn len(&self) -> usize {
        lock(&self.inner).live.len()
    }

    /// Admits nobody any more and tells every executor to come back after `reconnect_after` plus a random
    /// part of `spread`; then waits until all have left.
    pub(crate) async fn drain(&self, reconnect_after: Duration, spread: Duration) {
        let leaving = {
            let mut inner = lock(&self.inner);
            inner.draining = true;
            inner.live.values().cloned().collect::<Vec<_>>()
        };
        for session in leaving {
            session.end(End::Drain {
                reconnect_after,
                spread,
            });
        }
        self.emptied().await;
    }

    /// Waits until nobody is enrolled.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

fn duplicate(newcomer: &Session, holder: &Session) -> Explained {
    Explained::new(
        Code::Duplicate,
        format!("executor id {} is already enrolled", newcomer.executor),
    )
    .cause(format!(
        "a live process named {} at {} holds it and answered just now",
        holder.greeting.name, holder.remote
    ))
    .hint("give each executor a certificate of its own; if this one is not a copy of yours, revoke it: it may be stolen")
}

fn replaced(newcomer: &Session) -> Explained {
    Explained::new(
        Code::Duplicate,
        format!("executor id {} was taken over by another process", newcomer.executor),
    )
    .cause(format!(
        "a process named {} at {} enrolled with the same identity, and --duplicates replace let it in",
        newcomer.greeting.name, newcomer.remote
    ))
    .hint("give each executor a certificate of its own")
}

fn full(executors: usize) -> Explained {
    Explained::new(
        Code::Unavailable,
        format!("access point is full: {executors} executors are enrolled"),
    )
    .hint("raise --max-executors of the access point, or add another access point")
}

/// A poisoned lock guards plain data that is whole after every statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
