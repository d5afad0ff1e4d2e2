//! Bundles, and the relationships that they come by.

use std::collections::BTreeSet;

use ah_spire_wire::model::Bundle;
use spire_server::store::{
    BundleChange, BundleDeletion, Bundles, Entries, Federation, Page, Profile, Relationship,
    StoreError,
};

use super::page;
use crate::common::{Database, add, bundle, domain, entry, id};

on_all!(
    a_bundle_comes_back_as_it_went_in,
    bundles_that_are_appended_at_once_keep_all_keys,
    a_bundle_that_entries_federate_with_is_kept_or_taken_out,
    relationships_are_kept_with_their_bundles,
);

// inventory §10.1 datastore bundle set, fetch, list, count, update, delete
async fn a_bundle_comes_back_as_it_went_in(database: &Database) {
    let store = database.open().await;
    let mut given = bundle("example.org", 1);
    store.put_bundle(&given).await.unwrap();
    assert_eq!(
        store.bundle(&given.trust_domain).await.unwrap().as_ref(),
        Some(&given)
    );
    assert_eq!(store.bundle(&domain("x.test")).await.unwrap(), None);
    given.x509[0].tainted = true;
    given.sequence = 9;
    store.put_bundle(&given).await.unwrap();
    store.put_bundle(&bundle("b.test", 2)).await.unwrap();
    assert_eq!(
        store.bundles(&Page::default()).await.unwrap().rows,
        [given.clone(), bundle("b.test", 2)]
    );
    assert_eq!(store.count_bundles().await.unwrap(), 2);
    assert_eq!(
        store.bundle_domains().await.unwrap(),
        [domain("b.test"), domain("example.org")].into()
    );
    let first = store.bundles(&page(1, "")).await.unwrap();
    let second = store.bundles(&page(1, &first.next)).await.unwrap();
    assert_eq!(
        (first.rows, second.rows, second.next),
        (
            vec![given.clone()],
            vec![bundle("b.test", 2)],
            String::new()
        )
    );

    // A document has none of these keys, so that whoever sets one says nothing about them.
    let without = Bundle {
        wit: Vec::new(),
        ..given.clone()
    };
    store.put_bundle(&without).await.unwrap();
    assert_eq!(
        store.bundle(&given.trust_domain).await.unwrap().as_ref(),
        Some(&given)
    );

    let same = store
        .update_bundle(&given.trust_domain, BundleChange::Update, |old| old)
        .await
        .unwrap();
    assert_eq!(
        same.as_ref(),
        Some(&given),
        "nothing changed, nothing counts"
    );
    let none = store
        .update_bundle(&given.trust_domain, BundleChange::Update, |_| None)
        .await
        .unwrap();
    assert_eq!(none.as_ref(), Some(&given));
    let grown = store
        .update_bundle(&given.trust_domain, BundleChange::Update, |old| {
            let mut old = old.unwrap();
            old.jwt.clear();
            Some(old)
        })
        .await
        .unwrap();
    given.jwt.clear();
    given.sequence = 10;
    assert_eq!(grown.as_ref(), Some(&given));
    assert_eq!(
        store.bundle(&given.trust_domain).await.unwrap(),
        Some(given)
    );
    let nothing = store
        .update_bundle(&domain("x.test"), BundleChange::Update, |old| old)
        .await
        .unwrap();
    assert_eq!(nothing, None);
    assert_eq!(store.bundle(&domain("x.test")).await.unwrap(), None);
    assert_eq!(store.count_bundles().await.unwrap(), 2);
}

async fn bundles_that_are_appended_at_once_keep_all_keys(database: &Database) {
    let stores = [database.open().await, database.open().await];
    let of = domain("example.org");
    let appends: Vec<_> = (0..20_u8)
        .map(|key| {
            let (store, of) = (stores[usize::from(key % 2)].clone(), of.clone());
            tokio::spawn(async move {
                store
                    .update_bundle(&of, BundleChange::Update, |old| {
                        let new = bundle("example.org", key);
                        let Some(mut old) = old else { return Some(new) };
                        old.x509.extend(new.x509);
                        Some(old)
                    })
                    .await
                    .unwrap();
            })
        })
        .collect();
    for one in appends {
        one.await.unwrap();
    }
    let found = stores[0].bundle(&of).await.unwrap().unwrap();
    let keys: BTreeSet<_> = found
        .x509
        .iter()
        .map(|authority| authority.der[0])
        .collect();
    assert_eq!(keys, (0..20).collect());
    assert_eq!(found.sequence, 3 + 19);
}

// inventory §6 bundle delete -mode restrict | dissociate | delete
async fn a_bundle_that_entries_federate_with_is_kept_or_taken_out(database: &Database) {
    let store = database.open().await;
    let mut made = Vec::new();
    for name in ["a.test", "b.test"] {
        store.put_bundle(&bundle(name, 1)).await.unwrap();
        let mut one = entry(name, &["t:a"]);
        one.federates_with = vec![domain(name)];
        made.push(add(&store, one).await);
    }
    let kept = store
        .delete_bundle(&domain("a.test"), BundleDeletion::Restrict)
        .await;
    let text = "cannot delete bundle; federated with 1 registration entries";
    assert_eq!(kept, Err(StoreError::Precondition(text.into())));
    let newest = store.entry_events(None).await.unwrap()[0].event;
    store
        .delete_bundle(&domain("a.test"), BundleDeletion::Dissociate)
        .await
        .unwrap();
    let lone = store.entry(&made[0].id).await.unwrap().unwrap();
    assert!(lone.federates_with.is_empty());
    store
        .delete_bundle(&domain("b.test"), BundleDeletion::Delete)
        .await
        .unwrap();
    assert_eq!(store.entry(&made[1].id).await.unwrap(), None);
    let told = store.entry_events(Some(newest)).await.unwrap();
    let told: Vec<_> = told.iter().map(|changed| &changed.id).collect();
    assert_eq!(
        told,
        [&made[0].id, &made[1].id],
        "other servers hear of both"
    );
    let gone = store
        .delete_bundle(&domain("b.test"), BundleDeletion::Delete)
        .await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
}

// inventory §8 TrustDomain: federation relationships
async fn relationships_are_kept_with_their_bundles(database: &Database) {
    let store = database.open().await;
    let web = Relationship {
        trust_domain: domain("a.test"),
        endpoint_url: "https://a.test/bundle".into(),
        profile: Profile::HttpsWeb,
    };
    let spiffe = Relationship {
        trust_domain: domain("b.test"),
        endpoint_url: "https://b.test/bundle".into(),
        profile: Profile::HttpsSpiffe(id("spire/server")),
    };
    store.create_relationship(&web, None).await.unwrap();
    store
        .create_relationship(&spiffe, Some(&bundle("b.test", 1)))
        .await
        .unwrap();
    let again = store
        .create_relationship(&web, Some(&bundle("a.test", 1)))
        .await;
    assert!(
        matches!(again, Err(StoreError::AlreadyExists(_))),
        "{again:?}"
    );
    assert_eq!(
        store.bundle(&domain("a.test")).await.unwrap(),
        None,
        "all or nothing"
    );
    assert_eq!(
        store.bundle(&domain("b.test")).await.unwrap(),
        Some(bundle("b.test", 1))
    );
    assert_eq!(
        store
            .relationship(&domain("b.test"))
            .await
            .unwrap()
            .as_ref(),
        Some(&spiffe)
    );
    assert_eq!(
        store.relationships(&Page::default()).await.unwrap().rows,
        [web.clone(), spiffe.clone()]
    );
    let first = store.relationships(&page(1, "")).await.unwrap();
    assert_eq!(
        store
            .relationships(&page(1, &first.next))
            .await
            .unwrap()
            .rows,
        [spiffe]
    );
    let moved = store
        .update_relationship(
            &web.trust_domain,
            |one| one.profile = Profile::HttpsSpiffe(id("x")),
            Some(&bundle("a.test", 2)),
        )
        .await
        .unwrap();
    assert_eq!(
        store.relationship(&web.trust_domain).await.unwrap(),
        Some(moved)
    );
    assert_eq!(
        store.bundle(&web.trust_domain).await.unwrap(),
        Some(bundle("a.test", 2))
    );
    store.delete_relationship(&web.trust_domain).await.unwrap();
    assert_eq!(store.relationship(&web.trust_domain).await.unwrap(), None);
    assert!(store.bundle(&web.trust_domain).await.unwrap().is_some());
    let gone = store.delete_relationship(&web.trust_domain).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
    let gone = store
        .update_relationship(&web.trust_domain, |_| (), None)
        .await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
}
