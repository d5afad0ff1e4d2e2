//! Operations of the store are counted under upstream's names (inventory §10.1), and do what they do without it.

use std::collections::BTreeSet;

use ah_spire_plugin::telemetry::{Prometheus, TelemetryConfig};
use ah_spire_telemetry::{Metrics, Program};
use spire_server::store::{
    Agents, BundleDeletion, Bundles, Entries, EntryFilter, EntryMask, JoinToken, JoinTokens,
    Journals, Metered, Page, SqlStore, StoreError,
};

use crate::common::{Database, add, agent, bundle, domain, entry, id, spender};

fn metrics() -> Metrics {
    let config = TelemetryConfig {
        prometheus: Some(Prometheus {
            host: "localhost".into(),
            port: 0,
            tls: None,
        }),
        ..TelemetryConfig::default()
    };
    Metrics::new(&config, Program::Server, &domain("example.org"))
        .unwrap()
        .0
}

/// `operation{status} count` of everything that was counted.
fn counted(metrics: &Metrics) -> BTreeSet<String> {
    metrics
        .text()
        .lines()
        .filter(|line| !line.contains("elapsed_time"))
        .filter_map(|line| line.strip_prefix("spire_server_datastore_"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_counted_with_what_came_of_them() {
    // Inventory §10.1: datastore
    let database = Database::sqlite();
    let metrics = metrics();
    let store = Metered::new(SqlStore::open(&database.config).await.unwrap(), &metrics);

    let stored = add(&store, entry("web", &["unix:uid:1"])).await;
    assert_eq!(store.entry(&stored.id).await.unwrap().unwrap(), stored);
    let page = store
        .entries(&EntryFilter::default(), &Page::default())
        .await;
    assert_eq!(page.unwrap().rows.len(), 1);
    let updated = store.update_entry(stored.clone(), &EntryMask::ALL).await;
    assert_eq!(updated.unwrap().id, stored.id);
    store.delete_entry(&stored.id).await.unwrap();
    let gone = store.delete_entry(&stored.id).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound(_)));

    store.put_agent(&agent("a", &["x:y"])).await.unwrap();
    assert!(store.agent(&id("spire/agent/a")).await.unwrap().is_some());

    let token = JoinToken {
        token: "t".into(),
        expires_at: 10,
    };
    store.create_join_token(&token).await.unwrap();
    let again = store.create_join_token(&token).await.unwrap_err();
    assert!(matches!(again, StoreError::AlreadyExists(_)));
    assert!(
        store
            .consume_join_token("t", &spender("k", 1))
            .await
            .unwrap()
            .is_some()
    );
    let other = store.consume_join_token("t", &spender("l", 1)).await;
    assert!(other.unwrap().is_none());

    store.put_bundle(&bundle("example.org", 1)).await.unwrap();
    let of = domain("example.org");
    store.update_bundle(&of, |bundle| bundle).await.unwrap();
    store
        .delete_bundle(&of, BundleDeletion::Restrict)
        .await
        .unwrap();
    store.put_journal(None, "a", b"").await.unwrap();

    let expected = [
        "bundle_delete{status=\"OK\"} 1",
        "bundle_set{status=\"OK\"} 1",
        "bundle_update{status=\"OK\"} 1",
        "ca_journal_set{status=\"OK\"} 1",
        "join_token_create{status=\"AlreadyExists\"} 1",
        "join_token_create{status=\"OK\"} 1",
        "join_token_delete{status=\"OK\"} 1",
        "join_token_fetch{status=\"OK\"} 2",
        "node_create{status=\"OK\"} 1",
        // And `datastore_node_selectors_fetch`.
        "node_fetch{status=\"OK\"} 1",
        "node_selectors_set{status=\"OK\"} 1",
        "registration_entry_create{status=\"OK\"} 1",
        "registration_entry_delete{status=\"NotFound\"} 1",
        "registration_entry_delete{status=\"OK\"} 1",
        "registration_entry_fetch{status=\"OK\"} 1",
        "registration_entry_list{status=\"OK\"} 1",
        "registration_entry_update{status=\"OK\"} 1",
    ];
    assert_eq!(counted(&metrics), expected.map(str::to_owned).into());
}
