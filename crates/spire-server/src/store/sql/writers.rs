//! Those who write to an SQLite file: one at a time, and several at once share one sync of the disk.
//!
//! A writer that is done while others wait leaves its transaction open to the next, which works behind a savepoint.
//! Whoever was first queues its commit behind those who wait by then. Nobody is told of success before the commit.
//! Between two transactions the connection stays here: the pool would try it each time it comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::sqlite::SqlitePool;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use super::ACQUIRE_TIMEOUT;
use super::connection::{Connection, ended, fault};
use crate::store::StoreError;

/// The writers of one file.
#[derive(Clone, Debug)]
pub(super) struct Writers {
    pool: SqlitePool,
    /// Locked by the one whose turn it is.
    slot: Arc<Mutex<Slot>>,
    /// Whether the connection may stay open for good.
    keeps: bool,
    waiting: Arc<AtomicUsize>,
}

/// What the writers leave to each other.
#[derive(Debug, Default)]
struct Slot {
    /// A transaction that has not been committed.
    open: Option<Open>,
    /// The connection while there is none.
    idle: Option<Connection>,
}

/// A transaction, and those who wait for its commit.
#[derive(Debug)]
struct Open {
    db: Connection,
    done: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl Open {
    fn fail(self, error: &StoreError) {
        for done in self.done {
            let _ = done.send(Err(error.clone()));
        }
    }
}

/// One writer's turn.
#[derive(Debug)]
pub(super) struct Turn {
    guard: OwnedMutexGuard<Slot>,
    /// Those who wrote before in the same transaction.
    before: Vec<oneshot::Sender<Result<(), StoreError>>>,
    writers: Writers,
}

/// Counts one who waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Writers {
    /// A connection that goes back to its pool each time is ended at its `lifetime`.
    pub(super) fn new(pool: SqlitePool, lifetime: Option<Duration>) -> Self {
        Self {
            pool,
            slot: Arc::default(),
            keeps: lifetime.is_none(),
            waiting: Arc::default(),
        }
    }

    /// A transaction, once it is this writer's turn.
    pub(super) async fn begin(&self) -> Result<Connection, StoreError> {
        let waits = Waits::new(&self.waiting);
        let guard = tokio::time::timeout(ACQUIRE_TIMEOUT, self.slot.clone().lock_owned()).await;
        drop(waits);
        let mut guard = guard.map_err(|_| {
            let seconds = ACQUIRE_TIMEOUT.as_secs();
            StoreError::Unavailable(format!("no turn to write for {seconds} seconds"))
        })?;
        let (db, before) = match (guard.open.take(), guard.idle.take()) {
            (Some(open), _) => (open.db, open.done),
            (None, Some(idle)) => (idle, Vec::new()),
            (None, None) => {
                let connection = self.pool.acquire().await.map_err(fault)?;
                (Connection::idle(connection), Vec::new())
            }
        };
        let begin = match before.len() {
            0 => "BEGIN IMMEDIATE".to_owned(),
            n => format!("SAVEPOINT writer_{n}"),
        };
        let writers = self.clone();
        let turn = Turn {
            guard,
            before,
            writers,
        };
        let mut db = db.in_turn(turn);
        db.ahead(&begin);
        Ok(db)
    }

    /// Commits what is open.
    async fn settle(&self) {
        let mut guard = self.slot.lock().await;
        let Some(Open { db, done }) = guard.open.take() else {
            return;
        };
        let (outcome, idle) = db.finish(Ok(())).await;
        guard.idle = idle.filter(|_| self.keeps);
        for done in done {
            let _ = done.send(outcome.clone());
        }
    }

    /// Commits what is open and closes the file.
    pub(super) async fn close(&self) {
        self.settle().await;
        drop(self.slot.lock().await.idle.take());
        self.pool.close().await;
    }
}

impl Turn {
    /// Whether nobody wrote before in the same transaction, and nobody waits to.
    pub(super) fn is_alone(&self) -> bool {
        self.before.is_empty() && self.writers.waiting.load(Ordering::Relaxed) == 0
    }

    /// Commits what went well and takes back what did not, for others too where others are there.
    pub(super) async fn end<T>(
        mut self,
        db: Connection,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let first = self.before.is_empty();
        if first && (result.is_err() || db.is_committed() || self.is_alone()) {
            let (result, idle) = db.finish(result).await;
            self.guard.idle = idle.filter(|_| self.writers.keeps);
            return result;
        }
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                self.take_back(db, Some(&error));
                return Err(error);
            }
        };
        let (done, outcome) = oneshot::channel();
        self.before.push(done);
        let writers = self.writers.clone();
        self.leave(db);
        if first {
            tokio::spawn(async move { writers.settle().await });
        }
        let outcome = outcome.await.unwrap_or_else(|_| Err(ended()));
        outcome.map(|()| value)
    }

    /// Takes back what was done in this turn, for good where nobody wrote before.
    ///
    /// A transaction whose disk has failed is over for all who wrote in it: SQLite ends it by itself.
    pub(super) fn take_back(mut self, mut db: Connection, why: Option<&StoreError>) {
        if self.before.is_empty() {
            return;
        }
        if db.is_untouched() {
            return self.leave(db);
        }
        let n = self.before.len();
        if let Some(error @ StoreError::Unavailable(_)) = why {
            let done = std::mem::take(&mut self.before);
            return Open { db, done }.fail(error);
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            match db.execute(&format!("ROLLBACK TO writer_{n}"), &[]).await {
                Ok(_) => self.leave(db),
                Err(error) => {
                    let done = std::mem::take(&mut self.before);
                    Open { db, done }.fail(&error);
                }
            }
        });
    }

    /// Leaves the transaction to the next.
    fn leave(mut self, db: Connection) {
        let done = std::mem::take(&mut self.before);
        self.guard.open = Some(Open { db, done });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

    use super::super::batch::Batch;
    use super::*;

    struct File {
        _folder: tempfile::TempDir,
        writers: Writers,
        commits: Arc<AtomicU64>,
    }

    async fn file() -> File {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("datastore.sqlite3"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let commits = Arc::new(AtomicU64::new(0));
        let counter = commits.clone();
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .after_connect(move |connection, _| {
                let counter = counter.clone();
                Box::pin(async move {
                    let mut handle = connection.lock_handle().await?;
                    handle.set_commit_hook(move || {
                        counter.fetch_add(1, Ordering::Relaxed);
                        true
                    });
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .unwrap();
        let writers = Writers::new(pool, None);
        let mut db = writers.begin().await.unwrap();
        let made = db
            .execute("CREATE TABLE names (name TEXT PRIMARY KEY)", &[])
            .await;
        db.end(made).await.unwrap();
        commits.store(0, Ordering::Relaxed);
        File {
            _folder: folder,
            writers,
            commits,
        }
    }

    async fn add(db: &mut Connection, name: &str) -> Result<u64, StoreError> {
        db.execute("INSERT INTO names VALUES ($1)", &[name.into()])
            .await
    }

    impl File {
        /// Adds a name in a turn of its own.
        fn adds(&self, name: &'static str) -> tokio::task::JoinHandle<Result<u64, StoreError>> {
            let writers = self.writers.clone();
            tokio::spawn(async move {
                let mut db = writers.begin().await?;
                let added = add(&mut db, name).await;
                db.end(added).await
            })
        }

        /// Once so many wait for their turn.
        async fn wait_for(&self, waiting: usize) {
            while self.writers.waiting.load(Ordering::Relaxed) < waiting {
                tokio::task::yield_now().await;
            }
        }

        async fn names(&self) -> Vec<String> {
            let mut db = self.writers.begin().await.unwrap();
            let rows = db
                .rows::<(String,)>("SELECT name FROM names ORDER BY name", &[])
                .await;
            let rows = db.end(rows).await.unwrap();
            rows.into_iter().map(|(name,)| name).collect()
        }
    }

    // Issue: durable entry writes (bar 12).
    #[tokio::test]
    async fn those_who_wait_share_one_commit_and_nobody_is_told_before() {
        let file = file().await;
        let mut first = file.writers.begin().await.unwrap();
        let added = add(&mut first, "a").await;
        let others = [file.adds("b"), file.adds("c")];
        file.wait_for(2).await;
        let writers = file.writers.clone();
        let last = tokio::spawn(async move { writers.begin().await });
        file.wait_for(3).await;

        let first = tokio::spawn(first.end(added));
        let mut last = last.await.unwrap().unwrap();
        assert!(!first.is_finished() && others.iter().all(|other| !other.is_finished()));
        assert_eq!(file.commits.load(Ordering::Relaxed), 0);
        let added = add(&mut last, "d").await;
        last.end(added).await.unwrap();
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);
        assert_eq!(file.names().await, ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn one_that_fails_and_one_that_leaves_take_back_their_own_alone() {
        let file = file().await;
        let mut first = file.writers.begin().await.unwrap();
        let added = add(&mut first, "a").await;
        let writers = file.writers.clone();
        let fails = tokio::spawn(async move {
            let mut db = writers.begin().await?;
            add(&mut db, "not kept").await?;
            let again = add(&mut db, "a").await;
            db.end(again).await
        });
        file.wait_for(1).await;
        let writers = file.writers.clone();
        let (arrived, at_work) = oneshot::channel();
        let leaves = tokio::spawn(async move {
            let mut db = writers.begin().await.unwrap();
            add(&mut db, "not kept either").await.unwrap();
            let _ = arrived.send(());
            std::future::pending::<()>().await;
        });
        file.wait_for(2).await;
        let last = file.adds("b");
        file.wait_for(3).await;

        let first = tokio::spawn(first.end(added));
        let failed = fails.await.unwrap().unwrap_err();
        assert!(matches!(failed, StoreError::AlreadyExists(_)), "{failed}");
        at_work.await.unwrap();
        leaves.abort();
        last.await.unwrap().unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);
        assert_eq!(file.names().await, ["a", "b"]);
    }

    #[tokio::test]
    async fn last_statements_are_committed_with_themselves_where_nobody_waits() {
        let file = file().await;
        let batch = |names: &[&str]| {
            let mut batch = Batch::default();
            for name in names {
                batch.add("INSERT INTO names VALUES ($1)", &[(*name).into()]);
            }
            batch
        };
        let mut alone = file.writers.begin().await.unwrap();
        let done = batch(&["a", "b"]).run_last(&mut alone).await;
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);
        alone.end(done).await.unwrap();

        let mut fails = file.writers.begin().await.unwrap();
        let done = batch(&["c", "a"]).run_last(&mut fails).await;
        let failed = fails.end(done).await.unwrap_err();
        assert!(matches!(failed, StoreError::AlreadyExists(_)), "{failed}");
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);

        let mut first = file.writers.begin().await.unwrap();
        let other = file.adds("e");
        file.wait_for(1).await;
        let done = batch(&["d"]).run_last(&mut first).await;
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);
        first.end(done).await.unwrap();
        other.await.unwrap().unwrap();
        assert_eq!(file.commits.load(Ordering::Relaxed), 2);
        assert_eq!(file.names().await, ["a", "b", "d", "e"]);
        // The connection is with the writers all the time.
        let pool = &file.writers.pool;
        assert_eq!((pool.size(), pool.num_idle()), (1, 0));
    }

    #[tokio::test]
    async fn one_that_leaves_before_it_writes_takes_nothing_back() {
        let file = file().await;
        let mut first = file.writers.begin().await.unwrap();
        let added = add(&mut first, "a").await;
        let writers = file.writers.clone();
        let (arrived, there) = oneshot::channel();
        let leaves = tokio::spawn(async move {
            let _db = writers.begin().await.unwrap();
            let _ = arrived.send(());
            std::future::pending::<()>().await;
        });
        file.wait_for(1).await;
        let last = file.adds("b");
        file.wait_for(2).await;
        let first = tokio::spawn(first.end(added));
        there.await.unwrap();
        leaves.abort();
        last.await.unwrap().unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(file.commits.load(Ordering::Relaxed), 1);
        assert_eq!(file.names().await, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_disk_that_fails_one_fails_all_who_wrote_with_it() {
        let file = file().await;
        let mut first = file.writers.begin().await.unwrap();
        let added = add(&mut first, "a").await;
        let writers = file.writers.clone();
        let last = tokio::spawn(async move {
            let mut db = writers.begin().await.unwrap();
            add(&mut db, "b").await.unwrap();
            let full = StoreError::Unavailable("database or disk is full".into());
            db.end::<()>(Err(full)).await
        });
        file.wait_for(1).await;
        let first = first.end(added).await;
        let full = StoreError::Unavailable("database or disk is full".into());
        assert_eq!(first, Err(full.clone()));
        assert_eq!(last.await.unwrap(), Err(full));
        assert_eq!(file.names().await, [""; 0]);
        file.adds("b").await.unwrap().unwrap();
    }
}
