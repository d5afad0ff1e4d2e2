//! The store in SQL: one implementation, three dialects.
//!
//! The schema, the texts in its columns and the blobs are upstream's. Statements are written for PostgreSQL;
//! [`connection`] knows how little SQLite differs, and [`mysql`] how MySQL does.

mod agents;
mod arg;
mod batch;
mod bundles;
mod connection;
mod entries;
mod events;
mod federation;
mod filter;
mod holdings;
mod journals;
mod mysql;
mod place;
mod schema;
mod tokens;
mod writers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Database;
use sqlx::mysql::{MySql, MySqlConnectOptions};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, Postgres};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use time::OffsetDateTime;
use time::macros::format_description;

use self::connection::{Arg, Connection, fault};
use self::place::{Place, Shared};
use self::writers::Writers;
use super::config::{BadConfig, StoreConfig, Target};
use super::{Page, Paged, StoreError};

/// How long a caller waits for a connection, a new one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Upstream's default for `max_open_conns`.
const MAX_CONNECTIONS: u32 = 100;

/// Connections that read an SQLite file beside the one that writes.
const SQLITE_READERS: u32 = 4;

/// Connections that nobody used for this long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A datastore in SQLite, PostgreSQL or MySQL. Clones share its connections.
#[derive(Clone, Debug)]
pub struct SqlStore {
    pools: Pools,
}

#[derive(Clone, Debug)]
enum Pools {
    Sqlite {
        path: PathBuf,
        writers: Writers,
        readers: SqlitePool,
    },
    Postgres(Arc<Shared<Postgres>>),
    MySql(Arc<Shared<MySql>>),
}

/// A datastore that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration has to change.
    #[error("datastore: {0}")]
    Config(#[from] BadConfig),
    /// The database said no, or has a schema that is not ours to use. Names the database and the remedy.
    #[error("{0}")]
    Database(String),
}

impl SqlStore {
    /// Connects, makes what is missing and brings an older schema up to date.
    ///
    /// # Errors
    /// Names the key or the database and what to do.
    pub async fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let most = config.max_open_conns.filter(|n| *n > 0);
        let most = most.unwrap_or(MAX_CONNECTIONS);
        let most = most.min(config.max_idle_conns.filter(|n| *n > 0).unwrap_or(most));
        let lifetime = config.max_lifetime()?;
        let (place, pools) = match config.target()? {
            Target::Sqlite(options, path) => {
                let place = path.display().to_string();
                private_file(&path).map_err(|e| cannot_open(&place, e))?;
                let pool = || {
                    SqlitePoolOptions::new()
                        .acquire_timeout(ACQUIRE_TIMEOUT)
                        // It would wake the thread of the database, which is gone only when the connection is.
                        .test_before_acquire(false)
                        .idle_timeout(None)
                        .max_lifetime(lifetime)
                };
                let writer = sqlite_writer(|| pool().max_connections(1), &options).await;
                let writer = writer.map_err(|e| cannot_open(&place, fault(e)))?;
                let readers = pool()
                    .max_connections(most.min(SQLITE_READERS))
                    .connect_lazy_with(options.pragma("query_only", "ON"));
                let pools = Pools::Sqlite {
                    path,
                    writers: Writers::new(writer, lifetime),
                    readers,
                };
                (place, pools)
            }
            Target::Postgres(options) => {
                let at = place(&options);
                let open = |options: PgConnectOptions| {
                    let options = options.application_name("spire-server");
                    Place::new(pool(most, lifetime), options, config.aws.as_ref())
                };
                let replica = match config.replica()? {
                    Some(Target::Postgres(options)) => Some(open(*options)),
                    _ => None,
                };
                let primary = open(*options);
                primary.acquire().await.map_err(|e| cannot_open(&at, e))?;
                (at, Pools::Postgres(Arc::new(Shared { primary, replica })))
            }
            Target::MySql(options) => {
                let at = mysql::place(&options);
                let open = |options: MySqlConnectOptions| {
                    let pool = mysql::ready(pool(most, lifetime));
                    Place::new(pool, mysql::options(options), config.aws.as_ref())
                };
                let replica = match config.replica()? {
                    Some(Target::MySql(options)) => Some(open(*options)),
                    _ => None,
                };
                let primary = open(*options);
                primary.acquire().await.map_err(|e| cannot_open(&at, e))?;
                (at, Pools::MySql(Arc::new(Shared { primary, replica })))
            }
        };
        let store = Self { pools };
        schema::bring_up_to_date(&store, &place, config.disable_migration).await?;
        Ok(store)
    }

    /// Whether other servers may write to it: an SQLite file has one server.
    pub fn is_shared(&self) -> bool {
        !matches!(self.pools, Pools::Sqlite { .. })
    }

    /// Closes all connections; SQLite then folds its write-ahead log into the file.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite {
                writers, readers, ..
            } => {
                readers.close().await;
                writers.close().await;
            }
            Pools::Postgres(shared) => shared.close().await,
            Pools::MySql(shared) => shared.close().await,
        }
    }

    /// A transaction that writes. SQLite has one at a time.
    async fn begin(&self) -> Result<Connection, StoreError> {
        match &self.pools {
            Pools::Sqlite { path, writers, .. } => {
                // A file that was removed underneath would take writes that nobody ever reads.
                std::fs::metadata(path).map_err(|e| {
                    StoreError::Unavailable(format!("datastore {}: {e}", path.display()))
                })?;
                writers.begin().await
            }
            Pools::Postgres(shared) => {
                Connection::postgres(shared.primary.acquire().await?, "BEGIN").await
            }
            Pools::MySql(shared) => {
                Connection::mysql(shared.primary.acquire().await?, mysql::BEGIN).await
            }
        }
    }

    /// A transaction that reads one state, the newest.
    async fn read(&self) -> Result<Connection, StoreError> {
        match &self.pools {
            Pools::Sqlite { readers, .. } => {
                let connection = readers.acquire().await.map_err(fault)?;
                Ok(Connection::sqlite(connection))
            }
            Pools::Postgres(shared) => Connection::snapshot(&shared.primary).await,
            Pools::MySql(shared) => mysql::snapshot(&shared.primary).await,
        }
    }

    /// As [`SqlStore::read`], from the replica where there is one: the state may be some seconds old.
    async fn read_stale(&self) -> Result<Connection, StoreError> {
        match &self.pools {
            Pools::Sqlite { .. } => self.read().await,
            Pools::Postgres(shared) => Connection::snapshot(shared.stale()).await,
            Pools::MySql(shared) => mysql::snapshot(shared.stale()).await,
        }
    }
}

/// How connections to a database that servers share are kept.
fn pool<DB: Database>(most: u32, lifetime: Option<Duration>) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(most)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .max_lifetime(lifetime)
}

/// SQLite would make the file readable by all; there are join tokens in it. Its side files get the same mode.
fn private_file(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

/// The database as people name it, without the password.
fn place(options: &PgConnectOptions) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    format!(
        "postgres://{user}@{}:{}/{database}",
        options.get_host(),
        options.get_port()
    )
}

/// The first connection puts a new file into WAL mode. SQLite does not wait there for another process that is about the
/// same, whatever `busy_timeout` says.
async fn sqlite_writer(
    pool: impl Fn() -> SqlitePoolOptions,
    options: &SqliteConnectOptions,
) -> Result<SqlitePool, sqlx::Error> {
    let end = Instant::now() + ACQUIRE_TIMEOUT;
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

fn cannot_open(place: &str, why: impl std::fmt::Display) -> OpenError {
    OpenError::Database(format!(
        "cannot open datastore {place}: {why}; check connection_string, and that this user may read and write there"
    ))
}

/// Now, as upstream's columns of times hold it. Whole seconds: every reader rounds alike.
fn now() -> Arg {
    time_text(OffsetDateTime::now_utc().unix_timestamp())
}

/// The same of a moment in Unix seconds. Years that cannot be written are cut to the last that can.
fn time_text(seconds: i64) -> Arg {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]+00:00");
    let last = time::macros::datetime!(9999-12-31 23:59:59 UTC);
    let moment = OffsetDateTime::from_unix_timestamp(seconds).map_or(last, |t| t.min(last));
    Arg::from(moment.format(&format).unwrap_or_default())
}

/// 0 is no moment.
fn optional_time(seconds: i64) -> Arg {
    if seconds == 0 {
        Arg::Null
    } else {
        time_text(seconds)
    }
}

/// The row after which a page begins.
fn after(page: &Page) -> Result<i64, StoreError> {
    if page.token.is_empty() {
        return Ok(0);
    }
    let bad = || StoreError::Invalid(format!("could not parse token '{}'", page.token));
    let digits = page.token.bytes().all(|byte| byte.is_ascii_digit());
    let id: u64 = page.token.parse().ok().filter(|_| digits).ok_or_else(bad)?;
    Ok(i64::try_from(id).unwrap_or(i64::MAX))
}

/// One row more than asked for shows whether there is another page.
fn limit(page: &Page) -> i64 {
    match page.size {
        0 => i64::MAX,
        size => i64::from(size) + 1,
    }
}

/// Cuts what [`limit`] asked for too much. `id` is the row number that the next page begins after.
fn cut<R>(mut rows: Vec<R>, page: &Page, id: impl Fn(&R) -> i64) -> Paged<R> {
    let size = usize::try_from(page.size).unwrap_or(usize::MAX);
    let mut next = String::new();
    if size > 0 && rows.len() > size {
        rows.truncate(size);
        next = rows
            .last()
            .map(|row| id(row).to_string())
            .unwrap_or_default();
    }
    Paged { rows, next }
}
