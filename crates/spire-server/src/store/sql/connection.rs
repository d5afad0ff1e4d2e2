//! One connection in one transaction, of any of the databases.
//!
//! Statements are PostgreSQL's. For SQLite the casts of times and row locks are taken out: it keeps times as
//! text and has one writer. Both count values with `$n`. What MySQL reads instead is [`mysql`]'s.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::StreamExt;
use sqlx::mysql::{MySql, MySqlDatabaseError, MySqlRow};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{AssertSqlSafe, Either, Executor, FromRow};

pub(super) use super::arg::Arg;
use super::batch::{ONCE, insertion};
use super::mysql;
use super::place::Place;
use super::writers::Turn;
use crate::store::StoreError;

/// What a row can be read into: a tuple of what all databases have.
pub(super) trait Row:
    for<'r> FromRow<'r, SqliteRow>
    + for<'r> FromRow<'r, PgRow>
    + for<'r> FromRow<'r, MySqlRow>
    + Send
    + Unpin
{
}

impl<T> Row for T where
    T: for<'r> FromRow<'r, SqliteRow>
        + for<'r> FromRow<'r, PgRow>
        + for<'r> FromRow<'r, MySqlRow>
        + Send
        + Unpin
{
}

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
    /// MariaDB as well.
    MySql,
}

#[derive(Debug)]
enum Live {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
    MySql(PoolConnection<MySql>),
}

/// A transaction. One that is dropped before its [`Connection::end`] takes its connection with it: nobody knows
/// what state that is in.
#[derive(Debug)]
pub(super) struct Connection {
    live: Option<Live>,
    /// That of a writer who shares the connection with others.
    turn: Option<Turn>,
    /// Whether it has a lock of MySQL's, which would outlive the transaction.
    locked: bool,
    progress: Progress,
}

/// How far a transaction is.
#[derive(Debug, Default)]
struct Progress {
    /// What goes along with the next statement: what begins an SQLite transaction, or a part of one.
    ahead: String,
    begun: bool,
    /// Committed along with its last statement.
    committed: bool,
}

macro_rules! bind {
    ($query:expr, $args:expr) => {{
        let mut query = $query;
        for arg in $args {
            query = match arg.clone() {
                Arg::Null => query.bind(None::<String>),
                Arg::Int(value) => query.bind(value),
                Arg::Bool(value) => query.bind(value),
                Arg::Text(value) | Arg::EntryRow(value) => query.bind(value),
                Arg::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Connection {
    /// A transaction that reads. It begins with its first statement.
    pub(super) fn sqlite(connection: PoolConnection<Sqlite>) -> Self {
        let mut db = Self::of(Live::Sqlite(connection));
        db.ahead("BEGIN");
        db
    }

    pub(super) async fn postgres(
        connection: PoolConnection<Postgres>,
        begin: &'static str,
    ) -> Result<Self, StoreError> {
        Self::begin(Live::Postgres(connection), begin).await
    }

    pub(super) async fn mysql(
        connection: PoolConnection<MySql>,
        begin: &'static str,
    ) -> Result<Self, StoreError> {
        Self::begin(Live::MySql(connection), begin).await
    }

    async fn begin(live: Live, begin: &'static str) -> Result<Self, StoreError> {
        let mut connection = Self::of(live);
        connection.progress.begun = true;
        connection.script(begin).await?;
        Ok(connection)
    }

    fn of(live: Live) -> Self {
        Self {
            live: Some(live),
            turn: None,
            locked: false,
            progress: Progress::default(),
        }
    }

    /// One whose transaction is still to begin.
    pub(super) fn idle(connection: PoolConnection<Sqlite>) -> Self {
        Self::of(Live::Sqlite(connection))
    }

    pub(super) fn in_turn(mut self, turn: Turn) -> Self {
        self.turn = Some(turn);
        self
    }

    /// Has `sql` run before the next statement, as one with it: SQLite's thread is woken once.
    pub(super) fn ahead(&mut self, sql: &str) {
        let ahead = &mut self.progress.ahead;
        ahead.push_str(sql);
        ahead.push_str("; ");
    }

    /// Whether [`Connection::last`] has committed it.
    pub(super) fn is_committed(&self) -> bool {
        self.progress.committed
    }

    /// Whether nothing was run since [`Connection::ahead`].
    pub(super) fn is_untouched(&self) -> bool {
        !self.progress.ahead.is_empty()
    }

    pub(super) async fn snapshot(place: &Place<Postgres>) -> Result<Self, StoreError> {
        let connection = place.acquire().await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        Self::postgres(connection, begin).await
    }

    pub(super) fn kind(&self) -> Kind {
        match self.live {
            Some(Live::Sqlite(_)) => Kind::Sqlite,
            Some(Live::MySql(_)) => Kind::MySql,
            Some(Live::Postgres(_)) | None => Kind::Postgres,
        }
    }

    /// Unix seconds of a column of times; NULL stays NULL.
    pub(super) fn seconds(&self, column: &str) -> String {
        match self.kind() {
            Kind::Sqlite => format!("CAST(round(unixepoch({column}, 'subsec')) AS BIGINT)"),
            Kind::Postgres => format!("CAST(extract(epoch FROM {column}) AS BIGINT)"),
            Kind::MySql => format!("TIMESTAMPDIFF(SECOND, '1970-01-01 00:00:00', {column})"),
        }
    }

    /// Waits until no other transaction has a lock of this name; this one's ends with it. SQLite has one writer, and the
    /// bound is MySQL's.
    pub(super) async fn lock(&mut self, name: &str, wait: Duration) -> Result<(), StoreError> {
        match self.kind() {
            Kind::Sqlite => Ok(()),
            Kind::Postgres => {
                let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
                self.execute(lock, &[name.into()]).await.map(drop)
            }
            Kind::MySql => {
                self.locked = true;
                let wait = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
                let got: Option<(i64,)> =
                    self.row(mysql::LOCK, &[name.into(), wait.into()]).await?;
                match got {
                    Some((1,)) => Ok(()),
                    _ => Err(StoreError::Unavailable(format!(
                        "no lock of the database for {wait} seconds"
                    ))),
                }
            }
        }
    }

    /// All rows. A statement without values names its rows itself, so that it is not worth keeping prepared.
    pub(super) async fn rows<T: Row>(
        &mut self,
        sql: &str,
        args: &[Arg],
    ) -> Result<Vec<T>, StoreError> {
        let rows = match self.live.as_mut().ok_or_else(ended)? {
            Live::Sqlite(connection) => {
                let sql = self.progress.with_ahead(plain(sql));
                let query = sqlx::query_as::<Sqlite, T>(AssertSqlSafe(sql));
                bind!(query.persistent(!args.is_empty()), args)
                    .fetch_all(&mut **connection)
                    .await
            }
            Live::Postgres(connection) => {
                let query = sqlx::query_as::<Postgres, T>(AssertSqlSafe(sql.to_owned()));
                bind!(query.persistent(!args.is_empty()), args)
                    .fetch_all(&mut **connection)
                    .await
            }
            Live::MySql(connection) => {
                let own = mysql::statement(sql, args)?;
                let query = sqlx::query_as::<MySql, T>(AssertSqlSafe(own.sql));
                bind!(query.persistent(!args.is_empty()), &own.args)
                    .fetch_all(&mut **connection)
                    .await
            }
        };
        rows.map_err(fault)
    }

    /// All rows of `columns` from `from`, as one text of JSON: a driver takes a microsecond and more for each row and column.
    pub(super) async fn json(
        &mut self,
        columns: &str,
        from: &str,
        args: &[Arg],
    ) -> Result<String, StoreError> {
        let row = self.json_array(columns);
        let all = match self.kind() {
            Kind::Sqlite => format!("json_group_array({row})"),
            Kind::Postgres => format!("coalesce(CAST(json_agg({row}) AS TEXT), '[]')"),
            Kind::MySql => return self.json_rows(&row, from, args).await,
        };
        let sql = format!("SELECT {all} FROM {from}");
        let rows = self.row::<(String,)>(&sql, args).await?;
        Ok(rows.map_or_else(|| "[]".to_owned(), |(text,)| text))
    }

    /// These columns as an array of JSON.
    pub(super) fn json_array(&self, columns: &str) -> String {
        match self.kind() {
            Kind::Sqlite | Kind::MySql => format!("json_array({columns})"),
            Kind::Postgres => format!("json_build_array({columns})"),
        }
    }

    /// MySQL bounds what it gathers from several rows, and MariaDB cuts it there: each row is a text of its own.
    async fn json_rows(
        &mut self,
        row: &str,
        from: &str,
        args: &[Arg],
    ) -> Result<String, StoreError> {
        let sql = format!("SELECT CAST({row} AS CHAR) FROM {from}");
        let rows: Vec<(String,)> = self.rows(&sql, args).await?;
        let rows: Vec<_> = rows.into_iter().map(|(text,)| text).collect();
        Ok(format!("[{}]", rows.join(",")))
    }

    /// The first row.
    pub(super) async fn row<T: Row>(
        &mut self,
        sql: &str,
        args: &[Arg],
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// How many rows it changed.
    pub(super) async fn execute(&mut self, sql: &str, args: &[Arg]) -> Result<u64, StoreError> {
        let done = match self.live.as_mut().ok_or_else(ended)? {
            Live::Sqlite(connection) => {
                let sql = self.progress.with_ahead(plain(sql));
                let query = bind!(sqlx::query::<Sqlite>(AssertSqlSafe(sql)), args);
                let mut steps = connection.fetch_many(query.persistent(!args.is_empty()));
                let mut changed = Ok(0);
                // One for each statement and row; a statement that changes nothing says what the one before it did.
                while let Some(step) = steps.next().await {
                    changed = match step {
                        Ok(Either::Left(done)) => Ok(done.rows_affected()),
                        Ok(Either::Right(_)) => changed,
                        Err(error) => Err(error),
                    };
                }
                changed
            }
            Live::Postgres(connection) => {
                let query = sqlx::query::<Postgres>(AssertSqlSafe(sql.to_owned()));
                let done = bind!(query.persistent(!args.is_empty()), args)
                    .execute(&mut **connection)
                    .await;
                done.map(|done| done.rows_affected())
            }
            Live::MySql(connection) => {
                let own = mysql::statement(sql, args)?;
                let query = sqlx::query::<MySql>(AssertSqlSafe(own.sql));
                let done = bind!(query.persistent(!args.is_empty()), &own.args)
                    .execute(&mut **connection)
                    .await;
                match done {
                    Err(error) if own.may_conflict && mysql::is_conflict(&error) => Ok(0),
                    done => done.map(|done| done.rows_affected()),
                }
            }
        };
        done.map_err(fault)
    }

    /// Inserts one row into a table that numbers its rows: the number, or `None` where a row is there already.
    pub(super) async fn insert_row(
        &mut self,
        insert: &str,
        args: &[Arg],
    ) -> Result<Option<i64>, StoreError> {
        if self.kind() != Kind::MySql {
            let sql = format!("{insert} ON CONFLICT DO NOTHING RETURNING CAST(id AS BIGINT)");
            return Ok(self.row::<(i64,)>(&sql, args).await?.map(|(id,)| id));
        }
        let sql = format!("{insert} ON CONFLICT DO NOTHING");
        if self.execute(&sql, args).await? == 0 {
            return Ok(None);
        }
        let made = self.row::<(i64,)>("SELECT CAST(last_insert_id() AS BIGINT)", &[]);
        Ok(made.await?.map(|(id,)| id))
    }

    /// [`Batch::run_last`](super::batch::Batch::run_last).
    pub(super) async fn last(&mut self, mut sql: String, args: &[Arg]) -> Result<(), StoreError> {
        let commits = self.turn.as_ref().is_some_and(Turn::is_alone);
        if commits {
            sql.push_str("; COMMIT");
        }
        self.execute(&sql, args).await?;
        self.progress.committed = commits;
        Ok(())
    }

    /// Several statements of ours, without values.
    pub(super) async fn script(&mut self, sql: &'static str) -> Result<(), StoreError> {
        let done = match self.live.as_mut().ok_or_else(ended)? {
            Live::Sqlite(connection) => {
                let sql = self.progress.with_ahead(sql.to_owned());
                sqlx::raw_sql(AssertSqlSafe(sql))
                    .execute(&mut **connection)
                    .await
                    .map(drop)
            }
            Live::Postgres(connection) => sqlx::raw_sql(sql)
                .execute(&mut **connection)
                .await
                .map(drop),
            Live::MySql(connection) => sqlx::raw_sql(sql)
                .execute(&mut **connection)
                .await
                .map(drop),
        };
        done.map_err(fault)
    }

    /// [`insertion`].
    pub(super) async fn insert(
        &mut self,
        insert: &str,
        rows: Vec<Vec<Arg>>,
    ) -> Result<(), StoreError> {
        let twice = match self.kind() {
            // MySQL leaves out all rows of a statement or none, and none of these is there twice.
            Kind::MySql => "",
            Kind::Sqlite | Kind::Postgres => ONCE,
        };
        for (sql, args) in insertion(insert, &rows, twice) {
            self.execute(&sql, &args).await?;
        }
        Ok(())
    }

    /// Commits what went well and takes back what did not.
    pub(super) async fn end<T>(mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match self.turn.take() {
            Some(turn) => turn.end(self, result).await,
            None => self.finish(result).await.0,
        }
    }

    /// Ends the transaction, whoever wrote in it. The connection is there for another one where it is sound.
    pub(super) async fn finish<T>(
        mut self,
        result: Result<T, StoreError>,
    ) -> (Result<T, StoreError>, Option<Self>) {
        let Progress {
            begun, committed, ..
        } = std::mem::take(&mut self.progress);
        let mut ended = match (&result, begun && !committed) {
            (_, false) => Ok(()),
            (Ok(_), true) => self.last_word("COMMIT").await,
            (Err(_), true) => self.last_word("ROLLBACK").await,
        };
        if std::mem::take(&mut self.locked) && ended.is_ok() {
            ended = self.last_word(mysql::UNLOCK).await;
        }
        // SQLite ends a transaction by itself when the disk fails or is full, and a PostgreSQL that restarts
        // takes the connection along: such a connection is not used again.
        let sound = ended.is_ok() && !matches!(result, Err(StoreError::Unavailable(_)));
        let result = match result {
            Ok(value) => ended.map(|()| value),
            Err(error) => Err(error),
        };
        if !sound {
            self.progress.begun = true;
        }
        (result, sound.then_some(self))
    }

    async fn last_word(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.progress.begun = true;
        self.script(sql).await?;
        self.progress.begun = false;
        Ok(())
    }
}

impl Progress {
    fn with_ahead(&mut self, sql: String) -> String {
        self.begun = true;
        if self.ahead.is_empty() {
            return sql;
        }
        let mut all = std::mem::take(&mut self.ahead);
        all.push_str(&sql);
        all
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            let live = self.live.take();
            let progress = std::mem::take(&mut self.progress);
            turn.take_back(
                Self {
                    live,
                    turn: None,
                    locked: false,
                    progress,
                },
                None,
            );
        }
        // The pool takes a connection back in a task.
        let has_runtime = tokio::runtime::Handle::try_current().is_ok();
        match self.live.take() {
            Some(Live::Sqlite(connection)) if !has_runtime => drop(connection.detach()),
            Some(Live::Sqlite(mut connection)) if self.progress.begun => connection.close_on_drop(),
            Some(Live::Postgres(mut connection)) if self.progress.begun => {
                connection.close_on_drop();
            }
            Some(Live::MySql(mut connection)) if self.progress.begun => connection.close_on_drop(),
            _ => {}
        }
    }
}

pub(super) fn ended() -> StoreError {
    StoreError::Unavailable("the transaction has ended".into())
}

fn plain(sql: &str) -> String {
    let plain = if sql.contains("::timestamptz") {
        Cow::Owned(sql.replace("::timestamptz", ""))
    } else {
        Cow::Borrowed(sql)
    };
    plain.replace(" FOR UPDATE", "")
}

/// Names the database's own words; what the caller does next goes by its code.
pub(super) fn fault(error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|e| e.code());
    let text = error.to_string();
    let numbered = error.as_database_error();
    if let Some(numbered) = numbered.and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>()) {
        return mysql::fault(numbered.number(), text);
    }
    let Some(code) = code else {
        return match error {
            sqlx::Error::Configuration(ref why) if mysql::wants_tls(why.as_ref()) => {
                mysql::needs_tls()
            }
            sqlx::Error::Configuration(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. } => StoreError::Broken(text),
            _ => StoreError::Unavailable(text),
        };
    };
    if error.as_database_error().is_some_and(|e| {
        e.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .is_some()
    }) {
        return postgres_fault(&code, text);
    }
    // https://sqlite.org/rescode.html, primary codes.
    match code.parse::<i64>().map(|code| code & 0xff) {
        // CONSTRAINT
        Ok(19) => StoreError::AlreadyExists(text),
        // TOOBIG, MISMATCH, RANGE
        Ok(18 | 20 | 25) => StoreError::Invalid(text),
        // ERROR (a table or column that is not there), CORRUPT, NOTADB
        Ok(1 | 11 | 26) => StoreError::Broken(text),
        // BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN and whatever else may pass.
        _ => StoreError::Unavailable(text),
    }
}

/// By the class of the SQLSTATE (PostgreSQL manual, appendix A).
fn postgres_fault(code: &str, text: String) -> StoreError {
    match code.get(..2) {
        // Integrity constraint violation.
        Some("23") => StoreError::AlreadyExists(text),
        // Data exception, program limit exceeded.
        Some("22" | "54") => StoreError::Invalid(text),
        // Authorization, catalog or schema name, syntax error or access rule violation (a missing table).
        Some("28" | "3D" | "3F" | "42") => StoreError::Broken(text),
        _ => StoreError::Unavailable(text),
    }
}
