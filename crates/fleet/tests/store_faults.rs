//! The store and its writer under faults (RG-1, AP-11): locks, full disks, crashes, restarts, bad input.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ah_fleet::store::{
    AnyStore, Change, DbUrl, Durability, HISTORY_LIMIT, Revocation, RevocationTarget, SqliteStore,
    Store, StoreError, StoreHealth, StoreWriter,
};
use ah_identity_provider::Code;
use ah_testkit::child;
use ah_testkit::postgres::Postgres;
use common::{at, enrolled, enrollment, id};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

/// Generous: what is waited for comes at once, or after one backoff.
const DEADLINE: Duration = Duration::from_secs(60);

fn writer_of(store: impl Store) -> StoreWriter {
    let (writer, task) = StoreWriter::new(store);
    tokio::spawn(task.run());
    writer
}

async fn wait(writer: &StoreWriter, what: impl FnMut(&StoreHealth) -> bool) -> StoreHealth {
    let mut health = writer.watch_health();
    let found = tokio::time::timeout(DEADLINE, health.wait_for(what)).await;
    found.unwrap().unwrap().clone()
}

async fn ids(store: &impl Store) -> BTreeSet<String> {
    let known = store.executors().await.unwrap();
    known
        .into_iter()
        .map(|executor| executor.id.to_string())
        .collect()
}

async fn refusal(url: &str) -> String {
    match AnyStore::open(url).await {
        Ok(_) => panic!("{url} was taken"),
        Err(explained) => explained.report(),
    }
}

// RG-1: locked by another process.
#[tokio::test]
async fn rg_1_a_locked_database_defers_and_catches_up() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let writer = writer_of(store.clone());
    let first = writer.submit(enrolled(&enrollment("before", 1))).await;
    assert_eq!(first, Durability::Committed);

    let options = SqliteConnectOptions::new().filename(&path);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE")
        .execute(&mut other)
        .await
        .unwrap();
    let during = writer.submit(enrolled(&enrollment("during", 2))).await;
    assert_eq!(during, Durability::Deferred);
    let health = wait(&writer, |h| !h.ok).await;
    assert!(health.last_error.is_some());
    // Nobody waits while the store is known to be away, and its executors fold.
    for second in 3..1_000 {
        let one = writer.submit(enrolled(&enrollment("many", second))).await;
        assert_eq!(one, Durability::Deferred);
    }
    assert_eq!(writer.health().pending, 2);
    assert!(writer.health().lag > Duration::ZERO);
    let bar = Revocation {
        at: at(5),
        reason: "stolen".into(),
    };
    let target = RevocationTarget::Id(id("many"));
    let revoked = writer
        .commit(Change::Revoked(target.clone(), bar.clone()))
        .await;
    assert!(
        matches!(revoked, Err(StoreError::Unavailable(_))),
        "{revoked:?}"
    );

    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    writer.close(DEADLINE).await.unwrap();
    let health = writer.health();
    assert!(health.ok && health.pending == 0 && health.last_error.is_none());
    assert_eq!(
        ids(&store).await,
        ["before", "during", "many"].map(str::to_owned).into()
    );
    let known = store.executors().await.unwrap();
    let many = known.iter().find(|k| k.id == id("many")).unwrap();
    assert_eq!((many.first_enrolled, many.last_enrolled), (at(3), at(999)));
    assert_eq!(store.revocations().await.unwrap(), [(target, bar)]);
}

// RG-1: the process is killed while it commits.
#[tokio::test]
async fn rg_1_kill_9_loses_nothing_that_was_acknowledged() {
    if let Some(path) = child::argument() {
        let store = SqliteStore::open(Path::new(&path)).await.unwrap();
        let writer = writer_of(store);
        for round in 0.. {
            let waits: Vec<_> = (0..10)
                .map(|n| {
                    let name = format!("{}-{round}-{n}", std::process::id());
                    let committed = writer.submit(enrolled(&enrollment(&name, round)));
                    (name, committed)
                })
                .collect();
            for (name, committed) in waits {
                assert_eq!(committed.await, Durability::Committed);
                println!("acknowledged {name}");
            }
        }
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    let mut acknowledged = BTreeSet::new();
    for round in 1..=3 {
        let mut killed = child::start("rg_1_kill_9_loses_nothing_that_was_acknowledged", &path);
        let mut output = BufReader::new(killed.stdout.take().unwrap()).lines();
        let mut named = |line: std::io::Result<String>| {
            let name = line.ok()?.strip_prefix("acknowledged ")?.to_owned();
            acknowledged.insert(name);
            Some(())
        };
        let counted = output
            .by_ref()
            .filter_map(&mut named)
            .take(round * 67)
            .count();
        assert_eq!(counted, round * 67);
        killed.kill().unwrap();
        killed.wait().unwrap();
        // What it had said before it died counts too. The very last line may be half of one.
        let rest: Vec<_> = output.collect();
        for line in rest.into_iter().rev().skip(1) {
            named(line);
        }
        let store = SqliteStore::open(&path).await.unwrap();
        let known = ids(&store).await;
        let lost: Vec<_> = acknowledged.difference(&known).collect();
        assert!(lost.is_empty(), "{lost:?}");
        store.close().await;
    }
}

// RG-1: no space left.
#[tokio::test]
async fn rg_1_a_full_disk_defers_and_catches_up() {
    const NAME: &str = "rg_1_a_full_disk_defers_and_catches_up";
    if let Some(path) = child::argument() {
        let store = SqliteStore::open(Path::new(&path)).await.unwrap();
        let writer = writer_of(store.clone());
        for n in 0..2_000 {
            // Dropped, not awaited: the writer goes on by itself.
            drop(writer.submit(enrolled(&enrollment(&format!("e{n}"), n))));
        }
        let health = wait(&writer, |h| !h.ok).await;
        assert!(health.last_error.is_some());
        assert!(ids(&store).await.len() < 2_000);
        child::lift_file_limit();
        writer.close(DEADLINE).await.unwrap();
        assert!(writer.health().ok);
        assert_eq!(ids(&store).await.len(), 2_000);
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    // Made before the limit, which is too low for the first pages.
    SqliteStore::open(&path).await.unwrap().close().await;
    let status = child::command_with_file_limit(64, NAME, &path)
        .status()
        .unwrap();
    assert!(status.success());
}

// RG-1
#[tokio::test]
async fn rg_1_a_postgresql_that_restarts_is_caught_up_with() {
    let Some(server) = Postgres::private("rg_1_a_postgresql_that_restarts_is_caught_up_with")
    else {
        return;
    };
    let url = server.fresh_database();
    let store = AnyStore::open(&url).await.unwrap();
    let writer = writer_of(store.clone());
    let before = writer.submit(enrolled(&enrollment("before", 1))).await;
    assert_eq!(before, Durability::Committed);
    server.stop();
    let during = writer.submit(enrolled(&enrollment("during", 2))).await;
    assert_eq!(during, Durability::Deferred);
    let check = store.check().await;
    assert!(
        matches!(check, Err(StoreError::Unavailable(_))),
        "{check:?}"
    );
    let unreachable = refusal(&url).await;
    assert!(unreachable.contains("pg_isready"), "{unreachable}");
    server.start();
    wait(&writer, |h| h.ok && h.pending == 0).await;
    let after = writer.submit(enrolled(&enrollment("after", 3))).await;
    assert_eq!(after, Durability::Committed);
    assert_eq!(
        ids(&store).await,
        ["after", "before", "during"].map(str::to_owned).into()
    );
    writer.close(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_change_that_can_never_be_stored_holds_nothing_up() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(&folder.path().join("registry.db"))
        .await
        .unwrap();
    let (writer, task) = StoreWriter::new(store.clone());
    // All in one batch, since the task does not run yet.
    let good: Vec<_> = (0..50)
        .map(|n| writer.submit(enrolled(&enrollment(&format!("good-{n}"), 1))))
        .collect();
    let bad = writer.submit(enrolled(&enrollment("bad\0id", 1)));
    let last = writer.submit(enrolled(&enrollment("last", 1)));
    tokio::spawn(task.run());
    for one in good {
        assert_eq!(one.await, Durability::Committed);
    }
    assert_eq!(bad.await, Durability::Refused);
    assert_eq!(last.await, Durability::Committed);
    let health = writer.health();
    assert!(health.ok);
    assert_eq!((health.refused, health.rows), (1, 51));
    assert_eq!(ids(&store).await.len(), 51);
}

#[tokio::test]
async fn closing_while_the_store_is_away_says_what_is_lost() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let writer = writer_of(store);
    std::fs::remove_file(&path).unwrap();
    let gone = writer.submit(enrolled(&enrollment("a", 1))).await;
    assert_eq!(gone, Durability::Deferred);
    let lost = writer.close(Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(lost.unwritten, 1);
}

#[tokio::test]
async fn a_writer_whose_task_died_leaves_nobody_waiting() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(&folder.path().join("registry.db"))
        .await
        .unwrap();
    let (writer, task) = StoreWriter::new(store);
    let waits = writer.submit(enrolled(&enrollment("a", 1)));
    drop(task);
    assert_eq!(waits.await, Durability::Deferred);
}

// AP-11
#[tokio::test]
async fn ap_11_a_bad_url_names_flag_and_forms_and_no_password() {
    for url in [
        "",
        "registry.db",
        "mysql://root:secret@db/x",
        "sqlite:",
        "sqlite://",
        "sqlite::memory:",
        "sqlite:/a?mode=ro",
        "postgres://u:secret@[::1/x",
        "postgres://u:secret@db:port/x",
    ] {
        let error = DbUrl::parse(url).unwrap_err();
        assert_eq!(error.code, Code::Usage);
        let report = error.report();
        assert!(report.contains("--db (AH_DB)"), "{report}");
        assert!(report.contains("sqlite:PATH"), "{report}");
        assert!(!report.contains("secret"), "{report}");
    }
    for (url, path) in [
        ("sqlite:/var/lib/ah/x.db", "/var/lib/ah/x.db"),
        ("sqlite:///var/lib/ah/x.db", "/var/lib/ah/x.db"),
        ("sqlite:x.db", "x.db"),
        ("sqlite://x.db", "x.db"),
    ] {
        assert!(matches!(DbUrl::parse(url), Ok(DbUrl::Sqlite(p)) if p == Path::new(path)));
    }
    let postgres = DbUrl::parse("postgres://u:secret@db:5433/fleet?sslmode=require").unwrap();
    assert!(!format!("{postgres:?}").contains("secret"));
}

// AP-11
#[tokio::test]
async fn ap_11_a_file_that_is_no_registry_is_refused_and_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("text");
    std::fs::write(
        &text,
        "not a database at all, but long enough to look at\n".repeat(100),
    )
    .unwrap();
    let before = std::fs::read(&text).unwrap();
    let report = refusal(&format!("sqlite:{}", text.display())).await;
    assert!(report.contains("not an SQLite database"), "{report}");
    assert_eq!(std::fs::read(&text).unwrap(), before);

    let other = folder.path().join("other.db");
    let options = format!("sqlite:{}", other.display());
    let options = SqliteConnectOptions::from_str(&options)
        .unwrap()
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("CREATE TABLE cookies (a)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let report = refusal(&format!("sqlite:{}", other.display())).await;
    assert!(report.contains("another program"), "{report}");

    let missing = folder.path().join("no/such/registry.db");
    let report = refusal(&format!("sqlite:{}", missing.display())).await;
    assert!(report.contains("mkdir -p"), "{report}");
}

// AP-11
#[tokio::test]
async fn ap_11_a_file_of_the_first_schema_is_brought_up_to_date() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store
        .apply(&[enrolled(&enrollment("old", 0))])
        .await
        .unwrap();
    store.close().await;
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("DROP TRIGGER history_limit; PRAGMA user_version = 1")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();

    let store = SqliteStore::open(&path).await.unwrap();
    for second in 1..=50 {
        store
            .apply(&[enrolled(&enrollment("old", second))])
            .await
            .unwrap();
    }
    let history = store.history(&id("old")).await.unwrap();
    assert_eq!(history.len(), HISTORY_LIMIT, "the oldest is gone");
    assert_eq!(store.executors().await.unwrap().len(), 1);
}

// RG-1
#[tokio::test]
async fn rg_1_a_write_that_is_given_up_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&path);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let given_up = [enrolled(&enrollment("given-up", 0))];
    let write = store.apply(&given_up);
    tokio::time::timeout(Duration::from_millis(200), write)
        .await
        .expect_err("another process has the lock");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    for n in 0..3 {
        store
            .apply(&[enrolled(&enrollment(&n.to_string(), n))])
            .await
            .unwrap();
    }
    store.check().await.unwrap();
    let known = ids(&store).await;
    assert!(["0", "1", "2"].iter().all(|id| known.contains(*id)));
}

// AP-11
#[tokio::test]
async fn ap_11_a_newer_schema_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("PRAGMA user_version = 99")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let report = refusal(&format!("sqlite:{}", path.display())).await;
    assert!(report.contains("its schema has version 99"), "{report}");

    let Some(server) = Postgres::shared("ap_11_a_newer_schema_is_refused") else {
        return;
    };
    let url = server.fresh_database();
    AnyStore::open(&url).await.unwrap().close().await;
    let name = url.rsplit('/').next().unwrap();
    server.sql(name, "INSERT INTO ah_schema VALUES (99)");
    let report = refusal(&url).await;
    assert!(report.contains("its schema has version 99"), "{report}");
}
