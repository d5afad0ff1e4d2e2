//! One suite for every implementation of the store (RG-1), run on SQLite and on PostgreSQL (AP-11).
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;

use ah_fleet::store::{
    AnyStore, Change, HISTORY_LIMIT, HostRecord, Revocation, RevocationTarget, Store, StoreError,
};
use ah_identity_provider::ProviderKind;
use ah_testkit::postgres::Postgres;
use common::{at, enrolled, enrollment, id};
use tempfile::TempDir;

/// A database that lasts as long as the test.
struct Database {
    url: String,
    _folder: Option<TempDir>,
    _server: Option<Arc<Postgres>>,
}

impl Database {
    fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        Self {
            url: format!("sqlite:{}", folder.path().join("registry.db").display()),
            _folder: Some(folder),
            _server: None,
        }
    }

    fn postgres(test: &str) -> Option<Self> {
        let server = Postgres::shared(test)?;
        Some(Self {
            url: server.fresh_database(),
            _folder: None,
            _server: Some(server),
        })
    }

    async fn open(&self) -> AnyStore {
        AnyStore::open(&self.url)
            .await
            .unwrap_or_else(|e| panic!("{}", e.report()))
    }
}

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Database::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let Some(database) = super::Database::postgres(stringify!($case)) else { return };
                super::$case(&database).await;
            })*
        }
    };
}

on_both!(
    rg_1_what_was_applied_is_there_after_reopening,
    rg_1_a_later_enrollment_replaces_all_but_the_first_time,
    rg_1_an_older_enrollment_that_arrives_late_does_not_undo_a_newer,
    a_time_in_the_future_freezes_no_row,
    a_batch_is_applied_in_order,
    a_batch_with_a_refused_change_leaves_nothing,
    fl_1_bars_of_three_kinds_are_kept_and_lifted,
    fl_1_every_change_to_the_bars_moves_their_version,
    the_history_shows_every_certificate_and_provider,
    the_history_keeps_the_last_fifty,
    hostile_strings_come_back_as_they_went_in,
    concurrent_writers_lose_nothing,
    ten_thousand_executors_are_listed,
    ap_11_several_processes_start_on_one_empty_database,
    a_check_writes_nothing,
);

// RG-1
async fn rg_1_what_was_applied_is_there_after_reopening(database: &Database) {
    let store = database.open().await;
    let mut full = enrollment("spiffe://example.org/ah/agent/1", 1);
    full.provider = Some(ProviderKind::Spiffe);
    full.labels = [("zone".into(), "a".into())].into();
    full.host = HostRecord {
        hostname: "builder".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: "6.12".into(),
        cpus: 64,
        memory_bytes: u64::MAX,
    };
    // RFC 5280 §4.1.2.5: a certificate without an end.
    full.certificate.not_after = time::macros::datetime!(9999-12-31 23:59:59 UTC);
    let bar = Revocation {
        at: at(2),
        reason: "lost".into(),
    };
    let target = RevocationTarget::Id(full.id.clone());
    let changes = [
        enrolled(&full),
        Change::Revoked(target.clone(), bar.clone()),
    ];
    store.apply(&changes).await.unwrap();
    store.close().await;

    let store = database.open().await;
    let known = store.executors().await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].id, full.id);
    assert_eq!(known[0].name, full.name);
    assert_eq!(known[0].provider, full.provider);
    assert_eq!(known[0].version, full.version);
    assert_eq!(known[0].labels, full.labels);
    assert_eq!(known[0].host, full.host);
    assert_eq!(known[0].certificate, full.certificate);
    assert_eq!(known[0].first_enrolled, at(1));
    assert_eq!(known[0].last_enrolled, at(1));
    assert_eq!(store.revocations().await.unwrap(), [(target, bar)]);
}

// RG-1
async fn rg_1_a_later_enrollment_replaces_all_but_the_first_time(database: &Database) {
    let store = database.open().await;
    let mut later = enrollment("a", 2);
    later.name = "renamed".into();
    later.provider = None;
    later.labels = [("k".into(), "v".into())].into();
    store.apply(&[enrolled(&enrollment("a", 1))]).await.unwrap();
    store.apply(&[enrolled(&later)]).await.unwrap();
    let known = store.executors().await.unwrap().remove(0);
    assert_eq!(known.name, "renamed");
    assert_eq!(known.provider, None);
    assert_eq!(known.labels, later.labels);
    assert_eq!(known.certificate, later.certificate);
    assert_eq!((known.first_enrolled, known.last_enrolled), (at(1), at(2)));
}

// RG-1: an access point that catches up after an outage.
async fn rg_1_an_older_enrollment_that_arrives_late_does_not_undo_a_newer(database: &Database) {
    let store = database.open().await;
    let newer = enrollment("a", 10);
    store.apply(&[enrolled(&newer)]).await.unwrap();
    store.apply(&[enrolled(&enrollment("a", 5))]).await.unwrap();
    let known = store.executors().await.unwrap().remove(0);
    assert_eq!(known.last_enrolled, at(10));
    assert_eq!(known.certificate, newer.certificate);
    assert_eq!(store.history(&id("a")).await.unwrap().len(), 2);
}

async fn a_time_in_the_future_freezes_no_row(database: &Database) {
    let store = database.open().await;
    let mut wrong = enrollment("a", 1);
    wrong.at = time::OffsetDateTime::now_utc() + time::Duration::hours(5);
    store.apply(&[enrolled(&wrong)]).await.unwrap();
    store.apply(&[enrolled(&enrollment("a", 2))]).await.unwrap();
    assert_eq!(store.executors().await.unwrap()[0].last_enrolled, at(2));
}

async fn a_batch_is_applied_in_order(database: &Database) {
    let store = database.open().await;
    let target = RevocationTarget::Serial("0a".into());
    let bar = |reason: &str| Revocation {
        at: at(1),
        reason: reason.into(),
    };
    let changes = [
        Change::Seen(id("a"), (&enrollment("a", 1)).into()),
        enrolled(&enrollment("a", 2)),
        enrolled(&enrollment("a", 3)),
        Change::Revoked(target.clone(), bar("one")),
        Change::Reinstated(target.clone()),
        Change::Revoked(target.clone(), bar("two")),
    ];
    store.apply(&changes).await.unwrap();
    let known = store.executors().await.unwrap();
    assert_eq!(known[0].first_enrolled, at(1));
    assert_eq!(known[0].last_enrolled, at(3));
    assert_eq!(store.revocations().await.unwrap(), [(target, bar("two"))]);
    let history = store.history(&id("a")).await.unwrap();
    let times: Vec<_> = history.iter().map(|entry| entry.at).collect();
    assert_eq!(times, [at(1), at(2), at(3)]);
    // A commit whose answer was lost is applied again.
    store.apply(&changes).await.unwrap();
    assert_eq!(store.history(&id("a")).await.unwrap(), history);
    assert_eq!(store.executors().await.unwrap(), known);
}

async fn a_batch_with_a_refused_change_leaves_nothing(database: &Database) {
    let store = database.open().await;
    let changes = [
        enrolled(&enrollment("good", 1)),
        enrolled(&enrollment("bad\0id", 1)),
    ];
    let refused = store.apply(&changes).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    assert!(store.executors().await.unwrap().is_empty());
    assert!(store.history(&id("bad\0id")).await.unwrap().is_empty());
}

// FL-1
async fn fl_1_bars_of_three_kinds_are_kept_and_lifted(database: &Database) {
    let store = database.open().await;
    let targets = [
        RevocationTarget::Id(id("x")),
        RevocationTarget::Serial("x".into()),
        RevocationTarget::Sha256("x".into()),
    ];
    let bar = Revocation {
        at: at(1),
        reason: String::new(),
    };
    let all: Vec<_> = targets
        .iter()
        .map(|target| Change::Revoked(target.clone(), bar.clone()))
        .collect();
    store.apply(&all).await.unwrap();
    let bars = store.revocations().await.unwrap();
    let kept: Vec<_> = bars.iter().map(|(target, _)| target).collect();
    assert_eq!(kept.len(), 3);
    assert!(targets.iter().all(|target| kept.contains(&target)));

    let lift = Change::Reinstated(targets[1].clone());
    store.apply(std::slice::from_ref(&lift)).await.unwrap();
    let kept = store.revocations().await.unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|(target, _)| *target != targets[1]));
    // Lifting what is not there is no error.
    store.apply(&[lift]).await.unwrap();
}

// FL-1: other access points poll this.
async fn fl_1_every_change_to_the_bars_moves_their_version(database: &Database) {
    let here = database.open().await;
    let there = database.open().await;
    let start = there.revocation_version().await.unwrap();
    let target = RevocationTarget::Id(id("a"));
    let bar = Revocation {
        at: at(1),
        reason: String::new(),
    };
    here.apply(&[Change::Revoked(target.clone(), bar)])
        .await
        .unwrap();
    let barred = there.revocation_version().await.unwrap();
    assert!(barred > start);
    here.apply(&[enrolled(&enrollment("a", 1))]).await.unwrap();
    let after = there.revocation_version().await.unwrap();
    assert_eq!(after, barred, "an enrollment is no news");
    here.apply(&[Change::Reinstated(target)]).await.unwrap();
    assert!(there.revocation_version().await.unwrap() > barred);
}

async fn the_history_shows_every_certificate_and_provider(database: &Database) {
    let store = database.open().await;
    let mut vault = enrollment("a", 1);
    vault.provider = Some(ProviderKind::Vault);
    let mut again = vault.clone();
    again.at = at(2);
    let mut spiffe = enrollment("a", 3);
    spiffe.provider = Some(ProviderKind::Spiffe);
    for one in [&vault, &again, &spiffe, &enrollment("b", 4)] {
        store.apply(&[enrolled(one)]).await.unwrap();
    }
    let history = store.history(&id("a")).await.unwrap();
    // Coming back with the same certificate is no new entry.
    assert_eq!(history, [(&vault).into(), (&spiffe).into()]);
    assert!(store.history(&id("nobody")).await.unwrap().is_empty());
}

async fn the_history_keeps_the_last_fifty(database: &Database) {
    let store = database.open().await;
    let seventy: Vec<_> = (0..70).map(|n| enrolled(&enrollment("a", n))).collect();
    for one in &seventy {
        store.apply(std::slice::from_ref(one)).await.unwrap();
    }
    // All at once, as after an outage.
    let others: Vec<_> = (0..70).map(|n| enrolled(&enrollment("b", n))).collect();
    store.apply(&others).await.unwrap();
    for name in ["a", "b"] {
        let history = store.history(&id(name)).await.unwrap();
        assert_eq!(history.len(), HISTORY_LIMIT);
        assert_eq!((history[0].at, history[49].at), (at(20), at(69)));
    }
}

async fn hostile_strings_come_back_as_they_went_in(database: &Database) {
    let store = database.open().await;
    let hostile = [
        "'; DROP TABLE executors; --",
        "\"quoted\" \\ back\\u0000slash",
        "名前 🚢 \u{202e}rtl \u{1}\u{7f}\n\r\t",
        "%s $1 ?1 {}",
        "",
    ];
    let given: Vec<_> = hostile
        .iter()
        .map(|text| {
            let mut one = enrollment(&format!("id {text}"), 1);
            one.name = (*text).into();
            one.version = (*text).into();
            one.host.hostname = (*text).into();
            one.labels = (0..64)
                .map(|k| (format!("{k}{text}"), (*text).into()))
                .collect();
            one
        })
        .collect();
    let mut nul = enrollment("nul", 1);
    nul.name = "a\0b".into();
    nul.labels = [("k\0".into(), "\0".into())].into();
    let all: Vec<_> = given.iter().chain([&nul]).map(enrolled).collect();
    store.apply(&all).await.unwrap();

    let known = store.executors().await.unwrap();
    assert_eq!(known.len(), hostile.len() + 1);
    for one in &given {
        let found = known.iter().find(|k| k.id == one.id).unwrap();
        assert_eq!(found.name, one.name);
        assert_eq!(found.version, one.version);
        assert_eq!(found.labels, one.labels);
        assert_eq!(found.host, one.host);
    }
    let found = known.iter().find(|k| k.id == nul.id).unwrap();
    assert_eq!(found.name, "a\u{fffd}b");
    let labels = [("k\u{fffd}".to_owned(), "\u{fffd}".to_owned())];
    assert_eq!(found.labels, labels.into());
}

async fn concurrent_writers_lose_nothing(database: &Database) {
    let mut tasks = Vec::new();
    for writer in 0..4 {
        let store = database.open().await;
        tasks.push(tokio::spawn(async move {
            for round in 0..10_i64 {
                let own = (0..20).map(|n| enrollment(&format!("w{writer}-{round}-{n}"), round));
                // Each writer in another order: rows locked as they come would deadlock.
                let mut shared: Vec<_> = (0..20)
                    .map(|n| enrollment(&format!("shared-{n}"), round * 4 + writer))
                    .collect();
                shared.rotate_left(usize::try_from(writer).unwrap() * 5);
                let changes: Vec<_> = own.chain(shared).map(|one| enrolled(&one)).collect();
                store.apply(&changes).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let store = database.open().await;
    let known = store.executors().await.unwrap();
    assert_eq!(known.len(), 4 * 10 * 20 + 20);
    let shared = known.iter().find(|k| k.id == id("shared-3")).unwrap();
    assert_eq!(shared.last_enrolled, at(39));
    assert_eq!(store.history(&id("shared-3")).await.unwrap().len(), 40);
}

async fn ten_thousand_executors_are_listed(database: &Database) {
    let store = database.open().await;
    for thousand in 0..10 {
        let batch: Vec<_> = (0..1_000)
            .map(|n| enrolled(&enrollment(&format!("e{thousand}{n:03}"), 1)))
            .collect();
        let start = std::time::Instant::now();
        store.apply(&batch).await.unwrap();
        println!("1,000 enrollments applied in {:?}", start.elapsed());
    }
    let start = std::time::Instant::now();
    let known = store.executors().await.unwrap();
    println!("10,000 executors listed in {:?}", start.elapsed());
    assert_eq!(known.len(), 10_000);
    assert!(known.is_sorted_by(|a, b| a.id < b.id));
}

// AP-11
async fn ap_11_several_processes_start_on_one_empty_database(database: &Database) {
    let (a, b, c) = tokio::join!(database.open(), database.open(), database.open());
    a.apply(&[enrolled(&enrollment("a", 1))]).await.unwrap();
    assert_eq!(b.executors().await.unwrap().len(), 1);
    assert_eq!(c.executors().await.unwrap().len(), 1);
}

async fn a_check_writes_nothing(database: &Database) {
    let store = database.open().await;
    let version = store.revocation_version().await.unwrap();
    store.check().await.unwrap();
    assert_eq!(store.revocation_version().await.unwrap(), version);
}
