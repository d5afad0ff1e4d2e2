//! The registry in PostgreSQL, for access points that share it (AP-11).

use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use super::plan::{Plan, bar, executor, history_entry, now_us};
use super::{
    Change, ExecutorId, ExecutorRecord, HistoryEntry, Revocation, RevocationTarget, Store,
    StoreError,
};

/// How long a caller waits for a connection, a new one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of one access point: one writes, the others answer people's questions.
const MAX_CONNECTIONS: u32 = 4;

/// Key of the advisory lock that one access point holds while it brings the schema up to date: "AHfleet".
const MIGRATION_LOCK: i64 = 0x0041_4866_6c65_6574;

/// Schema changes, in order; `ah_schema` says how many the database has.
const MIGRATIONS: [&str; 1] = [r#"
CREATE TABLE executors (
    id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    provider text,
    version text NOT NULL,
    labels jsonb NOT NULL,
    host jsonb NOT NULL,
    serial text NOT NULL,
    sha256 text NOT NULL,
    not_after_us bigint NOT NULL,
    first_enrolled_us bigint NOT NULL,
    last_enrolled_us bigint NOT NULL
);
CREATE TABLE history (
    executor_id text COLLATE "C" NOT NULL,
    n bigint NOT NULL,
    at_us bigint NOT NULL,
    provider text,
    serial text NOT NULL,
    sha256 text NOT NULL,
    not_after_us bigint NOT NULL,
    PRIMARY KEY (executor_id, n)
);
CREATE TABLE revocations (
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('id', 'serial', 'sha256')),
    value text COLLATE "C" NOT NULL,
    at_us bigint NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (kind, value)
);
CREATE TABLE revocation_version (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    version bigint NOT NULL
);
INSERT INTO revocation_version (version) VALUES (0);
"#];

/// `$1` rows, `$2` now: see [`Change::Enrolled`] for the condition at the end.
const UPSERT_EXECUTORS: &str = r#"
INSERT INTO executors
SELECT * FROM jsonb_to_recordset($1::text::jsonb) AS x(id text, name text, provider text, version text,
    labels jsonb, host jsonb, serial text, sha256 text, not_after bigint, first bigint, last bigint)
ORDER BY x.id COLLATE "C"
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, provider = excluded.provider, version = excluded.version, labels = excluded.labels,
    host = excluded.host, serial = excluded.serial, sha256 = excluded.sha256,
    not_after_us = excluded.not_after_us, last_enrolled_us = excluded.last_enrolled_us
WHERE excluded.last_enrolled_us >= executors.last_enrolled_us OR executors.last_enrolled_us > $2"#;

/// Two access points may write of one executor at once. The row's lock makes them take turns; it is taken
/// by the upsert above, and here for those an upsert did not touch.
const LOCK_EXECUTORS: &str = r#"
SELECT 1 FROM executors WHERE id = ANY (SELECT value->>'id' FROM jsonb_array_elements($1::text::jsonb))
ORDER BY id COLLATE "C" FOR UPDATE"#;

/// Leaves out what is there already: the entry before (the first of a batch), or all of it when a batch is
/// applied a second time.
const INSERT_HISTORY: &str = r"
INSERT INTO history
SELECT x.id, x.k + coalesce((SELECT max(n) FROM history WHERE executor_id = x.id), 0),
       x.at, x.provider, x.serial, x.sha256, x.not_after
FROM jsonb_to_recordset($1::text::jsonb) AS x(id text, k bigint, at bigint, provider text, serial text,
    sha256 text, not_after bigint)
WHERE NOT EXISTS (
    SELECT 1 FROM history h
    WHERE h.executor_id = x.id AND h.sha256 = x.sha256 AND h.provider IS NOT DISTINCT FROM x.provider
    AND (h.at_us = x.at OR x.k = 1 AND h.n = (SELECT max(n) FROM history WHERE executor_id = x.id)))";

const TRIM_HISTORY: &str = r"
DELETE FROM history h USING (
    SELECT executor_id, max(n) AS n FROM history
    WHERE executor_id = ANY (SELECT value->>'id' FROM jsonb_array_elements($1::text::jsonb))
    GROUP BY executor_id) newest
WHERE h.executor_id = newest.executor_id AND h.n <= newest.n - 50";

const UPSERT_BARS: &str = r"
INSERT INTO revocations
SELECT * FROM jsonb_to_recordset($1::text::jsonb) AS x(kind text, value text, at bigint, reason text)
ON CONFLICT (kind, value) DO UPDATE SET at_us = excluded.at_us, reason = excluded.reason";

const DELETE_BARS: &str = r"
DELETE FROM revocations r USING jsonb_to_recordset($1::text::jsonb) AS x(kind text, value text)
WHERE r.kind = x.kind AND r.value = x.value";

/// Comes before the bars are touched: its row lock makes access points take turns, so that the numbers
/// grow in the order of the commits.
const BUMP_BARS: &str = "UPDATE revocation_version SET version = version + 1";

/// The registry in a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Connects and brings the schema up to date. Access points that start at once take turns.
    ///
    /// # Errors
    /// Says what the server answered and what to do (ER-24); never with the password.
    pub async fn open(options: PgConnectOptions) -> Result<Self, Explained> {
        let place = place(&options);
        let options = options.application_name("ah-access-point");
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(|e| explain(&place, &e))?;
        migrate(&place, &pool).await?;
        Ok(Self { pool })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl Store for PostgresStore {
    async fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let plan = Plan::new(changes)?;
        let mut tx = self.pool.begin().await.map_err(fault)?;
        write(&mut tx, &plan).await.map_err(fault)?;
        tx.commit().await.map_err(fault)
    }

    async fn executors(&self) -> Result<Vec<ExecutorRecord>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT id, name, provider, version, labels::text, host::text, serial, sha256, not_after_us,
                    first_enrolled_us, last_enrolled_us
             FROM executors ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(fault)?;
        rows.into_iter().map(executor).collect()
    }

    async fn revocations(&self) -> Result<Vec<(RevocationTarget, Revocation)>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT kind, value, at_us, reason FROM revocations ORDER BY kind, value",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(fault)?;
        rows.into_iter().map(bar).collect()
    }

    async fn revocation_version(&self) -> Result<u64, StoreError> {
        let version: i64 = sqlx::query_scalar("SELECT version FROM revocation_version")
            .fetch_one(&self.pool)
            .await
            .map_err(fault)?;
        Ok(version.unsigned_abs())
    }

    async fn history(&self, id: &ExecutorId) -> Result<Vec<HistoryEntry>, StoreError> {
        if id.as_str().contains('\0') {
            return Ok(Vec::new());
        }
        let rows = sqlx::query_as(
            "SELECT at_us, provider, serial, sha256, not_after_us FROM history WHERE executor_id = $1 ORDER BY n",
        )
        .bind(id.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(fault)?;
        rows.into_iter().map(history_entry).collect()
    }

    async fn check(&self) -> Result<(), StoreError> {
        // Takes a row's write lock, so a standby or a read-only database shows; nothing is kept.
        let mut tx = self.pool.begin().await.map_err(fault)?;
        sqlx::query("UPDATE revocation_version SET version = version")
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        tx.rollback().await.map_err(fault)
    }
}

async fn write(tx: &mut PgConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    if let Some(rows) = &plan.executors {
        let query = sqlx::query(UPSERT_EXECUTORS).bind(rows).bind(now_us());
        query.execute(&mut *tx).await?;
    }
    if let Some(rows) = &plan.history {
        sqlx::query(LOCK_EXECUTORS)
            .bind(rows)
            .execute(&mut *tx)
            .await?;
        let added = sqlx::query(INSERT_HISTORY)
            .bind(rows)
            .execute(&mut *tx)
            .await?;
        if added.rows_affected() > 0 {
            sqlx::query(TRIM_HISTORY)
                .bind(rows)
                .execute(&mut *tx)
                .await?;
        }
    }
    if plan.barred.is_some() || plan.lifted.is_some() {
        sqlx::query(BUMP_BARS).execute(&mut *tx).await?;
    }
    if let Some(rows) = &plan.barred {
        sqlx::query(UPSERT_BARS)
            .bind(rows)
            .execute(&mut *tx)
            .await?;
    }
    if let Some(rows) = &plan.lifted {
        sqlx::query(DELETE_BARS)
            .bind(rows)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

async fn migrate(place: &str, pool: &PgPool) -> Result<(), Explained> {
    let failed = |e: sqlx::Error| explain(place, &e);
    let mut tx = pool.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    // Not `CREATE … IF NOT EXISTS`: a role that may only read and write rows can start on a finished schema.
    let known: bool = sqlx::query_scalar("SELECT to_regclass('ah_schema') IS NOT NULL")
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
    if !known {
        sqlx::raw_sql("CREATE TABLE ah_schema (version integer PRIMARY KEY)")
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
    }
    let version: i32 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM ah_schema")
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
    let latest = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    if version > latest {
        return Err(cannot_open(place)
            .cause(format!(
                "its schema has version {version}; this program knows versions up to {latest}"
            ))
            .hint("run the newer version on every access point that shares this database"));
    }
    let done = usize::try_from(version).unwrap_or(0);
    for (n, sql) in (1_i32..).zip(MIGRATIONS).skip(done) {
        sqlx::raw_sql(sql).execute(&mut *tx).await.map_err(failed)?;
        sqlx::query("INSERT INTO ah_schema VALUES ($1)")
            .bind(n)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

/// By the class of the SQLSTATE (PostgreSQL manual, appendix A).
fn fault(error: sqlx::Error) -> StoreError {
    let text = format!("postgresql: {error}");
    match class(&error).as_deref() {
        // Data exception, integrity constraint violation, program limit exceeded.
        Some("22" | "23" | "54") => StoreError::Refused(text),
        // Authorization, catalog or schema name, syntax error or access rule violation (a missing table).
        Some("28" | "3D" | "3F" | "42") => StoreError::Broken(text),
        _ => StoreError::Unavailable(text),
    }
}

fn class(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.chars().take(2).collect())
}

/// The database as people name it, without the password.
fn place(options: &PgConnectOptions) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    match options.get_socket() {
        Some(socket) => format!("postgres://{user}@{}/{database}", socket.display()),
        None => format!(
            "postgres://{user}@{}:{}/{database}",
            options.get_host(),
            options.get_port()
        ),
    }
}

fn cannot_open(place: &str) -> Explained {
    Explained::new(
        Code::Other,
        format!("cannot open the registry database {place}"),
    )
}

fn explain(place: &str, error: &sqlx::Error) -> Explained {
    let explained = cannot_open(place).cause(error);
    match class(error).as_deref() {
        Some("28") => explained.hint("check user and password in --db or AH_DB, and the server's pg_hba.conf"),
        Some("3D") => explained.hint("make the database first: createdb, as a user who may"),
        Some("42") => explained.hint("the user needs CREATE on the schema for the first start, and to read and write its tables after"),
        Some("57") => explained.hint("the server is starting or stopping; start the access point again in a moment"),
        _ => explained.hint("check that the server runs and can be reached from here: pg_isready -h HOST -p PORT"),
    }
}
