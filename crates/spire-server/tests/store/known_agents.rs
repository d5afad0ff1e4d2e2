//! What is known of an agent without asking the store (inventory §5.1 max_attested_node_info_staleness).

use std::sync::Arc;
use std::time::Duration;

use spire_server::entries::{CachedStore, EntryCache};
use spire_server::store::{Agents, SqlStore};

use crate::common::{Database, agent, domain};

const HOUR: Option<Duration> = Some(Duration::from_secs(3_600));
const NEVER: Option<Duration> = Some(Duration::ZERO);
const ALONE: Option<Duration> = None;

async fn cached(store: &SqlStore) -> (Arc<EntryCache>, CachedStore<SqlStore>) {
    let cache = EntryCache::load(store, domain("example.org")).await;
    let cache = Arc::new(cache.unwrap());
    (Arc::clone(&cache), CachedStore::new(store.clone(), cache))
}

#[tokio::test]
async fn own_writes_are_known_at_once_and_those_of_others_when_they_were_looked_for() {
    let database = Database::sqlite();
    let other = database.open().await;
    let (cache, store) = cached(&database.open().await).await;
    let a = agent("a", &["t:1"]);
    let known = |staleness| {
        let agent = cache.agent_within(&a.id, staleness);
        agent.map(|agent| agent.serial_number.clone())
    };
    assert_eq!(known(ALONE), None);
    store.put_agent(&a).await.unwrap();
    for staleness in [ALONE, HOUR] {
        assert_eq!(known(staleness).as_ref(), Some(&a.serial_number));
    }
    assert_eq!(known(NEVER), None, "the store is to be asked each time");

    other
        .update_agent(&a.id, |agent| agent.serial_number = "2".into())
        .await
        .unwrap();
    assert_eq!(known(HOUR).as_ref(), Some(&a.serial_number));
    cache.catch_up(&store, Duration::MAX).await.unwrap();
    assert_eq!(known(HOUR).as_deref(), Some("2"));

    store
        .update_agent(&a.id, |agent| agent.serial_number.clear())
        .await
        .unwrap();
    assert_eq!(known(ALONE).as_deref(), Some(""), "it is banned at once");
    store.delete_agent(&a.id).await.unwrap();
    assert_eq!(known(ALONE), None);
}

// A client that hangs up drops its call wherever it stands: the ban may be in the store by then.
#[tokio::test]
async fn a_write_whose_end_nobody_knows_has_the_store_asked() {
    let database = Database::sqlite();
    let (cache, store) = cached(&database.open().await).await;
    let a = agent("a", &["t:1"]);
    store.put_agent(&a).await.unwrap();
    let ban = store.update_agent(&a.id, |agent| agent.serial_number.clear());
    let mut ban = Box::pin(ban);
    assert!(futures_util::poll!(&mut ban).is_pending());
    assert_eq!(
        cache.agent_within(&a.id, ALONE),
        None,
        "it is being written"
    );
    drop(ban);
    assert_eq!(cache.agent_within(&a.id, ALONE), None, "nobody knows");
    cache.reload(&store).await.unwrap();
    assert_eq!(
        cache.agent_within(&a.id, ALONE).as_deref(),
        store.agent(&a.id).await.unwrap().as_ref()
    );

    // Neither is it known after two at a time, until it was looked for.
    let renew = |serial: &'static str| {
        store.update_agent(&a.id, move |agent| agent.serial_number = serial.into())
    };
    let (first, second) = tokio::join!(renew("3"), renew("4"));
    first.and(second).unwrap();
    assert_eq!(cache.agent_within(&a.id, ALONE), None);
    cache.catch_up(&store, Duration::MAX).await.unwrap();
    assert_eq!(
        cache.agent_within(&a.id, ALONE).as_deref(),
        store.agent(&a.id).await.unwrap().as_ref()
    );
}
