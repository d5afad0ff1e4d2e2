//! One suite for every implementation of the store (inventory §7 DataStore sql), run on SQLite, PostgreSQL and MariaDB.

use ah_spire_wire::stored::journal;
use prost::Message;
use spire_server::store::{
    Agents, Bundles, Entries, EntryFilter, JoinToken, JoinTokens, Journals, Page, StoreError,
};

use crate::common::{Database, add, agent, all_entries, bundle, entry, spender};

macro_rules! on_all {
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
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let Some(database) = super::Database::mariadb(stringify!($case)) else { return };
                super::$case(&database).await;
            })*
        }
    };
}

mod agents;
mod bundles;
mod entries;
mod finding_entries;

on_all!(
    journals_are_kept_until_all_they_name_has_ended,
    several_servers_start_on_one_empty_database,
    many_writers_lose_nothing,
    texts_are_the_same_only_when_every_byte_is,
);

fn page(size: u32, token: &str) -> Page {
    Page {
        size,
        token: token.to_owned(),
    }
}

async fn ids(store: &impl Entries, filter: EntryFilter) -> Vec<String> {
    let listed = store.entries(&filter, &Page::default()).await.unwrap();
    let count = store.count_entries(&filter).await.unwrap();
    assert_eq!(
        count,
        u64::try_from(listed.rows.len()).unwrap(),
        "{filter:?}"
    );
    listed.rows.into_iter().map(|entry| entry.id).collect()
}

// inventory §12 server data_dir: the CA journal lives in the datastore (ca_journals)
async fn journals_are_kept_until_all_they_name_has_ended(database: &Database) {
    let store = database.open().await;
    let journal = |not_after, key_not_after| {
        let ca = journal::X509caEntry {
            not_after,
            ..Default::default()
        };
        let key = journal::JwtKeyEntry {
            not_after: key_not_after,
            ..Default::default()
        };
        journal::Entries {
            x509_c_as: vec![ca],
            jwt_keys: vec![key],
            ..Default::default()
        }
        .encode_to_vec()
    };
    let first = store
        .put_journal(None, "a", &journal(1_000, 1))
        .await
        .unwrap();
    let second = store
        .put_journal(None, "b", &journal(1, 2_000))
        .await
        .unwrap();
    assert_eq!(
        store.journal("a").await.unwrap(),
        Some((first, journal(1_000, 1)))
    );
    assert_eq!(store.journal("c").await.unwrap(), None);
    assert_eq!(
        store
            .put_journal(Some(first), "c", &journal(1_001, 1))
            .await
            .unwrap(),
        first
    );
    assert_eq!(store.journal("a").await.unwrap(), None);
    assert_eq!(
        store.journal("c").await.unwrap(),
        Some((first, journal(1_001, 1)))
    );
    assert_eq!(
        store.journals().await.unwrap(),
        [(first, journal(1_001, 1)), (second, journal(1, 2_000))]
    );
    assert_eq!(store.prune_journals(1_000).await.unwrap(), 0);
    assert_eq!(store.prune_journals(1_001).await.unwrap(), 1);
    assert_eq!(store.prune_journals(2_000).await.unwrap(), 1);
    let gone = store.put_journal(Some(first), "c", &[]).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
}

async fn several_servers_start_on_one_empty_database(database: &Database) {
    let (a, b, c) = tokio::join!(database.open(), database.open(), database.open());
    a.put_bundle(&bundle("a.test", 1)).await.unwrap();
    assert_eq!(b.count_bundles().await.unwrap(), 1);
    assert_eq!(c.count_bundles().await.unwrap(), 1);
}

async fn many_writers_lose_nothing(database: &Database) {
    let mut writers = Vec::new();
    for writer in 0..4 {
        let store = database.open().await;
        writers.push(tokio::spawn(async move {
            for n in 0..25 {
                add(&store, entry(&format!("w{writer}-{n}"), &["t:a", "t:b"])).await;
                // All ask for the same: one makes it, the others find it.
                store
                    .create_entry(entry(&format!("shared-{n}"), &["t:a"]))
                    .await
                    .unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let store = database.open().await;
    let all = all_entries(&store).await;
    assert_eq!(all.len(), 4 * 25 + 25);
    let shared = all
        .iter()
        .filter(|entry| entry.spiffe_id.path().starts_with("/shared"));
    assert_eq!(shared.count(), 25);
    assert_eq!(store.entry_events(Some(0)).await.unwrap().len(), 125);
}

// SV-5: SPIFFE IDs are compared exactly; letters of either case are different.
async fn texts_are_the_same_only_when_every_byte_is(database: &Database) {
    let store = database.open().await;
    let (small, capital) = (agent("a", &["t:a"]), agent("A", &["t:A"]));
    store.put_agent(&small).await.unwrap();
    store.put_agent(&capital).await.unwrap();
    assert_eq!(store.agent(&small.id).await.unwrap(), Some(small.clone()));
    assert_eq!(store.delete_agent(&capital.id).await.unwrap(), capital);
    assert_eq!(store.all_agents().await.unwrap(), [small]);

    let both = add(&store, entry("w", &["t:a", "t:A"])).await;
    assert_eq!(both.selectors.len(), 2);
    assert_eq!(store.entry(&both.id).await.unwrap(), Some(both));
    add(&store, entry("W", &["t:a", "t:A"])).await;
    add(&store, entry("w", &["t:a"])).await;
    let capital = add(&store, entry("w", &["t:A"])).await;
    add(&store, entry("w", &["t:A "])).await;
    let filter = EntryFilter {
        spiffe_id: Some(capital.spiffe_id.clone()),
        ..EntryFilter::default()
    };
    assert_eq!(ids(&store, filter).await.len(), 4);

    let token = JoinToken {
        token: "t".into(),
        expires_at: 1_000,
    };
    store.create_join_token(&token).await.unwrap();
    let other = store.consume_join_token("T", &spender("k", 1)).await;
    assert!(other.unwrap().is_none());
    let taken = store.consume_join_token("t", &spender("k", 1)).await;
    assert!(taken.unwrap() == Some(token));
}
