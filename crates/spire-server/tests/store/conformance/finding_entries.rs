//! Entries by their selectors, trust domains and fields, page by page.

use std::collections::BTreeSet;

use spire_server::store::{Bundles, Entries, EntryFilter, Match, Page, StoreError};

use super::{ids, page};
use crate::common::{Database, add, bundle, domain, entry, id, selectors};

on_all!(
    entries_are_found_by_their_selectors,
    entries_are_found_by_trust_domains,
    entries_are_found_by_their_fields,
    pages_hold_still_while_entries_come,
);

// inventory §6 entry show -matchSelectorsOn exact | subset | superset | any
async fn entries_are_found_by_their_selectors(database: &Database) {
    let store = database.open().await;
    let a = add(&store, entry("1", &["t:a"])).await.id;
    let b = add(&store, entry("2", &["t:b"])).await.id;
    let ab = add(&store, entry("3", &["t:a", "t:b"])).await.id;
    let abc = add(&store, entry("4", &["t:a", "t:b", "t:c"])).await.id;
    add(&store, entry("5", &["u:a"])).await;
    for (how, wanted, found) in [
        (Match::Exact, &["t:a", "t:b"][..], vec![&ab]),
        (Match::Exact, &["t:a"], vec![&a]),
        (Match::Exact, &["t:c"], vec![]),
        (Match::Subset, &["t:a", "t:b"], vec![&a, &b, &ab]),
        (Match::Superset, &["t:a", "t:b"], vec![&ab, &abc]),
        (Match::Superset, &["t:b"], vec![&b, &ab, &abc]),
        (Match::Any, &["t:b", "t:x"], vec![&b, &ab, &abc]),
        (Match::Any, &["t:x"], vec![]),
    ] {
        let wanted: BTreeSet<_> = selectors(wanted).into_iter().collect();
        let filter = EntryFilter {
            selectors: Some((how, wanted)),
            ..EntryFilter::default()
        };
        assert_eq!(
            ids(&store, filter.clone()).await.iter().collect::<Vec<_>>(),
            found,
            "{filter:?}"
        );
    }
    let empty = EntryFilter {
        selectors: Some((Match::Any, BTreeSet::new())),
        ..EntryFilter::default()
    };
    let refused = store.entries(&empty, &Page::default()).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
}

// inventory §6 entry show -matchFederatesWithOn
async fn entries_are_found_by_trust_domains(database: &Database) {
    let store = database.open().await;
    for name in ["a.test", "b.test", "c.test"] {
        store.put_bundle(&bundle(name, 1)).await.unwrap();
    }
    let mut made = Vec::new();
    for (n, with) in [
        &[][..],
        &["a.test"],
        &["b.test"],
        &["a.test", "b.test"],
        &["a.test", "b.test", "c.test"],
    ]
    .iter()
    .enumerate()
    {
        let mut one = entry(&format!("w{n}"), &["unix:uid:1"]);
        one.federates_with = with.iter().map(|name| domain(name)).collect();
        made.push(add(&store, one).await.id);
    }
    for (how, wanted, found) in [
        (Match::Exact, &["a.test", "b.test"][..], vec![3]),
        (Match::Subset, &["a.test", "b.test"], vec![1, 2, 3]),
        (Match::Superset, &["a.test"], vec![1, 3, 4]),
        (Match::Any, &["b.test", "c.test"], vec![2, 3, 4]),
        (Match::Exact, &["x.test"], vec![]),
        (Match::Any, &[], vec![0, 1, 2, 3, 4]),
    ] {
        let wanted: BTreeSet<_> = wanted.iter().map(|name| domain(name)).collect();
        let filter = EntryFilter {
            federates_with: Some((how, wanted)),
            ..EntryFilter::default()
        };
        let found: Vec<_> = found.into_iter().map(|n: usize| made[n].clone()).collect();
        assert_eq!(ids(&store, filter.clone()).await, found, "{filter:?}");
    }
}

async fn entries_are_found_by_their_fields(database: &Database) {
    let store = database.open().await;
    let mut one = entry("w", &["t:a"]);
    one.hint = "h".into();
    one.downstream = true;
    let one = add(&store, one).await;
    let mut two = entry("v", &["t:a"]);
    two.parent_id = id("spire/server");
    let two = add(&store, two).await;
    let all = EntryFilter::default;
    for (filter, found) in [
        (
            EntryFilter {
                spiffe_id: Some(id("w")),
                ..all()
            },
            vec![&one.id],
        ),
        (
            EntryFilter {
                parent_id: Some(id("spire/server")),
                ..all()
            },
            vec![&two.id],
        ),
        (
            EntryFilter {
                hint: Some("h".into()),
                ..all()
            },
            vec![&one.id],
        ),
        (
            EntryFilter {
                downstream: Some(true),
                ..all()
            },
            vec![&one.id],
        ),
        (
            EntryFilter {
                downstream: Some(false),
                ..all()
            },
            vec![&two.id],
        ),
        (
            EntryFilter {
                spiffe_id: Some(id("w")),
                parent_id: Some(id("spire/server")),
                ..all()
            },
            vec![],
        ),
        (all(), vec![&one.id, &two.id]),
    ] {
        assert_eq!(
            ids(&store, filter.clone()).await.iter().collect::<Vec<_>>(),
            found,
            "{filter:?}"
        );
    }
}

async fn pages_hold_still_while_entries_come(database: &Database) {
    let store = database.open().await;
    let mut made = Vec::new();
    for n in 0..7 {
        let chosen = if n % 2 == 0 { &["t:even"] } else { &["t:odd"] };
        made.push(add(&store, entry(&format!("w{n}"), chosen)).await.id);
    }
    let even = EntryFilter {
        selectors: Some((Match::Exact, selectors(&["t:even"]).into_iter().collect())),
        ..EntryFilter::default()
    };
    let first = store.entries(&even, &page(2, "")).await.unwrap();
    let found: Vec<_> = first.rows.iter().map(|entry| &entry.id).collect();
    assert_eq!(found, [&made[0], &made[2]]);
    // What was on the page goes and something new comes: the next page shows neither twice nor too little.
    store.delete_entry(&made[2]).await.unwrap();
    made.push(add(&store, entry("w8", &["t:even"])).await.id);
    let second = store.entries(&even, &page(2, &first.next)).await.unwrap();
    let found: Vec<_> = second.rows.iter().map(|entry| &entry.id).collect();
    assert_eq!(found, [&made[4], &made[6]]);
    let third = store.entries(&even, &page(2, &second.next)).await.unwrap();
    assert_eq!(third.rows.len(), 1);
    assert_eq!(third.rows[0].id, made[7]);
    assert_eq!(third.next, "");
    let exact = store
        .entries(&EntryFilter::default(), &page(7, ""))
        .await
        .unwrap();
    assert_eq!((exact.rows.len(), exact.next.as_str()), (7, ""));
    for token in ["x", "-1", "1.5", "+1", "99999999999999999999"] {
        let refused = store.entries(&even, &page(2, token)).await;
        assert_eq!(
            refused,
            Err(StoreError::Invalid(format!(
                "could not parse token '{token}'"
            )))
        );
    }
    // Past every row there can be.
    for token in ["4294967296", "18446744073709551615"] {
        let past = store.entries(&even, &page(2, token)).await.unwrap();
        assert_eq!((past.rows.len(), past.next.as_str()), (0, ""));
    }
}
