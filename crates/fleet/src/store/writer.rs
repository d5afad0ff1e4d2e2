//! Batches changes off the connection path.
//!
//! A connection hands a change over under a short lock and waits for a sequence number to pass: no
//! allocation beyond the change's key, no I/O. One task commits whatever has gathered; while one commit runs
//! the next batch gathers, so the store sees ever larger batches as the load grows and no delay when it is idle.
//!
//! What is not committed yet is kept by executor, not by event: a store that is gone for days costs memory
//! for each executor, bounded, and not for each enrollment.

mod pending;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::pending::{Batch, Pending};
use super::{Change, Store, StoreError};

/// Most changes of one transaction. A bound on how long one commit takes after an outage.
const BATCH_LIMIT: usize = 4_096;

/// First wait after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A commit that takes longer than this lets those who wait for it go on as if the store were gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// A commit that takes longer than this is given up and tried again on another connection.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Commits begin at least this far apart. A lone change is written at once; in a rush of enrollments each
/// commit carries more of them, and the disk's sync and the switch of threads are shared by all.
const GATHER: Duration = Duration::from_millis(20);

/// How many refused changes are remembered for those who wait for them.
const REFUSED_LIMIT: usize = 1_024;

/// What became of a change when its submitter need wait no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is in the store and survives a power cut.
    Committed,
    /// The store does not answer. The change is kept in memory and committed when the store is back.
    Deferred,
    /// The store can never take it. It was logged and dropped.
    Refused,
}

/// How the writing goes, for `/readyz`, metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreHealth {
    /// Whether the last commit succeeded, or there was none yet.
    pub ok: bool,
    /// Since when `ok` is what it is.
    pub since: SystemTime,
    /// Why the last attempt failed; `None` once a commit succeeded after it.
    pub last_error: Option<String>,
    /// Changes not committed yet, after folding those of one executor.
    pub pending: usize,
    /// Age of the oldest of them.
    pub lag: Duration,
    /// Commits since the start.
    pub commits: u64,
    /// Changes committed since the start, after folding.
    pub rows: u64,
    /// Changes dropped since the start because the store can never take them.
    pub refused: u64,
}

/// Changes that were not in the store at the deadline of [`StoreWriter::close`]. They are lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{unwritten} changes could not be written to the store before the deadline")]
pub struct FlushError {
    /// How many.
    pub unwritten: usize,
}

/// Takes changes. Clones share one queue.
#[derive(Clone, Debug)]
pub struct StoreWriter {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    health: watch::Receiver<StoreHealth>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the task.
    work: Notify,
    /// Starts the deadline of [`StoreWriter::close`].
    closing: Notify,
    /// Cuts a wait between two attempts short.
    hurry: Notify,
}

#[derive(Debug)]
struct State {
    pending: Pending,
    /// What the task has taken and not committed: how many, and since when the oldest waits.
    in_flight: usize,
    in_flight_since: Option<Instant>,
    refused: BTreeSet<u64>,
    /// Until when the task may go on once it was told to end.
    closed: Option<Instant>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and the state is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waiters wait for.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Every change with a number up to this is settled.
    settled: u64,
    /// Waiting is pointless for now.
    degraded: bool,
    /// The task has ended: nothing will be settled any more.
    ended: bool,
}

impl StoreWriter {
    /// A writer for `store`, and the task that does the work. Nothing is written before it runs.
    pub fn new<S: Store>(store: S) -> (Self, StoreWriterTask<S>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                pending: Pending::default(),
                in_flight: 0,
                in_flight_since: None,
                refused: BTreeSet::new(),
                closed: None,
            }),
            work: Notify::new(),
            closing: Notify::new(),
            hurry: Notify::new(),
        });
        let (progress_tx, progress) = watch::channel(Progress {
            settled: 0,
            degraded: false,
            ended: false,
        });
        let (health_tx, health) = watch::channel(StoreHealth {
            ok: true,
            since: SystemTime::now(),
            last_error: None,
            pending: 0,
            lag: Duration::ZERO,
            commits: 0,
            rows: 0,
            refused: 0,
        });
        let task = StoreWriterTask {
            store,
            shared: Arc::clone(&shared),
            progress: progress_tx,
            health: health_tx,
        };
        let writer = Self {
            shared,
            progress,
            health,
        };
        (writer, task)
    }

    /// Hands a change over, at once, and returns a future that says what became of it. The change is
    /// written whether or not the future is awaited.
    ///
    /// While the store does not answer the future resolves to [`Durability::Deferred`] without delay.
    pub fn submit(&self, change: Change) -> impl Future<Output = Durability> + Send + use<> {
        let sequence = self.shared.lock().pending.push(change, Instant::now());
        self.shared.work.notify_one();
        let mut progress = self.progress.clone();
        let shared = Arc::clone(&self.shared);
        async move {
            let settled = progress
                .wait_for(|p| p.settled >= sequence || p.degraded || p.ended)
                .await
                .is_ok_and(|p| p.settled >= sequence);
            if !settled {
                Durability::Deferred
            } else if shared.lock().refused.contains(&sequence) {
                Durability::Refused
            } else {
                Durability::Committed
            }
        }
    }

    /// Hands a change over that must be durable before it is acknowledged, such as a revocation, and waits
    /// until it is.
    ///
    /// # Errors
    /// The store does not answer: the change is kept and written when it is back, but a crash before that
    /// loses it, which the operator has to be told. Or the store can never take it.
    pub async fn commit(&self, change: Change) -> Result<(), StoreError> {
        match self.submit(change).await {
            Durability::Committed => Ok(()),
            Durability::Deferred => Err(StoreError::Unavailable(
                self.health
                    .borrow()
                    .last_error
                    .clone()
                    .unwrap_or_else(|| "the store does not answer".into()),
            )),
            Durability::Refused => Err(StoreError::Refused(
                "the store can never take this change".into(),
            )),
        }
    }

    /// How the writing goes now.
    pub fn health(&self) -> StoreHealth {
        let (pending, oldest) = {
            let state = self.shared.lock();
            let oldest = state.in_flight_since.or(state.pending.oldest());
            (state.in_flight + state.pending.len(), oldest)
        };
        StoreHealth {
            pending,
            lag: oldest.map_or(Duration::ZERO, |at| at.elapsed()),
            ..self.health.borrow().clone()
        }
    }

    /// News of commits and failures. `pending` and `lag` are those of that moment; [`Self::health`] has
    /// those of now.
    pub fn watch_health(&self) -> watch::Receiver<StoreHealth> {
        self.health.clone()
    }

    /// Writes what is left, for at most `deadline`, and ends the task. What is submitted after is lost.
    ///
    /// # Errors
    /// Says how much could not be written.
    pub async fn close(&self, deadline: Duration) -> Result<(), FlushError> {
        let deadline = Instant::now() + deadline;
        self.shared.lock().closed = Some(deadline);
        self.shared.work.notify_one();
        self.shared.closing.notify_one();
        self.shared.hurry.notify_one();
        let mut progress = self.progress.clone();
        // Either way what counts is what is left.
        let _ended = tokio::time::timeout_at(deadline, progress.wait_for(|p| p.ended)).await;
        let unwritten = {
            let state = self.shared.lock();
            state.in_flight + state.pending.len()
        };
        if unwritten == 0 {
            Ok(())
        } else {
            Err(FlushError { unwritten })
        }
    }
}

/// The one that writes.
#[derive(Debug)]
pub struct StoreWriterTask<S> {
    store: S,
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    health: watch::Sender<StoreHealth>,
}

impl<S> Drop for StoreWriterTask<S> {
    fn drop(&mut self) {
        // Also when the task is aborted or panics: nobody waits for what will never come.
        self.progress.send_modify(|p| p.ended = true);
    }
}

impl<S: Store> StoreWriterTask<S> {
    /// Commits until [`StoreWriter::close`] was called and nothing is left, or its deadline passed. Never
    /// ends for an error of the store.
    pub async fn run(self) {
        let expired = async {
            self.shared.closing.notified().await;
            let deadline = self.shared.lock().closed;
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.work() => {}
            () = expired => {}
        }
    }

    async fn work(&self) {
        loop {
            let (batch, closed) = {
                let mut state = self.shared.lock();
                let batch = state.pending.take(BATCH_LIMIT);
                state.in_flight = batch.parts.len();
                state.in_flight_since = batch.since;
                (batch, state.closed.is_some())
            };
            if !batch.parts.is_empty() {
                let next = Instant::now() + GATHER;
                let refused = self.write(&batch).await;
                self.settle(&batch, &refused);
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.shared.hurry.notified() => {}
                }
            } else if closed {
                return;
            } else {
                self.shared.work.notified().await;
            }
        }
    }

    /// Writes the batch, however long that takes, and returns the numbers of what can never be written.
    ///
    /// A refused batch is halved until the culprits stand alone, so that one bad change costs a few more
    /// transactions and holds nothing up.
    async fn write(&self, batch: &Batch) -> Vec<u64> {
        let mut refused = Vec::new();
        let mut todo = vec![(batch.parts.as_slice(), batch.changes.as_slice())];
        while let Some((parts, changes)) = todo.pop() {
            let Err(why) = self.insist(changes).await else {
                continue;
            };
            let (left, right) = parts.split_at(parts.len() / 2);
            if let ([], [culprit]) = (left, right) {
                tracing::error!(error = %why, "the store can never take this change; it is dropped");
                refused.push(culprit.sequence);
                continue;
            }
            let (before, after) = changes.split_at(left.iter().map(|part| part.len).sum());
            todo.push((right, after));
            todo.push((left, before));
        }
        refused
    }

    /// Applies the changes, again and again until the store takes them. `Err` says why it never will.
    async fn insist(&self, changes: &[Change]) -> Result<(), String> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let failure = match self.attempt(changes).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Refused(why)) => return Err(why),
                Err(failure) => failure,
            };
            self.degrade(&failure);
            let closing = self.shared.lock().closed.is_some();
            let wait = if closing { BACKOFF_MIN } else { backoff };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.hurry.notified() => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut apply = std::pin::pin!(tokio::time::timeout(
            COMMIT_TIMEOUT,
            self.store.apply(changes)
        ));
        let answer = match tokio::time::timeout(PATIENCE, &mut apply).await {
            Ok(answer) => answer,
            Err(_) => {
                self.degrade(&StoreError::Unavailable(format!(
                    "a commit takes longer than {}s",
                    PATIENCE.as_secs()
                )));
                apply.await
            }
        };
        answer.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!(
                "a commit was given up after {}s",
                COMMIT_TIMEOUT.as_secs()
            )))
        })
    }

    fn degrade(&self, failure: &StoreError) {
        let text = failure.to_string();
        let known = self.health.borrow().last_error.as_ref() == Some(&text);
        let waiting = {
            let state = self.shared.lock();
            state.in_flight + state.pending.len()
        };
        match failure {
            _ if known => {
                tracing::debug!(error = %text, pending = waiting, "store still unavailable")
            }
            StoreError::Broken(_) => tracing::error!(
                error = %text,
                pending = waiting,
                "store is broken; changes are kept in memory and the write is tried again"
            ),
            _ => tracing::warn!(
                error = %text,
                pending = waiting,
                "store unavailable; changes are kept in memory and the write is tried again"
            ),
        }
        self.health.send_modify(|health| {
            if health.ok {
                health.since = SystemTime::now();
            }
            health.ok = false;
            health.last_error = Some(text);
            health.pending = waiting;
        });
        self.progress.send_modify(|p| p.degraded = true);
    }

    fn settle(&self, batch: &Batch, refused: &[u64]) {
        let waiting = {
            let mut state = self.shared.lock();
            state.in_flight = 0;
            state.in_flight_since = None;
            state.refused.extend(refused);
            while state.refused.len() > REFUSED_LIMIT {
                state.refused.pop_first();
            }
            state.pending.len()
        };
        self.health.send_modify(|health| {
            if !health.ok {
                tracing::info!(pending = waiting, "store available again");
                health.since = SystemTime::now();
            }
            health.ok = true;
            health.last_error = None;
            health.pending = waiting;
            health.lag = Duration::ZERO;
            health.commits += 1;
            health.rows += (batch.parts.len() - refused.len()) as u64;
            health.refused += refused.len() as u64;
        });
        self.progress.send_modify(|p| {
            p.settled = batch.settles;
            p.degraded = false;
        });
    }
}
