//! From `--db` to a store (AP-11).

use std::path::PathBuf;

use ah_identity_provider::{Code, Explained};
use sqlx::postgres::PgConnectOptions;

use super::{
    Change, ExecutorId, ExecutorRecord, HistoryEntry, PostgresStore, Revocation, RevocationTarget,
    SqliteStore, Store, StoreError,
};

/// A database that `--db` can name. Its `Debug` may be logged: no password is in it.
#[derive(Clone)]
pub enum DbUrl {
    /// `sqlite:PATH` or `sqlite://PATH`.
    Sqlite(PathBuf),
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?…` as libpq reads it.
    Postgres(Box<PgConnectOptions>),
}

impl DbUrl {
    /// Reads what `--db` or `AH_DB` holds.
    ///
    /// # Errors
    /// Names the flag and the forms it takes, and never what was typed in the place of a password.
    pub fn parse(url: &str) -> Result<Self, Explained> {
        if let Some(rest) = url.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return match path {
                "" | "/" => Err(bad_url("no path follows sqlite:")),
                ":memory:" => Err(bad_url("a registry in memory would forget its revocations")),
                _ if path.contains(['?', '\0']) => {
                    Err(bad_url("an SQLite path takes no options after `?`"))
                }
                _ => Ok(Self::Sqlite(PathBuf::from(path))),
            };
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            // The parser's own message may quote the URL and with it the password.
            let options: PgConnectOptions = url
                .parse()
                .map_err(|_| bad_url("it starts like a PostgreSQL URL but is not a valid one"))?;
            return Ok(Self::Postgres(Box::new(options)));
        }
        Err(match url.split_once(':') {
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                bad_url(&format!("unknown kind of database {scheme:?}"))
            }
            _ => bad_url("it does not say which kind of database it is"),
        })
    }
}

impl std::fmt::Debug for DbUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::Postgres(options) => f
                .debug_tuple("Postgres")
                .field(&options.get_host())
                .field(&options.get_port())
                .field(&options.get_database())
                .finish(),
        }
    }
}

fn bad_url(cause: &str) -> Explained {
    Explained::new(Code::Usage, "bad database URL in --db (AH_DB)")
        .cause(cause)
        .hint("give sqlite:PATH, sqlite://PATH or postgres://USER@HOST:PORT/DATABASE")
}

/// The store that `--db` names.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// One file.
    Sqlite(SqliteStore),
    /// A server.
    Postgres(PostgresStore),
}

impl AnyStore {
    /// Opens the database, makes and migrates what is missing.
    ///
    /// # Errors
    /// See [`DbUrl::parse`], [`SqliteStore::open`] and [`PostgresStore::open`].
    pub async fn open(url: &str) -> Result<Self, Explained> {
        match DbUrl::parse(url)? {
            DbUrl::Sqlite(path) => Ok(Self::Sqlite(SqliteStore::open(&path).await?)),
            DbUrl::Postgres(options) => Ok(Self::Postgres(PostgresStore::open(*options).await?)),
        }
    }

    /// Closes all connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }
}

impl Store for AnyStore {
    async fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.apply(changes).await,
            Self::Postgres(store) => store.apply(changes).await,
        }
    }

    async fn executors(&self) -> Result<Vec<ExecutorRecord>, StoreError> {
        match self {
            Self::Sqlite(store) => store.executors().await,
            Self::Postgres(store) => store.executors().await,
        }
    }

    async fn revocations(&self) -> Result<Vec<(RevocationTarget, Revocation)>, StoreError> {
        match self {
            Self::Sqlite(store) => store.revocations().await,
            Self::Postgres(store) => store.revocations().await,
        }
    }

    async fn revocation_version(&self) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(store) => store.revocation_version().await,
            Self::Postgres(store) => store.revocation_version().await,
        }
    }

    async fn history(&self, id: &ExecutorId) -> Result<Vec<HistoryEntry>, StoreError> {
        match self {
            Self::Sqlite(store) => store.history(id).await,
            Self::Postgres(store) => store.history(id).await,
        }
    }

    async fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.check().await,
            Self::Postgres(store) => store.check().await,
        }
    }
}
