//! The cache of authorized entries over a real store (inventory §8 Entry, §5.2 events_based_cache).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::entry_to_wire;
use spiffe::SpiffeId;
use spire_server::entries::{CachedStore, EntryCache, Follow};
use spire_server::store::{Agents, BundleDeletion, Bundles, Entries, EntryMask, SqlStore};
use tokio::sync::watch;

use crate::common::{
    Database, add, agent, all_entries, beside, bundle, domain, entry, id, selectors,
};

/// Generous: what is waited for comes at once.
const DEADLINE: Duration = Duration::from_secs(60);

const GAP_TIMEOUT: Duration = Duration::from_secs(900);

async fn cache(store: &SqlStore) -> EntryCache {
    EntryCache::load(store, domain("example.org"))
        .await
        .unwrap()
}

fn served(cache: &EntryCache, agent: &SpiffeId) -> Vec<String> {
    let mut paths: Vec<_> = cache
        .authorized(agent)
        .iter()
        .map(|entry| entry.to_wire().unwrap().spiffe_id.unwrap().path)
        .collect();
    paths.sort();
    paths
}

fn heard(receiver: &mut watch::Receiver<u64>) -> bool {
    let heard = receiver.has_changed().unwrap();
    receiver.mark_unchanged();
    heard
}

async fn two_servers(database: &Database) {
    let here = database.open().await;
    let there = database.open().await;
    let a = agent("a", &["t:1", "t:2"]);
    here.put_agent(&a).await.unwrap();
    let direct = add(&here, entry("direct", &["u:1"])).await;
    let mut alias = entry("node", &["t:1"]);
    alias.parent_id = id("spire/server");
    let alias = add(&here, alias).await;
    let mut below = entry("below", &["u:2"]);
    below.parent_id = id("node");
    let below = add(&here, below).await;
    let mut deeper = entry("deeper", &["u:3"]);
    deeper.parent_id = id("below");
    add(&here, deeper).await;

    let cache = cache(&there).await;
    assert_eq!(served(&cache, &a.id), ["/below", "/deeper", "/direct"]);
    assert_eq!(
        cache.authorized_entry(&a.id, &below.id).unwrap().to_wire(),
        Ok(entry_to_wire(&below))
    );
    assert_eq!(
        cache.authorized_entry(&a.id, &alias.id),
        None,
        "an alias is no workload"
    );
    assert_eq!(
        cache.authorized_entry(&id("spire/agent/b"), &below.id),
        None
    );
    assert_eq!(cache.agent(&a.id).as_deref(), Some(&a));
    let mut changes = cache.subscribe(&a.id);
    let mut others = cache.subscribe(&id("spire/agent/b"));
    let catch_up = async || cache.catch_up(&there, GAP_TIMEOUT).await.unwrap();

    // Another server deletes, updates and creates.
    here.delete_entry(&direct.id).await.unwrap();
    catch_up().await;
    assert_eq!(served(&cache, &a.id), ["/below", "/deeper"]);
    assert!(heard(&mut changes) && !heard(&mut others));
    let mut moved = below.clone();
    moved.parent_id = id("spire/agent/b");
    here.update_entry(moved, &EntryMask::ALL).await.unwrap();
    catch_up().await;
    assert_eq!(served(&cache, &a.id), [""; 0]);
    assert_eq!(served(&cache, &id("spire/agent/b")), ["/below", "/deeper"]);
    assert!(heard(&mut changes) && heard(&mut others));
    catch_up().await;
    assert!(!heard(&mut changes) && !heard(&mut others), "nothing new");

    // An agent that shows other selectors, is banned, and is evicted.
    add(&here, entry("again", &["u:1"])).await;
    catch_up().await;
    let mut back = below;
    back.parent_id = id("node");
    here.update_entry(back, &EntryMask::ALL).await.unwrap();
    catch_up().await;
    assert_eq!(served(&cache, &a.id), ["/again", "/below", "/deeper"]);
    assert!(heard(&mut changes));
    here.update_agent(&a.id, |agent| agent.selectors = selectors(&["t:2"]))
        .await
        .unwrap();
    catch_up().await;
    assert_eq!(served(&cache, &a.id), ["/again"]);
    assert!(heard(&mut changes));
    here.update_agent(&a.id, |agent| agent.serial_number.clear())
        .await
        .unwrap();
    catch_up().await;
    assert_eq!(served(&cache, &a.id), [""; 0]);
    assert!(heard(&mut changes));
    here.delete_agent(&a.id).await.unwrap();
    catch_up().await;
    assert_eq!(cache.agent(&a.id), None);
    assert!(heard(&mut changes));

    // This server's own writes are seen at once, and stay when the log tells of them.
    let own = add(&there, entry("own", &["u:9"])).await;
    cache.put(own.clone());
    assert_eq!(served(&cache, &a.id), ["/again", "/own"]);
    assert!(heard(&mut changes));
    catch_up().await;
    assert_eq!(served(&cache, &a.id), ["/again", "/own"]);
    assert!(!heard(&mut changes));
    there.delete_entry(&own.id).await.unwrap();
    cache.remove(&own.id);
    assert_eq!(cache.entry(&own.id), None);
    catch_up().await;
    assert_eq!(served(&cache, &a.id), ["/again"]);
    cache.reload(&there).await.unwrap();
    assert_eq!(served(&cache, &a.id), ["/again"]);
}

// inventory §5.2 cache_reload_interval
#[tokio::test]
async fn an_agent_s_entries_follow_other_servers_on_sqlite() {
    two_servers(&Database::sqlite()).await;
}

// inventory §5.2 cache_reload_interval
#[tokio::test]
async fn an_agent_s_entries_follow_other_servers_on_postgres() {
    if let Some(database) = Database::postgres("entry cache") {
        two_servers(&database).await;
    }
}

// inventory §5.2 cache_reload_interval
#[tokio::test]
async fn an_agent_s_entries_follow_other_servers_on_mariadb() {
    if let Some(database) = Database::mariadb("entry cache") {
        two_servers(&database).await;
    }
}

// inventory §5.2 event_timeout: transactions commit out of order.
#[tokio::test]
async fn a_transaction_that_commits_late_is_found() {
    let Some(database) = Database::postgres("late commit") else {
        return;
    };
    let store = database.open().await;
    let made = add(&store, entry("w", &["u:1"])).await;
    let url = database.config.connection_string.clone();
    let mut late = <sqlx::PgConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    for begun in [
        "BEGIN",
        "DELETE FROM registered_entries",
        "DELETE FROM selectors",
    ] {
        sqlx::query(begun).execute(&mut late).await.unwrap();
    }
    let event = "INSERT INTO registered_entries_events (entry_id) VALUES ($1)";
    sqlx::query(event)
        .bind(&made.id)
        .execute(&mut late)
        .await
        .unwrap();
    let after = add(&store, entry("v", &["u:1"])).await;
    // One cache begins while the transaction is open, another has seen the gap come.
    let cache = cache(&store).await;
    assert!(cache.entry(&made.id).is_some() && cache.entry(&after.id).is_some());
    cache.catch_up(&store, GAP_TIMEOUT).await.unwrap();
    assert!(cache.entry(&made.id).is_some());
    sqlx::query("COMMIT").execute(&mut late).await.unwrap();
    cache.catch_up(&store, GAP_TIMEOUT).await.unwrap();
    assert!(cache.entry(&made.id).is_none());

    // A gap that is older than the timeout is given up; only a reload finds what was in it.
    for begun in [
        "BEGIN",
        "DELETE FROM registered_entries",
        "DELETE FROM selectors",
    ] {
        sqlx::query(begun).execute(&mut late).await.unwrap();
    }
    sqlx::query(event)
        .bind(&after.id)
        .execute(&mut late)
        .await
        .unwrap();
    add(&store, entry("u", &["u:1"])).await;
    cache.catch_up(&store, Duration::ZERO).await.unwrap();
    sqlx::query("COMMIT").execute(&mut late).await.unwrap();
    cache.catch_up(&store, GAP_TIMEOUT).await.unwrap();
    assert!(cache.entry(&after.id).is_some());
    cache.reload(&store).await.unwrap();
    assert!(cache.entry(&after.id).is_none());
}

// inventory §5.2 cache_reload_interval, full_cache_reload_interval, prune_events_older_than
#[tokio::test]
async fn a_cache_that_follows_hears_by_itself() {
    for full in [false, true] {
        let database = Database::sqlite();
        let store = database.open().await;
        let cache = Arc::new(cache(&store).await);
        let how = Follow {
            interval: Duration::from_millis(10),
            full_interval: if full {
                Duration::ZERO
            } else {
                Duration::from_secs(3_600)
            },
            ..Follow::default()
        };
        let (following, reader) = (Arc::clone(&cache), store.clone());
        let task = tokio::spawn(async move { following.follow(&reader, &how).await });
        let agent = id("spire/agent/a");
        let mut changes = cache.subscribe(&agent);
        add(&store, entry("w", &["u:1"])).await;
        let seen = async {
            while served(&cache, &agent) != ["/w"] {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.unwrap();
        task.abort();
    }
}

#[tokio::test]
async fn an_entry_that_ends_is_served_no_more() {
    let database = Database::sqlite();
    let store = database.open().await;
    let agent = id("spire/agent/a");
    let mut ended = entry("ended", &["u:1"]);
    ended.expires_at = 1_000;
    add(&store, ended).await;
    let mut later = entry("later", &["u:1"]);
    later.expires_at = 4_000_000_000;
    add(&store, later).await;
    let cache = cache(&store).await;
    assert_eq!(served(&cache, &agent), ["/later"]);
}

#[tokio::test]
async fn what_goes_through_the_cached_store_is_seen_at_once() {
    let database = Database::sqlite();
    let store = database.open().await;
    let cache = Arc::new(cache(&store).await);
    let store = CachedStore::new(store, Arc::clone(&cache));
    let a = agent("a", &["t:1"]);
    store.put_agent(&a).await.unwrap();
    let mut alias = entry("node", &["t:1"]);
    alias.parent_id = id("spire/server");
    add(&store, alias).await;
    let mut below = entry("below", &["u:1"]);
    below.parent_id = id("node");
    let mut below = add(&store, below).await;
    let mut changes = cache.subscribe(&a.id);
    assert_eq!(served(&cache, &a.id), ["/below"]);

    below.spiffe_id = id("moved");
    store
        .update_entry(below.clone(), &EntryMask::ALL)
        .await
        .unwrap();
    assert!(heard(&mut changes));
    assert_eq!(served(&cache, &a.id), ["/moved"]);
    store
        .update_agent(&a.id, |agent| agent.selectors.clear())
        .await
        .unwrap();
    assert!(heard(&mut changes));
    assert_eq!(served(&cache, &a.id), [""; 0]);
    store.put_agent(&a).await.unwrap();
    store.delete_entry(&below.id).await.unwrap();
    assert_eq!(served(&cache, &a.id), [""; 0]);

    store.put_bundle(&bundle("b.test", 1)).await.unwrap();
    let mut federated = entry("federated", &["u:1"]);
    federated.federates_with = vec![domain("b.test")];
    add(&store, federated).await;
    assert_eq!(served(&cache, &a.id), ["/federated"]);
    store
        .delete_bundle(&domain("b.test"), BundleDeletion::Delete)
        .await
        .unwrap();
    assert_eq!(served(&cache, &a.id), [""; 0]);

    let mut ended = entry("ended", &["u:1"]);
    ended.expires_at = 1_000;
    let ended = add(&store, ended).await;
    assert!(cache.entry(&ended.id).is_some());
    store.prune_entries(1_001).await.unwrap();
    assert!(cache.entry(&ended.id).is_none());
    let pruned = store.prune_agents(4_000_000_000, true, 10).await.unwrap();
    assert_eq!((pruned, cache.agent(&a.id)), (vec![a.id.clone()], None));
    store.put_agent(&a).await.unwrap();
    store.delete_agent(&a.id).await.unwrap();
    assert_eq!(cache.agent(&a.id), None);
}

#[tokio::test]
async fn a_cache_begins_with_all_however_many_there_are() {
    let database = Database::sqlite();
    let store = database.open().await;
    let first = add(&store, entry("w0", &["u:1"])).await;
    // As one statement: over the API it would take seconds.
    let path = &database.config.connection_string;
    let mut beside = beside(Path::new(path)).await;
    for more in [
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 4100)
         INSERT INTO registered_entries (entry_id, spiffe_id, parent_id, created_at)
         SELECT 'e' || n, 'spiffe://example.org/w' || n, parent_id, created_at FROM n, registered_entries",
        "INSERT INTO selectors (registered_entry_id, type, value)
         SELECT id, 'u', '1' FROM registered_entries WHERE spiffe_id <> 'spiffe://example.org/w0'",
    ] {
        sqlx::query(more).execute(&mut beside).await.unwrap();
    }
    let all = all_entries(&store).await;
    assert_eq!(all.len(), 4_101);
    assert!(all.iter().all(|entry| entry.selectors == first.selectors));
    let cache = cache(&store).await;
    assert_eq!(cache.authorized(&first.parent_id).len(), 4_101);
}
