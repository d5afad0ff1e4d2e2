//! The queue that emitters fill and the task that empties it.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, Explained};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::sink::Writer;
use super::{Entry, Event, Outcome};

/// How many events wait at most while they cannot be written. Beyond it the oldest go, and a line of the
/// event [`Event::EventsLost`] takes their place in the chain.
pub const QUEUE_LIMIT: usize = 100_000;

/// Most lines of one write.
const BATCH_LIMIT: usize = 1_024;

/// Writes begin at least this far apart: in a rush of events each write, and its sync, carries many lines.
const GATHER: Duration = Duration::from_millis(50);

/// First wait after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Where the log goes (AP-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file, appended to and synced.
    File(PathBuf),
    /// Standard output. The chain begins anew with each start.
    Stdout,
    /// The systemd journal. The chain begins anew with each start.
    Journald,
}

impl AuditTarget {
    /// Reads what `--audit-log` holds: a path, `-` or `journald`.
    pub fn parse(text: &str) -> Self {
        match text {
            "-" => Self::Stdout,
            "journald" => Self::Journald,
            path => Self::File(path.into()),
        }
    }
}

impl fmt::Display for AuditTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdout => f.write_str("-"),
            Self::Journald => f.write_str("journald"),
        }
    }
}

/// How the writing goes, for `/readyz`, metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHealth {
    /// Whether the last write succeeded, or there was none yet.
    pub ok: bool,
    /// Since when `ok` is what it is.
    pub since: SystemTime,
    /// Why the last attempt failed; `None` once a write succeeded after it.
    pub last_error: Option<String>,
    /// Events not written yet.
    pub pending: usize,
    /// Lines written since the start.
    pub written: u64,
    /// Events lost since the start, all told of in the log itself.
    pub lost: u64,
}

/// Takes events. Clones share one queue.
#[derive(Clone, Debug)]
pub struct AuditLog {
    shared: Arc<Shared>,
    health: watch::Receiver<AuditHealth>,
    target: AuditTarget,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    queue: Mutex<Queue>,
    /// Wakes the task.
    work: Notify,
    /// Starts the deadline of [`AuditLog::close`].
    closing: Notify,
    /// Cuts a wait between two attempts short.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(SystemTime, Entry)>,
    /// Events dropped from the front that no line has told of yet.
    lost: u64,
    lost_in_all: u64,
    /// Events the task has taken and not written.
    in_flight: usize,
    /// Look at the path even when there is nothing to write.
    reopen: bool,
    closed: Option<Instant>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code panics while it holds the lock, and the queue is whole between any two statements.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditLog {
    /// Opens the log and finds where its chain stands. Nothing is written before the task runs.
    ///
    /// A last line that a crash left half written is cut; the first new line, of the event
    /// [`Event::Repaired`], holds it (AU-2).
    ///
    /// # Errors
    /// Says why the file cannot be written, or that another process writes to it.
    pub fn open(
        target: AuditTarget,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, AuditTask), Explained> {
        let now = clock.now();
        let writer = Writer::open(target.clone(), now)?;
        // A repaired line is to be told of even when nothing else happens.
        let queue = Queue {
            reopen: writer.has_repair(),
            ..Queue::default()
        };
        let (health_tx, health) = watch::channel(AuditHealth {
            ok: true,
            since: now,
            last_error: None,
            pending: 0,
            written: 0,
            lost: 0,
        });
        let shared = Arc::new(Shared {
            clock,
            queue: Mutex::new(queue),
            work: Notify::new(),
            closing: Notify::new(),
            hurry: Notify::new(),
        });
        let task = AuditTask {
            shared: Arc::clone(&shared),
            health: health_tx,
            writer: Some(writer),
        };
        let log = Self {
            shared,
            health,
            target,
        };
        Ok((log, task))
    }

    /// Where the log goes.
    pub fn target(&self) -> &AuditTarget {
        &self.target
    }

    /// Adds an event, with the time of now. Never waits.
    pub fn record(&self, entry: Entry) {
        let at = self.shared.clock.now();
        {
            let mut queue = self.shared.lock();
            if queue.waiting.len() >= QUEUE_LIMIT {
                queue.waiting.pop_front();
                queue.lost += 1;
                queue.lost_in_all += 1;
            }
            queue.waiting.push_back((at, entry));
        }
        self.shared.work.notify_one();
    }

    /// Goes on in a new file where the old one was rotated away (HUP). The chain continues in it.
    pub fn reopen(&self) {
        self.shared.lock().reopen = true;
        self.shared.work.notify_one();
        self.shared.hurry.notify_one();
    }

    /// How the writing goes now.
    pub fn health(&self) -> AuditHealth {
        let (pending, lost) = {
            let queue = self.shared.lock();
            (queue.waiting.len() + queue.in_flight, queue.lost_in_all)
        };
        AuditHealth {
            pending,
            lost,
            ..self.health.borrow().clone()
        }
    }

    /// News of writes and failures. `pending` and `lost` are those of that moment.
    pub fn watch_health(&self) -> watch::Receiver<AuditHealth> {
        self.health.clone()
    }

    /// Writes what is left, for at most `deadline`, and ends the task. Returns how many events were not
    /// written.
    pub async fn close(&self, deadline: Duration) -> usize {
        let deadline = Instant::now() + deadline;
        self.shared.lock().closed = Some(deadline);
        self.shared.work.notify_one();
        self.shared.closing.notify_one();
        self.shared.hurry.notify_one();
        let mut health = self.health.clone();
        // The task drops its end when it is done.
        let ended = async { while health.changed().await.is_ok() {} };
        // Either way what counts is what is left.
        let _ended = tokio::time::timeout_at(deadline, ended).await;
        let queue = self.shared.lock();
        queue.waiting.len() + queue.in_flight
    }
}

/// The one that writes.
#[derive(Debug)]
pub struct AuditTask {
    shared: Arc<Shared>,
    health: watch::Sender<AuditHealth>,
    /// `None` only while a write runs on another thread.
    writer: Option<Writer>,
}

impl AuditTask {
    /// Writes until [`AuditLog::close`] was called and nothing is left, or its deadline passed. Never ends
    /// for a failed write.
    pub async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let expired = async {
            shared.closing.notified().await;
            let deadline = shared.lock().closed;
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

    async fn work(&mut self) {
        loop {
            let (batch, reopen, closed) = self.take();
            if batch.is_empty() && !reopen {
                if closed {
                    return;
                }
                self.shared.work.notified().await;
                continue;
            }
            let next = Instant::now() + GATHER;
            self.write(batch).await;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.shared.hurry.notified() => {}
            }
        }
    }

    fn take(&self) -> (Vec<(SystemTime, Entry)>, bool, bool) {
        let now = self.shared.clock.now();
        let mut queue = self.shared.lock();
        let mut batch = Vec::new();
        let lost = std::mem::take(&mut queue.lost);
        if lost > 0 {
            let mut entry = Entry::new(Event::EventsLost, Outcome::Failure);
            entry.reason = Some(format!(
                "{lost} events were dropped here: the log could not be written and {QUEUE_LIMIT} newer ones wait"
            ));
            batch.push((now, entry));
        }
        let count = queue.waiting.len().min(BATCH_LIMIT);
        batch.extend(queue.waiting.drain(..count));
        queue.in_flight = batch.len();
        (
            batch,
            std::mem::take(&mut queue.reopen),
            queue.closed.is_some(),
        )
    }

    /// Writes the batch, again and again until it is written.
    async fn write(&mut self, batch: Vec<(SystemTime, Entry)>) {
        let batch = Arc::new(batch);
        let mut backoff = BACKOFF_MIN;
        loop {
            let Some(mut writer) = self.writer.take() else {
                return;
            };
            let lines = Arc::clone(&batch);
            let now = self.shared.clock.now();
            // Disks stall: not on a thread that serves connections.
            let written = tokio::task::spawn_blocking(move || {
                let result = writer.write(&lines, now);
                (writer, result)
            })
            .await;
            let Ok((writer, result)) = written else {
                tracing::error!("the audit log's writer died; no event is written any more");
                return;
            };
            self.writer = Some(writer);
            match result {
                Ok(lines) => return self.succeeded(lines),
                Err(failure) => self.failed(&failure),
            }
            let wait = if self.shared.lock().closed.is_some() {
                BACKOFF_MIN
            } else {
                backoff
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.hurry.notified() => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn succeeded(&self, lines: u64) {
        let (pending, lost) = {
            let mut queue = self.shared.lock();
            queue.in_flight = 0;
            (queue.waiting.len(), queue.lost_in_all)
        };
        let now = self.shared.clock.now();
        self.health.send_modify(|health| {
            if !health.ok {
                tracing::info!(pending, "audit log written again");
                health.since = now;
            }
            health.ok = true;
            health.last_error = None;
            health.pending = pending;
            health.lost = lost;
            health.written += lines;
        });
    }

    fn failed(&self, failure: &str) {
        let (pending, lost) = {
            let queue = self.shared.lock();
            (queue.waiting.len() + queue.in_flight, queue.lost_in_all)
        };
        let now = self.shared.clock.now();
        self.health.send_modify(|health| {
            if health.last_error.as_deref() == Some(failure) {
                tracing::debug!(error = failure, pending, "audit log still not written");
            } else {
                tracing::error!(
                    error = failure,
                    pending,
                    "audit log cannot be written; events are kept in memory"
                );
            }
            if health.ok {
                health.since = now;
            }
            health.ok = false;
            health.last_error = Some(failure.to_owned());
            health.pending = pending;
            health.lost = lost;
        });
    }
}
