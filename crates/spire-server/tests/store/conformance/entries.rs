//! What is kept of an entry, and what is told of its changes.

use spire_server::store::{Bundles, Created, Entries, EntryFilter, EntryMask, Match, StoreError};

use super::ids;
use crate::common::{Database, add, all_entries, bundle, domain, entry, id, selectors};

on_all!(
    an_entry_comes_back_as_it_went_in,
    all_are_read_with_each_field_that_one_may_have,
    an_entry_like_another_is_not_made_twice,
    entries_that_make_no_sense_are_refused,
    an_update_takes_over_what_the_mask_names,
    expired_entries_are_pruned_in_batches,
    every_change_of_an_entry_is_told,
    hostile_texts_come_back_as_they_went_in,
);

// inventory §10.1 datastore registration_entry create, fetch, delete
async fn an_entry_comes_back_as_it_went_in(database: &Database) {
    let store = database.open().await;
    for name in ["b.test", "a.test"] {
        store.put_bundle(&bundle(name, 1)).await.unwrap();
    }
    let mut given = entry("w", &["unix:uid:1", "docker:label:a:b"]);
    given.x509_svid_ttl = 60;
    given.jwt_svid_ttl = 30;
    given.federates_with = vec![domain("b.test"), domain("a.test")];
    given.admin = true;
    given.downstream = true;
    given.expires_at = 4_000_000_000;
    given.dns_names = vec!["z.test".into(), "a.test".into()];
    given.hint = "hint".into();
    given.disable_x509_svid_prefetch = true;
    given.jwt_svid_include_jti = true;
    let made = add(&store, given.clone()).await;
    assert_eq!(made.id.len(), 36, "a UUID");
    assert!(made.created_at > 1_700_000_000);
    given.id.clone_from(&made.id);
    given.created_at = made.created_at;
    given.selectors.sort();
    given.federates_with.sort();
    assert_eq!(made, given);
    store.close().await;

    let store = database.open().await;
    assert_eq!(store.entry(&made.id).await.unwrap().as_ref(), Some(&made));
    assert_eq!(store.entry("nobody").await.unwrap(), None);
    let own = entry("named", &["unix:uid:1"]);
    let own = add(
        &store,
        ah_spire_wire::model::Entry {
            id: "my.own-ID_1".into(),
            ..own
        },
    )
    .await;
    let wanted = ["my.own-ID_1".to_owned(), "nobody".into(), made.id.clone()];
    let found = store.entries_by_id(&wanted).await.unwrap();
    assert_eq!(found, [made.clone(), own.clone()]);
    assert_eq!(all_entries(&store).await, [made.clone(), own]);
    assert_eq!(store.delete_entry(&made.id).await.unwrap(), made);
    assert_eq!(store.entry(&made.id).await.unwrap(), None);
    let gone = store.delete_entry(&made.id).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
}

// Inventory §8 Entry: what most entries do not have is read of the others alone.
async fn all_are_read_with_each_field_that_one_may_have(database: &Database) {
    type Change = fn(&mut ah_spire_wire::model::Entry);
    let store = database.open().await;
    let changes: &[Change] = &[
        |_| (),
        |one| one.x509_svid_ttl = 1,
        |one| one.jwt_svid_ttl = 2,
        |one| one.admin = true,
        |one| one.downstream = true,
        |one| one.expires_at = 4_000_000_000,
        |one| one.store_svid = true,
        |one| one.hint = "h".into(),
        |one| one.disable_x509_svid_prefetch = true,
        |one| one.jwt_svid_include_jti = true,
        |one| one.dns_names = vec!["w.test".into()],
        |one| one.parent_id = id("spire/server"),
    ];
    let mut made = Vec::new();
    for (n, change) in changes.iter().enumerate() {
        let mut one = entry(&format!("w{n}"), &["unix:uid:1"]);
        change(&mut one);
        made.push(add(&store, one).await);
    }
    let mask = EntryMask::ALL;
    made[0] = store.update_entry(made[0].clone(), &mask).await.unwrap();
    assert_eq!(made[0].revision, 1);
    assert_eq!(all_entries(&store).await, made);
}

async fn an_entry_like_another_is_not_made_twice(database: &Database) {
    let store = database.open().await;
    let first = add(&store, entry("w", &["unix:uid:1", "unix:gid:2"])).await;
    let again = store
        .create_entry(entry("w", &["unix:gid:2", "unix:uid:1"]))
        .await
        .unwrap();
    assert_eq!(again, Created::Similar(first.clone()));
    // Fewer, more and other selectors, another path and another parent make another entry.
    add(&store, entry("w", &["unix:uid:1"])).await;
    add(
        &store,
        entry("w", &["unix:uid:1", "unix:gid:2", "unix:gid:3"]),
    )
    .await;
    add(&store, entry("v", &["unix:uid:1", "unix:gid:2"])).await;
    let mut other = entry("w", &["unix:uid:1", "unix:gid:2"]);
    other.parent_id = id("spire/agent/b");
    add(&store, other).await;
    let mut taken = entry("x", &["unix:uid:9"]);
    taken.id = first.id;
    let taken = store.create_entry(taken).await;
    assert!(
        matches!(taken, Err(StoreError::AlreadyExists(_))),
        "{taken:?}"
    );
    assert_eq!(ids(&store, EntryFilter::default()).await.len(), 5);
}

async fn entries_that_make_no_sense_are_refused(database: &Database) {
    let store = database.open().await;
    let mut long = entry("w", &["unix:uid:1"]);
    long.id = "x".repeat(256);
    let mut strange = entry("w", &["unix:uid:1"]);
    strange.id = "a/b".into();
    let mut ttl = entry("w", &["unix:uid:1"]);
    ttl.x509_svid_ttl = -1;
    let mut mixed = entry("w", &["unix:uid:1", "docker:label:a"]);
    mixed.store_svid = true;
    let mut foreign = entry("w", &["unix:uid:1"]);
    foreign.federates_with = vec![domain("nobody.test")];
    for (bad, why) in [
        (long, "entry ID too long"),
        (strange, "entry ID contains invalid characters"),
        (ttl, "X509SvidTtl"),
        (mixed, "selector types must be the same"),
        (
            foreign,
            "unable to find federated bundle \"spiffe://nobody.test\"",
        ),
        (entry("w", &[]), "missing selector list"),
    ] {
        match store.create_entry(bad).await {
            Err(StoreError::Invalid(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert!(ids(&store, EntryFilter::default()).await.is_empty());
    assert!(store.entry_events(Some(0)).await.unwrap().is_empty());
}

// inventory §10.1 datastore registration_entry update
async fn an_update_takes_over_what_the_mask_names(database: &Database) {
    let store = database.open().await;
    store.put_bundle(&bundle("a.test", 1)).await.unwrap();
    let mut first = entry("w", &["unix:uid:1"]);
    first.dns_names = vec!["a.test".into()];
    let made = add(&store, first).await;

    let mut new = entry("v", &["unix:uid:2", "unix:gid:3"]);
    new.id.clone_from(&made.id);
    new.hint = "h".into();
    new.federates_with = vec![domain("a.test")];
    new.dns_names = vec!["y.test".into(), "x.test".into()];
    let mut mask = EntryMask { hint: true, ..NONE };
    let updated = store.update_entry(new.clone(), &mask).await.unwrap();
    let mut wanted = made.clone();
    wanted.hint = "h".into();
    wanted.revision = 1;
    assert_eq!(updated, wanted);
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(wanted.clone()));

    mask = EntryMask {
        selectors: true,
        federates_with: true,
        dns_names: true,
        spiffe_id: true,
        ..NONE
    };
    let updated = store.update_entry(new.clone(), &mask).await.unwrap();
    wanted.selectors = selectors(&["unix:gid:3", "unix:uid:2"]);
    wanted.federates_with = vec![domain("a.test")];
    wanted.dns_names = vec!["y.test".into(), "x.test".into()];
    wanted.spiffe_id = id("v");
    wanted.revision = 2;
    assert_eq!(updated, wanted);
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(wanted.clone()));

    new.federates_with = vec![domain("nobody.test")];
    let refused = store.update_entry(new.clone(), &EntryMask::ALL).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(
        store.entry(&made.id).await.unwrap(),
        Some(wanted),
        "all or nothing"
    );
    new.id = "nobody".into();
    let missing = store.update_entry(new, &mask).await;
    assert!(
        matches!(missing, Err(StoreError::NotFound(_))),
        "{missing:?}"
    );
}

const NONE: EntryMask = EntryMask {
    spiffe_id: false,
    parent_id: false,
    selectors: false,
    x509_svid_ttl: false,
    jwt_svid_ttl: false,
    federates_with: false,
    admin: false,
    downstream: false,
    expires_at: false,
    dns_names: false,
    store_svid: false,
    hint: false,
    additional_attributes: false,
};

// inventory §10.1 datastore registration_entry prune
async fn expired_entries_are_pruned_in_batches(database: &Database) {
    let store = database.open().await;
    let forever = add(&store, entry("forever", &["t:a"])).await;
    let mut later = entry("later", &["t:a"]);
    later.expires_at = 1_000;
    let later = add(&store, later).await;
    let count = 520;
    for n in 0..count {
        let mut one = entry(&format!("w{n}"), &["t:a", "t:b"]);
        one.expires_at = 999;
        add(&store, one).await;
    }
    let newest = store.entry_events(None).await.unwrap()[0].event;
    let pruned = store.prune_entries(1_000).await.unwrap();
    assert_eq!(pruned.len(), count);
    assert_eq!(
        ids(&store, EntryFilter::default()).await,
        [forever.id, later.id]
    );
    assert_eq!(store.entry_events(Some(newest)).await.unwrap().len(), count);
    assert!(store.prune_entries(1_000).await.unwrap().is_empty());
}

// inventory §10.1 datastore registration_entry_event list, prune
async fn every_change_of_an_entry_is_told(database: &Database) {
    let store = database.open().await;
    assert!(store.entry_events(None).await.unwrap().is_empty());
    let made = add(&store, entry("w", &["t:a"])).await;
    let first = store.entry_events(None).await.unwrap();
    assert_eq!((first.len(), &first[0].id), (1, &made.id));
    store
        .update_entry(made.clone(), &EntryMask::ALL)
        .await
        .unwrap();
    store.create_entry(entry("w", &["t:a"])).await.unwrap();
    store.delete_entry(&made.id).await.unwrap();
    let told = store.entry_events(Some(first[0].event)).await.unwrap();
    assert_eq!(told.len(), 2, "an update and a deletion: {told:?}");
    assert!(told.iter().all(|changed| changed.id == made.id));
    assert!(told.is_sorted_by_key(|changed| changed.event));
    assert_eq!(store.entry_events(None).await.unwrap(), told[1..]);
    assert_eq!(store.prune_entry_events(1_000).await.unwrap(), 0);
    assert_eq!(
        store
            .prune_entry_events(made.created_at + 60)
            .await
            .unwrap(),
        3
    );
    assert!(store.entry_events(Some(0)).await.unwrap().is_empty());
}

async fn hostile_texts_come_back_as_they_went_in(database: &Database) {
    let store = database.open().await;
    for (n, text) in [
        "'; DROP TABLE bundles; --",
        "\"q\" \\ \\u0000",
        "名前 🚢 \u{202e}\n\t",
        "%s $1 ?1 {} ::timestamptz FOR UPDATE",
    ]
    .iter()
    .enumerate()
    {
        let mut one = entry(&format!("w{n}"), &["t:x"]);
        one.selectors[0].value = (*text).to_owned();
        one.hint = (*text).to_owned();
        let made = add(&store, one.clone()).await;
        assert_eq!(store.entry(&made.id).await.unwrap().unwrap().hint, *text);
        let wanted = one.selectors.iter().cloned().collect();
        let filter = EntryFilter {
            selectors: Some((Match::Exact, wanted)),
            ..EntryFilter::default()
        };
        assert_eq!(ids(&store, filter).await, std::slice::from_ref(&made.id));
        assert_eq!(all_entries(&store).await.last(), Some(&made));
    }
}
