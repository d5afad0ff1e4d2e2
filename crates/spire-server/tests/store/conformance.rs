//! One suite for every implementation of the store (inventory §7 DataStore sql), run on SQLite and PostgreSQL.

use std::collections::BTreeSet;

use ah_spire_wire::stored::journal;
use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;
use spire_server::store::{
    Agent, AgentFilter, Agents, BundleDeletion, Bundles, Created, Entries, EntryFilter, EntryMask,
    Federation, JoinToken, JoinTokens, Journals, Match, Page, Profile, Relationship, StoreError,
};

use crate::common::{Database, add, agent, bundle, domain, entry, id, selectors, spender};

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
    an_entry_comes_back_as_it_went_in,
    an_entry_like_another_is_not_made_twice,
    entries_that_make_no_sense_are_refused,
    an_update_takes_over_what_the_mask_names,
    entries_are_found_by_their_selectors,
    entries_are_found_by_trust_domains,
    entries_are_found_by_their_fields,
    pages_hold_still_while_entries_come,
    expired_entries_are_pruned_in_batches,
    every_change_of_an_entry_is_told,
    hostile_texts_come_back_as_they_went_in,
    an_agent_comes_back_as_it_went_in,
    agents_are_found_by_what_they_are,
    agents_are_pruned_when_their_certificates_ended,
    a_join_token_s_own_entry_goes_with_its_agent,
    every_change_of_an_agent_is_told,
    a_join_token_lets_one_in,
    one_of_many_gets_a_join_token,
    whoever_took_a_join_token_gets_it_again_for_a_while,
    a_bundle_comes_back_as_it_went_in,
    bundles_that_are_appended_at_once_keep_all_keys,
    a_bundle_that_entries_federate_with_is_kept_or_taken_out,
    relationships_are_kept_with_their_bundles,
    journals_are_kept_until_all_they_name_has_ended,
    several_servers_start_on_one_empty_database,
    many_writers_lose_nothing,
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
    assert_eq!(store.all_entries().await.unwrap(), [made.clone(), own]);
    assert_eq!(store.delete_entry(&made.id).await.unwrap(), made);
    assert_eq!(store.entry(&made.id).await.unwrap(), None);
    let gone = store.delete_entry(&made.id).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
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
        assert_eq!(ids(&store, filter).await, [made.id]);
    }
}

// inventory §10.1 datastore node create, fetch, update, delete; node selectors set
async fn an_agent_comes_back_as_it_went_in(database: &Database) {
    let store = database.open().await;
    let mut given = agent("a", &["x509pop:ca:1", "x509pop:subject:cn:a"]);
    store.put_agent(&given).await.unwrap();
    assert_eq!(store.agent(&given.id).await.unwrap().as_ref(), Some(&given));
    assert_eq!(store.agent(&id("spire/agent/b")).await.unwrap(), None);
    given.selectors = selectors(&["x509pop:ca:2"]);
    given.new_serial_number = "77".into();
    given.new_expires_at = 2_100_000_000;
    store.put_agent(&given).await.unwrap();
    assert_eq!(store.all_agents().await.unwrap(), [given.clone()]);

    // The certificate of a renewal becomes the current one.
    let renewed = store
        .update_agent(&given.id, |agent| {
            agent.serial_number = std::mem::take(&mut agent.new_serial_number);
            agent.expires_at = std::mem::take(&mut agent.new_expires_at);
            agent.version = "2".into();
        })
        .await
        .unwrap();
    assert_eq!(
        (
            renewed.serial_number.as_str(),
            renewed.expires_at,
            renewed.new_expires_at
        ),
        ("77", 2_100_000_000, 0)
    );
    assert_eq!(store.agent(&given.id).await.unwrap(), Some(renewed.clone()));
    let banned = store
        .update_agent(&given.id, |agent| agent.serial_number.clear())
        .await
        .unwrap();
    assert!(banned.is_banned());
    assert_eq!(store.delete_agent(&given.id).await.unwrap(), banned);
    assert!(store.all_agents().await.unwrap().is_empty());
    let gone = store.delete_agent(&given.id).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
    let gone = store.update_agent(&given.id, |_| ()).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
    // The selectors went along: an agent that comes back has its own.
    store.put_agent(&agent("a", &[])).await.unwrap();
    assert!(
        store
            .agent(&given.id)
            .await
            .unwrap()
            .unwrap()
            .selectors
            .is_empty()
    );
}

// inventory §6 agent list, count: -attestationType, -banned, -canReattest, -expiresBefore, -matchSelectorsOn
async fn agents_are_found_by_what_they_are(database: &Database) {
    let store = database.open().await;
    let a = agent("a", &["t:a"]);
    let mut ab = agent("ab", &["t:a", "t:b"]);
    ab.attestation_type = "join_token".into();
    ab.can_reattest = false;
    let mut banned = agent("banned", &["t:b"]);
    banned.serial_number.clear();
    let mut old = agent("old", &[]);
    old.expires_at = 1_000;
    for one in [&a, &ab, &banned, &old] {
        store.put_agent(one).await.unwrap();
    }
    let all = AgentFilter::default;
    let by = |how, wanted: &[&str]| AgentFilter {
        selectors: Some((how, selectors(wanted).into_iter().collect())),
        ..all()
    };
    for (filter, found) in [
        (all(), vec![&a, &ab, &banned, &old]),
        (
            AgentFilter {
                attestation_type: Some("join_token".into()),
                ..all()
            },
            vec![&ab],
        ),
        (
            AgentFilter {
                banned: Some(true),
                ..all()
            },
            vec![&banned],
        ),
        (
            AgentFilter {
                banned: Some(false),
                ..all()
            },
            vec![&a, &ab, &old],
        ),
        (
            AgentFilter {
                can_reattest: Some(false),
                ..all()
            },
            vec![&ab],
        ),
        (
            AgentFilter {
                expires_before: Some(1_001),
                ..all()
            },
            vec![&old],
        ),
        (
            AgentFilter {
                expires_before: Some(1_000),
                ..all()
            },
            vec![],
        ),
        (by(Match::Exact, &["t:a"]), vec![&a]),
        (by(Match::Subset, &["t:a", "t:b"]), vec![&a, &ab, &banned]),
        (by(Match::Superset, &["t:b"]), vec![&ab, &banned]),
        (by(Match::Any, &["t:a"]), vec![&a, &ab]),
    ] {
        let listed = store.agents(&filter, &Page::default()).await.unwrap().rows;
        assert_eq!(listed.iter().collect::<Vec<_>>(), found, "{filter:?}");
        let count = store.count_agents(&filter).await.unwrap();
        assert_eq!(count, u64::try_from(found.len()).unwrap(), "{filter:?}");
    }
    let first = store.agents(&all(), &page(3, "")).await.unwrap();
    let second = store.agents(&all(), &page(3, &first.next)).await.unwrap();
    assert_eq!((first.rows.len(), second.rows), (3, vec![old]));
}

// inventory §5.1 prune_attested_nodes_expired_for, prune_attested_nodes_batch_size, prune_tofu_nodes
async fn agents_are_pruned_when_their_certificates_ended(database: &Database) {
    let store = database.open().await;
    for n in 0..5 {
        let mut old = agent(&format!("old{n}"), &["t:a"]);
        old.expires_at = 1_000 + n;
        store.put_agent(&old).await.unwrap();
    }
    let mut once = agent("once", &[]);
    once.can_reattest = false;
    once.expires_at = 1_000;
    let mut banned = agent("banned", &[]);
    banned.serial_number.clear();
    banned.expires_at = 1_000;
    for one in [&once, &banned, &agent("new", &[])] {
        store.put_agent(one).await.unwrap();
    }
    let pruned = store.prune_agents(1_004, false, 3).await.unwrap();
    assert_eq!(
        pruned,
        [
            id("spire/agent/old0"),
            id("spire/agent/old1"),
            id("spire/agent/old2")
        ]
    );
    let pruned = store.prune_agents(1_004, false, 3).await.unwrap();
    assert_eq!(pruned, [id("spire/agent/old3")]);
    let pruned = store.prune_agents(1_004, true, 3).await.unwrap();
    assert_eq!(pruned, [id("spire/agent/once")]);
    assert!(store.prune_agents(1_004, true, 3).await.unwrap().is_empty());
    assert_eq!(
        store.count_agents(&AgentFilter::default()).await.unwrap(),
        3
    );
}

async fn a_join_token_s_own_entry_goes_with_its_agent(database: &Database) {
    let store = database.open().await;
    let mut one = agent("join_token/x", &[]);
    one.attestation_type = "join_token".into();
    store.put_agent(&one).await.unwrap();
    let own = format!("spiffe_id:{}", one.id);
    let mut alias = entry("node", &[&own]);
    alias.parent_id = one.id.clone();
    let alias = add(&store, alias).await;
    let mut kept = entry("w", &["unix:uid:1"]);
    kept.parent_id = one.id.clone();
    let kept = add(&store, kept).await;
    let newest = store.entry_events(None).await.unwrap()[0].event;
    store.delete_agent(&one.id).await.unwrap();
    assert_eq!(ids(&store, EntryFilter::default()).await, [kept.id]);
    let told = store.entry_events(Some(newest)).await.unwrap();
    assert_eq!((told.len(), &told[0].id), (1, &alias.id));
}

// inventory §10.1 datastore node_event list, prune
async fn every_change_of_an_agent_is_told(database: &Database) {
    let store = database.open().await;
    let one = agent("a", &["t:a"]);
    store.put_agent(&one).await.unwrap();
    store
        .update_agent(&one.id, |agent| agent.version = "2".into())
        .await
        .unwrap();
    store.delete_agent(&one.id).await.unwrap();
    let told = store.agent_events(Some(0)).await.unwrap();
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|changed| changed.id == one.id.to_string()));
    assert_eq!(store.agent_events(None).await.unwrap(), told[2..]);
    assert_eq!(store.prune_agent_events(4_000_000_000).await.unwrap(), 3);
}

// inventory §10.1 datastore join_token create, fetch, delete, prune
async fn a_join_token_lets_one_in(database: &Database) {
    let store = database.open().await;
    let token = |name: &str, expires_at| JoinToken {
        token: name.into(),
        expires_at,
    };
    store.create_join_token(&token("a", 1_000)).await.unwrap();
    store.create_join_token(&token("b", 1_001)).await.unwrap();
    let again = store.create_join_token(&token("a", 5)).await;
    assert!(
        matches!(again, Err(StoreError::AlreadyExists(_))),
        "{again:?}"
    );
    assert!(
        !format!("{again:?}").contains("\"a\""),
        "the token is a secret"
    );
    let late = spender("first", 2_000);
    let taken = store.consume_join_token("a", &late).await;
    let taken = taken.unwrap().unwrap();
    assert_eq!((taken.token.as_str(), taken.expires_at), ("a", 1_000));
    // Nobody is remembered for a token that had expired.
    assert!(
        store
            .consume_join_token("a", &late)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(store.prune_join_tokens(1_001).await.unwrap(), 0);
    assert_eq!(store.prune_join_tokens(1_002).await.unwrap(), 1);
    assert!(
        store
            .consume_join_token("b", &late)
            .await
            .unwrap()
            .is_none()
    );
}

async fn whoever_took_a_join_token_gets_it_again_for_a_while(database: &Database) {
    let store = database.open().await;
    let made = JoinToken {
        token: "t".into(),
        expires_at: 1_000,
    };
    store.create_join_token(&made).await.unwrap();
    let take = async |key: &str, now| {
        let taken = store.consume_join_token("t", &spender(key, now)).await;
        taken.unwrap().map(|taken| taken.token)
    };
    let won = Some("t".to_owned());
    assert_eq!(take("first", 900).await, won);
    assert_eq!(take("other", 901).await, None);
    assert_eq!(take("first", 1_000).await, won);
    assert_eq!(take("first", 1_001).await, None);
    // What is remembered is no token itself, and ends with time.
    let digest = ah_identity_provider::hex(digest(&SHA256, b"t").as_ref());
    let receipt = format!("used:{digest}:first");
    let other = spender("x", 900);
    assert!(
        store
            .consume_join_token(&receipt, &other)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(store.prune_join_tokens(1_001).await.unwrap(), 1);

    // An agent that was deleted does not come back with its token.
    store.create_join_token(&made).await.unwrap();
    assert_eq!(take("first", 900).await, won);
    let agent = Agent {
        attestation_type: "join_token".into(),
        ..agent("t", &[])
    };
    store.put_agent(&agent).await.unwrap();
    store.delete_agent(&agent.id).await.unwrap();
    assert_eq!(take("first", 900).await, None);
}

async fn one_of_many_gets_a_join_token(database: &Database) {
    let stores = [database.open().await, database.open().await];
    for round in 0..20 {
        let token = format!("token-{round}");
        let made = JoinToken {
            token: token.clone(),
            expires_at: 1,
        };
        stores[0].create_join_token(&made).await.unwrap();
        let tries: Vec<_> = (0..6)
            .map(|n| {
                let (store, token) = (stores[n % 2].clone(), token.clone());
                tokio::spawn(async move {
                    let spender = spender(&n.to_string(), 1);
                    let taken = store.consume_join_token(&token, &spender).await;
                    taken.unwrap().is_some()
                })
            })
            .collect();
        let mut won = 0;
        for one in tries {
            won += u32::from(one.await.unwrap());
        }
        assert_eq!(won, 1);
    }
}

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

    let same = store
        .update_bundle(&given.trust_domain, |old| old)
        .await
        .unwrap();
    assert_eq!(
        same.as_ref(),
        Some(&given),
        "nothing changed, nothing counts"
    );
    let none = store
        .update_bundle(&given.trust_domain, |_| None)
        .await
        .unwrap();
    assert_eq!(none.as_ref(), Some(&given));
    let grown = store
        .update_bundle(&given.trust_domain, |old| {
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
        .update_bundle(&domain("x.test"), |old| old)
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
                    .update_bundle(&of, |old| {
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
    let all = store.all_entries().await.unwrap();
    assert_eq!(all.len(), 4 * 25 + 25);
    let shared = all
        .iter()
        .filter(|entry| entry.spiffe_id.path().starts_with("/shared"));
    assert_eq!(shared.count(), 25);
    assert_eq!(store.entry_events(Some(0)).await.unwrap().len(), 125);
}
