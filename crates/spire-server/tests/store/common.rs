//! Databases and values for the tests of the store.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use ah_spire_wire::model::{Bundle, Entry, JwtKey, Selector, X509Authority};
use ah_testkit::mariadb::{ADMIN, MariaDb, PASSWORD};
use ah_testkit::postgres::Postgres;
use spiffe::{SpiffeId, TrustDomain};
use spire_server::store::{Agent, Created, Entries, Spender, SqlStore, StoreConfig};
use sqlx::Connection;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

/// A database that lasts as long as the test.
pub(crate) struct Database {
    pub(crate) config: StoreConfig,
    _folder: Option<TempDir>,
    _server: Option<Arc<dyn Any + Send + Sync>>,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        Self {
            config: sqlite_config(&folder.path().join("datastore.sqlite3")),
            _folder: Some(folder),
            _server: None,
        }
    }

    /// `None` when PostgreSQL is not installed.
    pub(crate) fn postgres(test: &str) -> Option<Self> {
        let server = Postgres::shared(test)?;
        Some(Self {
            config: postgres_config(&server.fresh_database()),
            _folder: None,
            _server: Some(server),
        })
    }

    /// `None` when MariaDB is not installed.
    pub(crate) fn mariadb(test: &str) -> Option<Self> {
        let server = MariaDb::shared(test)?;
        Some(Self {
            config: mariadb_config(&server.fresh_database()),
            _folder: None,
            _server: Some(server),
        })
    }

    pub(crate) async fn open(&self) -> SqlStore {
        SqlStore::open(&self.config).await.unwrap()
    }
}

/// The database itself.
pub(crate) async fn beside(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path);
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// A MariaDB database itself.
pub(crate) async fn beside_mariadb(config: &StoreConfig) -> MySqlConnection {
    let (server, name) = config.connection_string.rsplit_once('/').unwrap();
    let port = server.rsplit_once(':').unwrap().1.trim_end_matches(')');
    let options = MySqlConnectOptions::new()
        .host("127.0.0.1")
        .port(port.parse().unwrap())
        .username(ADMIN)
        .password(PASSWORD)
        .database(name.split('?').next().unwrap());
    MySqlConnection::connect_with(&options).await.unwrap()
}

/// All there are, as a cache reads them.
pub(crate) async fn all_entries(store: &impl Entries) -> Vec<Entry> {
    let mut all = Vec::new();
    store.each_entry(|entry| all.push(entry)).await.unwrap();
    all
}

pub(crate) fn sqlite_config(path: &Path) -> StoreConfig {
    StoreConfig {
        database_type: "sqlite3".into(),
        connection_string: path.display().to_string(),
        ..StoreConfig::default()
    }
}

pub(crate) fn postgres_config(url: &str) -> StoreConfig {
    StoreConfig {
        database_type: "postgres".into(),
        connection_string: format!("{url}?sslmode=disable"),
        max_open_conns: Some(8),
        ..StoreConfig::default()
    }
}

pub(crate) fn mariadb_config(dsn: &str) -> StoreConfig {
    StoreConfig {
        database_type: "mysql".into(),
        connection_string: format!("{dsn}?parseTime=true"),
        max_open_conns: Some(8),
        ..StoreConfig::default()
    }
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap()
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// One that differs from others by its path and selectors alone.
pub(crate) fn entry(path: &str, chosen: &[&str]) -> Entry {
    Entry::new(id(path), id("spire/agent/a"), selectors(chosen))
}

pub(crate) fn agent(name: &str, chosen: &[&str]) -> Agent {
    Agent {
        id: id(&format!("spire/agent/{name}")),
        attestation_type: "x509pop".into(),
        serial_number: "1234".into(),
        expires_at: 2_000_000_000,
        new_serial_number: String::new(),
        new_expires_at: 0,
        selectors: selectors(chosen),
        can_reattest: true,
        version: "1.16.0".into(),
    }
}

pub(crate) fn bundle(name: &str, key: u8) -> Bundle {
    Bundle {
        trust_domain: domain(name),
        x509: vec![X509Authority {
            der: vec![key; 8],
            tainted: false,
        }],
        jwt: vec![JwtKey {
            spki: vec![key],
            id: format!("key-{key}"),
            expires_at: 2_000_000_000,
            tainted: true,
        }],
        wit: vec![JwtKey {
            spki: vec![key, key],
            id: format!("wit-{key}"),
            expires_at: 2_000_000_001,
            tainted: true,
        }],
        refresh_hint: 60,
        sequence: 3,
    }
}

/// The entry as the store has it; there was none like it.
pub(crate) async fn add(store: &impl Entries, entry: Entry) -> Entry {
    match store.create_entry(entry).await.unwrap() {
        Created::New(entry) => entry,
        Created::Similar(entry) => unreachable!("there was {entry:?}"),
    }
}

/// Who takes a join token at `now`, and is remembered for 100 seconds.
pub(crate) fn spender(key: &str, now: i64) -> Spender {
    Spender {
        key: key.into(),
        now,
        until: now + 100,
    }
}
