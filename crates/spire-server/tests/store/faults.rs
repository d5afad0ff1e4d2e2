//! The store under faults (inventory §7 DataStore sql): killed processes, full disks, locks, restarts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;

use ah_testkit::child;
use ah_testkit::mariadb::MariaDb;
use ah_testkit::postgres::Postgres;
use spire_server::store::{
    Bundles, Entries, JoinToken, JoinTokens, SqlStore, StoreConfig, StoreError,
};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

use crate::common::{
    Database, add, all_entries, beside, bundle, domain, entry, mariadb_config, postgres_config,
    spender, sqlite_config,
};

async fn open(path: &Path) -> SqlStore {
    SqlStore::open(&sqlite_config(path)).await.unwrap()
}

async fn count(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// Every entry has both of its selectors and its event, and nothing is without an entry.
async fn is_whole(path: &Path) {
    let mut connection = beside(path).await;
    let entries = count(&mut connection, "SELECT count(*) FROM registered_entries").await;
    let selectors = "SELECT count(*) FROM selectors s JOIN registered_entries e ON e.id = s.registered_entry_id";
    assert_eq!(count(&mut connection, selectors).await, 2 * entries);
    assert_eq!(
        count(&mut connection, "SELECT count(*) FROM selectors").await,
        2 * entries
    );
    let events = "SELECT count(*) FROM registered_entries_events v JOIN registered_entries e ON e.entry_id = v.entry_id";
    assert_eq!(count(&mut connection, events).await, entries);
    assert_eq!(
        count(
            &mut connection,
            "SELECT count(*) FROM registered_entries_events"
        )
        .await,
        entries
    );
    let check: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(check, "ok");
}

async fn ids(store: &SqlStore) -> BTreeSet<String> {
    let all = all_entries(store).await;
    all.into_iter().map(|entry| entry.id).collect()
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    const NAME: &str = "faults::kill_9_loses_nothing_that_was_acknowledged";
    if let Some(path) = child::argument() {
        let store = open(Path::new(&path)).await;
        for n in 0.. {
            let made = add(
                &store,
                entry(&format!("p{}/w{n}", std::process::id()), &["t:a", "t:b"]),
            )
            .await;
            println!("acknowledged {}", made.id);
        }
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("datastore.sqlite3");
    let mut acknowledged = BTreeSet::new();
    for round in 1..=3 {
        let mut killed = child::start(NAME, &path);
        let mut output = BufReader::new(killed.stdout.take().unwrap()).lines();
        let mut named = |line: std::io::Result<String>| {
            let id = line.ok()?.strip_prefix("acknowledged ")?.to_owned();
            acknowledged.insert(id);
            Some(())
        };
        let heard = output
            .by_ref()
            .filter_map(&mut named)
            .take(round * 17)
            .count();
        assert_eq!(heard, round * 17);
        killed.kill().unwrap();
        killed.wait().unwrap();
        // What it had said before it died counts too. The very last line may be half of one.
        let rest: Vec<_> = output.collect();
        for line in rest.into_iter().rev().skip(1) {
            named(line);
        }
        let store = open(&path).await;
        let known = ids(&store).await;
        let lost: Vec<_> = acknowledged.difference(&known).collect();
        assert!(lost.is_empty(), "{lost:?}");
        store.close().await;
        is_whole(&path).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_unavailable_until_there_is_space() {
    const NAME: &str = "faults::a_full_disk_is_unavailable_until_there_is_space";
    if let Some(path) = child::argument() {
        let store = open(Path::new(&path)).await;
        let mut made = BTreeSet::new();
        let full = loop {
            match store
                .create_entry(entry(&format!("w{}", made.len()), &["t:a", "t:b"]))
                .await
            {
                Ok(spire_server::store::Created::New(entry)) => made.insert(entry.id),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            };
        };
        assert!(matches!(full, StoreError::Unavailable(_)), "{full:?}");
        assert_eq!(ids(&store).await, made, "reading goes on");
        child::lift_file_limit();
        made.insert(add(&store, entry("after", &["t:a", "t:b"])).await.id);
        assert_eq!(ids(&store).await, made);
        store.close().await;
        is_whole(Path::new(&path)).await;
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("datastore.sqlite3");
    // Made before the limit, which is too low for the first pages.
    open(&path).await.close().await;
    // The limit is on each file: the write-ahead log meets it first.
    let status = child::command_with_file_limit(64, NAME, &path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_locked_database_is_read_and_written_when_it_is_free() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("datastore.sqlite3");
    let mut config = sqlite_config(&path);
    config.connection_string += "?_busy_timeout=20";
    let store = SqlStore::open(&config).await.unwrap();
    let made = add(&store, entry("w", &["t:a", "t:b"])).await;
    let mut other = beside(&path).await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let locked = store.create_entry(entry("v", &["t:a", "t:b"])).await;
    assert!(
        matches!(locked, Err(StoreError::Unavailable(_))),
        "{locked:?}"
    );
    assert_eq!(ids(&store).await, [made.id.clone()].into());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    add(&store, entry("v", &["t:a", "t:b"])).await;
    is_whole(&path).await;
}

#[tokio::test]
async fn a_removed_file_takes_no_writes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("datastore.sqlite3");
    let store = open(&path).await;
    std::fs::remove_file(&path).unwrap();
    match store.create_entry(entry("w", &["t:a"])).await {
        Err(StoreError::Unavailable(text)) => assert!(text.contains("datastore.sqlite3"), "{text}"),
        other => panic!("{other:?}"),
    }
}

// A client that hangs up drops its call wherever it stands.
#[tokio::test]
async fn a_call_that_is_dropped_leaves_nothing_half_done() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("datastore.sqlite3");
    let sqlite = open(&path).await;
    dropped_calls(&sqlite).await;
    sqlite.close().await;
    is_whole(&path).await;
    if let Some(database) = Database::postgres("dropped calls") {
        dropped_calls(&database.open().await).await;
    }
    if let Some(database) = Database::mariadb("dropped calls") {
        dropped_calls(&database.open().await).await;
    }
}

async fn dropped_calls(store: &SqlStore) {
    let mut finished = 0;
    for polls in 1..40 {
        let mut call = Box::pin(store.create_entry(entry(&format!("w{polls}"), &["t:a", "t:b"])));
        // Dropped after so many steps; some get to their end.
        for _ in 0..polls {
            if let std::task::Poll::Ready(done) = futures_poll(&mut call).await {
                done.unwrap();
                finished += 1;
                break;
            }
        }
    }
    let all = all_entries(store).await;
    assert!(all.len() >= finished);
    assert!(all.iter().all(|entry| entry.selectors.len() == 2));
    assert_eq!(store.entry_events(Some(0)).await.unwrap().len(), all.len());
    add(store, entry("after", &["t:a", "t:b"])).await;
}

/// One step, when there is something to do.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    let mut first = true;
    std::future::poll_fn(
        |context| match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Pending if first => {
                first = false;
                std::task::Poll::Pending
            }
            other => std::task::Poll::Ready(other),
        },
    )
    .await
}

#[tokio::test]
async fn a_postgresql_that_restarts_is_used_again() {
    let Some(server) = Postgres::private("a_postgresql_that_restarts_is_used_again") else {
        return;
    };
    let config = postgres_config(&server.fresh_database());
    restarted(&config, || server.stop(), || server.start()).await;
}

#[tokio::test]
async fn a_mariadb_that_was_killed_is_used_again_and_one_that_is_read_only_is_read() {
    let Some(server) = MariaDb::private("a MariaDB that is killed") else {
        return;
    };
    let config = mariadb_config(&server.fresh_database());
    restarted(&config, || server.stop(), || server.start()).await;

    server.set_read_only(true);
    let store = SqlStore::open(&config).await.unwrap();
    assert_eq!(all_entries(&store).await.len(), 1);
    let refused = store.create_entry(entry("v", &["t:a"])).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    server.set_read_only(false);
    add(&store, entry("v", &["t:a"])).await;
}

async fn restarted(config: &StoreConfig, stop: impl Fn(), start: impl Fn()) {
    let store = SqlStore::open(config).await.unwrap();
    store.put_bundle(&bundle("a.test", 1)).await.unwrap();
    let token = JoinToken {
        token: "t".into(),
        expires_at: 1,
    };
    store.create_join_token(&token).await.unwrap();
    stop();
    let away = store.bundle(&domain("a.test")).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "{away:?}");
    let away = store.consume_join_token("t", &spender("k", 1)).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))));
    start();
    assert_eq!(
        store.bundle(&domain("a.test")).await.unwrap(),
        Some(bundle("a.test", 1))
    );
    assert!(
        store
            .consume_join_token("t", &spender("k", 1))
            .await
            .unwrap()
            .is_some()
    );
    let made = add(&store, entry("w", &["t:a"])).await;
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(made));
}

#[tokio::test]
async fn a_postgresql_that_ends_connections_is_used_again() {
    let Some(server) = Postgres::shared("a_postgresql_that_ends_connections_is_used_again") else {
        return;
    };
    let url = server.fresh_database();
    let store = SqlStore::open(&postgres_config(&url)).await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let made = add(&store, entry("w", &["t:a"])).await;
    server.sql(
        "postgres",
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    );
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(made));
}

#[tokio::test]
async fn a_read_only_postgresql_is_read() {
    let Some(server) = Postgres::shared("a_read_only_postgresql_is_read") else {
        return;
    };
    let url = server.fresh_database();
    let config = postgres_config(&url);
    let store = SqlStore::open(&config).await.unwrap();
    let made = add(&store, entry("w", &["t:a"])).await;
    store.close().await;
    let name = url.rsplit('/').next().unwrap();
    let mut connection = sqlx::PgConnection::connect(&config.connection_string)
        .await
        .unwrap();
    let only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    sqlx::query(AssertSqlSafe(only))
        .execute(&mut connection)
        .await
        .unwrap();
    let store = SqlStore::open(&config).await.unwrap();
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(made));
    let refused = store.create_entry(entry("v", &["t:a"])).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
}

// inventory §7 DataStore sql ro_connection_string: the caches' full reads go there.
#[tokio::test]
async fn a_replica_answers_what_may_be_stale() {
    let Some(server) = Postgres::shared("a_replica_answers_what_may_be_stale") else {
        return;
    };
    let config = postgres_config(&server.fresh_database());
    behind(config, postgres_config(&server.fresh_database())).await;
}

// inventory §7 DataStore sql ro_connection_string
#[tokio::test]
async fn a_replica_of_mariadb_answers_what_may_be_stale() {
    let Some(server) = MariaDb::shared("a_replica_of_mariadb_answers_what_may_be_stale") else {
        return;
    };
    let config = mariadb_config(&server.fresh_database());
    behind(config, mariadb_config(&server.fresh_database())).await;
}

async fn behind(mut config: StoreConfig, replica: StoreConfig) {
    let behind = SqlStore::open(&replica).await.unwrap();
    let old = add(&behind, entry("old", &["t:a"])).await;
    config.ro_connection_string = replica.connection_string;
    let store = SqlStore::open(&config).await.unwrap();
    let new = add(&store, entry("new", &["t:a"])).await;
    assert_eq!(ids(&store).await, [old.id.clone()].into());
    assert_eq!(store.entry_events(None).await.unwrap()[0].id, old.id);
    assert_eq!(store.entry(&new.id).await.unwrap(), Some(new));
    assert_eq!(store.entry(&old.id).await.unwrap(), None);
}
