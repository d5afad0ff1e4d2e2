//! The registry in one SQLite file (AP-11's default).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ah_identity_provider::{Code, Explained};
use sqlx::Sqlite;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

use super::plan::{Plan, bar, executor, history_entry, now_us};
use super::{
    Change, ExecutorId, ExecutorRecord, HistoryEntry, Revocation, RevocationTarget, Store,
    StoreError,
};

/// How long SQLite itself waits for a lock another process holds. The writer waits on after that.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a caller waits for a connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks the file as ours (`PRAGMA application_id`): "AHfl".
const APPLICATION_ID: i64 = 0x4148_666c;

/// Schema changes, in order; the file's `user_version` says how many it has.
const MIGRATIONS: [&str; 2] = [
    r"
CREATE TABLE executors (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    provider TEXT,
    version TEXT NOT NULL,
    labels TEXT NOT NULL,
    host TEXT NOT NULL,
    serial TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    not_after_us INTEGER NOT NULL,
    first_enrolled_us INTEGER NOT NULL,
    last_enrolled_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    executor_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    provider TEXT,
    serial TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    not_after_us INTEGER NOT NULL,
    PRIMARY KEY (executor_id, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE revocations (
    kind TEXT NOT NULL CHECK (kind IN ('id', 'serial', 'sha256')),
    value TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
CREATE TABLE revocation_version (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO revocation_version VALUES (1, 0);
",
    // As many as `HISTORY_LIMIT`.
    r"
CREATE TRIGGER history_limit AFTER INSERT ON history WHEN new.n > 50 BEGIN
    DELETE FROM history WHERE executor_id = new.executor_id AND n <= new.n - 50;
END;
",
];

/// One whole batch. One command to the connection's thread and one answer: each of those is a wake and a change of threads,
/// which cost more than most of these statements.
///
/// Executors and now (see [`Change::Enrolled`] for the condition), history, bars to set, bars to lift, whether there are any.
/// History leaves out what is there already: the entry before (the first of a batch), or all of it when a batch is applied
/// a second time.
const APPLY: &str = r"
BEGIN IMMEDIATE;
INSERT INTO executors
SELECT value->>'id', value->>'name', value->>'provider', value->>'version', value->'labels', value->'host',
       value->>'serial', value->>'sha256', value->>'not_after', value->>'first', value->>'last'
FROM jsonb_each(?) WHERE true
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, provider = excluded.provider, version = excluded.version, labels = excluded.labels,
    host = excluded.host, serial = excluded.serial, sha256 = excluded.sha256,
    not_after_us = excluded.not_after_us, last_enrolled_us = excluded.last_enrolled_us
WHERE excluded.last_enrolled_us >= last_enrolled_us OR last_enrolled_us > ?;
INSERT INTO history
SELECT x.id, x.k + coalesce((SELECT max(n) FROM history WHERE executor_id = x.id), 0),
       x.at, x.provider, x.serial, x.sha256, x.not_after
FROM (SELECT value->>'id' AS id, value->>'k' AS k, value->>'at' AS at, value->>'provider' AS provider,
             value->>'serial' AS serial, value->>'sha256' AS sha256, value->>'not_after' AS not_after
      FROM jsonb_each(?)) x
WHERE NOT EXISTS (
    SELECT 1 FROM history h WHERE h.executor_id = x.id AND h.sha256 = x.sha256 AND h.provider IS x.provider
    AND (h.at_us = x.at OR x.k = 1 AND h.n = (SELECT max(n) FROM history WHERE executor_id = x.id)));
INSERT INTO revocations SELECT value->>'kind', value->>'value', value->>'at', value->>'reason'
FROM jsonb_each(?) WHERE true
ON CONFLICT (kind, value) DO UPDATE SET at_us = excluded.at_us, reason = excluded.reason;
DELETE FROM revocations WHERE (kind, value) IN (SELECT value->>'kind', value->>'value' FROM jsonb_each(?));
UPDATE revocation_version SET version = version + 1 WHERE ?;
COMMIT";

/// Takes the write lock and changes a page, so a locked or read-only file shows; nothing is kept. A full disk shows at a
/// commit, in the health of the writer.
const TRY: &str = "BEGIN IMMEDIATE; UPDATE revocation_version SET version = version; ROLLBACK";

/// The registry in one SQLite file, in WAL mode, synced at every commit.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file at `path`, makes it when there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// Says what is wrong with the file or its folder and what to do (ER-8, ER-24).
    pub async fn open(path: &Path) -> Result<Self, Explained> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Batches are group-committed, so a sync each is cheap; WAL with NORMAL would lose the last.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        private_file(path).map_err(|e| explain_file(path, &e))?;
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = || {
            pool()
                .max_connections(1)
                // A question to the connection's thread and back, before each commit. A file does not hang up.
                .test_before_acquire(false)
        };
        let writer = connect(writer, &options).await;
        let writer = writer.map_err(|e| explain(path, &e))?;
        migrate(path, &writer).await?;
        let readers = pool()
            .max_connections(4)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self {
            path: path.to_owned(),
            writer,
            readers,
        })
    }

    /// Closes all connections, which folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Runs one transaction on the one connection that writes.
    async fn transact(&self, plan: Option<&Plan>) -> Result<(), StoreError> {
        self.still_there()?;
        let mut connection = Uncertain(Some(self.writer.acquire().await.map_err(fault)?));
        let done = match (connection.0.as_deref_mut(), plan) {
            (Some(connection), Some(plan)) => apply(connection, plan).await,
            (Some(connection), None) => sqlx::query(TRY).execute(connection).await.map(drop),
            (None, _) => Ok(()),
        };
        let connection = connection.0.take();
        if let (Err(_), Some(connection)) = (&done, connection) {
            // Its transaction may be open, or SQLite may have ended it, as it does when the disk fails or is full. The next
            // gets a new connection.
            if let Err(e) = connection.close().await {
                tracing::debug!(error = %e, "closing a failed connection to the registry");
            }
        }
        done.map_err(fault)
    }

    /// A file that was removed or replaced underneath would take writes that nobody ever reads.
    fn still_there(&self) -> Result<(), StoreError> {
        std::fs::metadata(&self.path).map(drop).map_err(|e| {
            StoreError::Unavailable(format!("database file {}: {e}", self.path.display()))
        })
    }
}

/// A connection in the middle of a transaction: given up there, it is closed, which takes the transaction back.
struct Uncertain(Option<PoolConnection<Sqlite>>);

impl Drop for Uncertain {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.close_on_drop();
        }
    }
}

/// The first connection puts a new file into WAL mode. SQLite does not wait there for another process that is about the
/// same, whatever `busy_timeout` says.
async fn connect(
    pool: impl Fn() -> SqlitePoolOptions,
    options: &SqliteConnectOptions,
) -> Result<SqlitePool, sqlx::Error> {
    let end = Instant::now() + BUSY_TIMEOUT;
    loop {
        match pool().connect_with(options.clone()).await {
            Err(error) if is_busy(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            connected => return connected,
        }
    }
}

/// SQLITE_BUSY, plain or while another process recovers the file (result codes 5 and 261).
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "5" | "261"))
}

impl Store for SqliteStore {
    async fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let plan = Plan::new(changes)?;
        self.transact(Some(&plan)).await
    }

    async fn executors(&self) -> Result<Vec<ExecutorRecord>, StoreError> {
        let rows = sqlx::query_as("SELECT * FROM executors ORDER BY id")
            .fetch_all(&self.readers)
            .await
            .map_err(fault)?;
        rows.into_iter().map(executor).collect()
    }

    async fn revocations(&self) -> Result<Vec<(RevocationTarget, Revocation)>, StoreError> {
        let rows = sqlx::query_as("SELECT * FROM revocations ORDER BY kind, value")
            .fetch_all(&self.readers)
            .await
            .map_err(fault)?;
        rows.into_iter().map(bar).collect()
    }

    async fn revocation_version(&self) -> Result<u64, StoreError> {
        let version: i64 = sqlx::query_scalar("SELECT version FROM revocation_version")
            .fetch_one(&self.readers)
            .await
            .map_err(fault)?;
        Ok(version.unsigned_abs())
    }

    async fn history(&self, id: &ExecutorId) -> Result<Vec<HistoryEntry>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT at_us, provider, serial, sha256, not_after_us FROM history WHERE executor_id = ?1 ORDER BY n",
        )
        .bind(id.as_str())
        .fetch_all(&self.readers)
        .await
        .map_err(fault)?;
        rows.into_iter().map(history_entry).collect()
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.transact(None).await
    }
}

async fn apply(connection: &mut SqliteConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let rows = |rows: &Option<String>| rows.clone().unwrap_or_else(|| "[]".to_owned());
    let query = sqlx::query(APPLY)
        .bind(rows(&plan.executors))
        .bind(now_us())
        .bind(rows(&plan.history))
        .bind(rows(&plan.barred))
        .bind(rows(&plan.lifted))
        .bind(plan.barred.is_some() || plan.lifted.is_some());
    query.execute(connection).await.map(drop)
}

async fn migrate(path: &Path, pool: &SqlitePool) -> Result<(), Explained> {
    let failed = |e: sqlx::Error| explain(path, &e);
    // Two processes that start at once take turns here, and the second finds the work done.
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let version: i64 = scalar(&mut tx, "PRAGMA user_version")
        .await
        .map_err(failed)?;
    let application: i64 = scalar(&mut tx, "PRAGMA application_id")
        .await
        .map_err(failed)?;
    let tables: i64 = scalar(&mut tx, "SELECT count(*) FROM sqlite_schema")
        .await
        .map_err(failed)?;
    let ours = application == APPLICATION_ID || (application == 0 && version == 0 && tables == 0);
    if !ours {
        return Err(cannot_open(path)
            .cause("the file is the SQLite database of another program")
            .hint(
                "give --db a path of its own, for example --db sqlite:/var/lib/ah/access-point.db",
            ));
    }
    let latest = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > latest {
        return Err(cannot_open(path)
            .cause(format!(
                "its schema has version {version}; this program knows versions up to {latest}"
            ))
            .hint("start the newer version of the access point that wrote it, or restore a backup from before the upgrade"));
    }
    let done = usize::try_from(version).unwrap_or(0);
    for (n, sql) in (1_i64..).zip(MIGRATIONS).skip(done) {
        sqlx::raw_sql(sql).execute(&mut *tx).await.map_err(failed)?;
        let stamp = format!("PRAGMA user_version = {n}; PRAGMA application_id = {APPLICATION_ID}");
        // Two integers of ours: a pragma takes no bound values.
        let stamp = sqlx::raw_sql(sqlx::AssertSqlSafe(stamp));
        stamp.execute(&mut *tx).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

async fn scalar(tx: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(tx).await
}

/// Makes the file readable by its owner alone before SQLite would make it readable by all: it names every
/// machine of the fleet. SQLite gives its side files the mode of the main file.
fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// By SQLite's primary result code.
fn fault(error: sqlx::Error) -> StoreError {
    let text = format!("sqlite: {error}");
    match primary_code(&error) {
        // ERROR, CORRUPT, SCHEMA, NOTADB: a missing table, a damaged file.
        Some(1 | 11 | 17 | 26) => StoreError::Broken(text),
        // TOOBIG, CONSTRAINT, MISMATCH: the data, not the database.
        Some(18..=20) => StoreError::Refused(text),
        // BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN and whatever else may pass.
        _ => StoreError::Unavailable(text),
    }
}

fn primary_code(error: &sqlx::Error) -> Option<i64> {
    let code: i64 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

fn cannot_open(path: &Path) -> Explained {
    Explained::new(
        Code::Other,
        format!("cannot open the registry database {}", path.display()),
    )
}

fn explain(path: &Path, error: &sqlx::Error) -> Explained {
    let explained = cannot_open(path).cause(error);
    match primary_code(error) {
        Some(26) => explained
            .cause("the file is not an SQLite database")
            .hint("give --db another path, or move the file away: a new database is then made"),
        Some(11) => explained
            .hint("restore the file from a backup, or move it away: executors enroll anew, revocations must be made again"),
        Some(5 | 6) => explained
            .hint("another process holds the database locked; `fuser -v` on the file names it"),
        Some(13) => explained.hint("free space on the file system that holds the database"),
        _ => explained.hint("check that this user may write to the file and its folder (--db, AH_DB)"),
    }
}

fn explain_file(path: &Path, error: &std::io::Error) -> Explained {
    let folder = path.parent().unwrap_or(path).display();
    match error.kind() {
        std::io::ErrorKind::NotFound => cannot_open(path)
            .cause(format!("no such folder: {folder}"))
            .hint(format!("make it: mkdir -p {folder}")),
        std::io::ErrorKind::PermissionDenied => cannot_open(path)
            .cause(format!("permission denied in {folder}"))
            .hint("let the user of the access point write there, or give --db another path"),
        _ => cannot_open(path)
            .cause(error)
            .hint("check that this user may write to the file and its folder (--db, AH_DB)"),
    }
}
