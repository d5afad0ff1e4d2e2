//! Rotation, and what happens to it: kill -9, a clock that jumps, a store that fails, a second server.

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Clock;
use ah_spire_wire::bundle::{bundle_from_stored, bundle_to_stored};
use ah_spire_wire::jwt::UnverifiedJwt;
use ah_spire_wire::model::JwtKey;
use ah_spire_wire::stored::common;
use ah_spire_wire::stored::journal::{Entries, JwtKeyEntry, Status};
use prost::Message;

use super::kit::{
    HeldClock, Life, MemoryStore, MortalKeys, PausedClock, START, at, domain, keys_in, on_disk,
    place, settings, signs_for_the_bundle, start, started, wit_request,
};
use crate::ca::authority::Token;
use crate::ca::{Authorities, CaError, LocalAuthorities as _, Manager, Profile, Signer as _};
use crate::keys::{KeyManager, MemoryKeys};

const HOUR: u64 = 3600;

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * HOUR)
}

fn active_id<K: KeyManager>(manager: &Manager<MemoryStore, K>) -> String {
    manager.authorities().x509_authority().unwrap().id()
}

#[tokio::test]
async fn the_first_start_makes_authorities_and_the_second_finds_them() {
    let (dir, store, clock) = place();
    let first = on_disk(&dir, &store, &clock).await;
    signs_for_the_bundle(first.authorities(), &store);
    let id = active_id(&first);
    assert_eq!(store.active().0, std::slice::from_ref(&id));
    assert_eq!(store.entries()[0].0, id);
    let bundle = store.own();
    assert_eq!((bundle.x509.len(), bundle.jwt.len()), (1, 1));
    drop(first);
    clock.advance(hours(1));
    let second = on_disk(&dir, &store, &clock).await;
    assert_eq!(active_id(&second), id);
    assert_eq!(store.own(), bundle);
    signs_for_the_bundle(second.authorities(), &store);
}

#[tokio::test]
async fn lost_keys_are_replaced_and_the_old_ca_stays_in_the_bundle() {
    let (_, store, clock) = place();
    let first = started(&store, &clock).await;
    let second = started(&store, &clock).await;
    assert_ne!(active_id(&first), active_id(&second));
    assert_eq!(store.own().x509.len(), 2);
    signs_for_the_bundle(second.authorities(), &store);
    // What the first one signed is good still.
    signs_for_the_bundle(first.authorities(), &store);
}

// Upstream's schedule for a CA of 24 hours: prepared after 12, active after 20; and so on from there.
#[tokio::test(start_paused = true)]
async fn authorities_rotate_on_schedule() {
    let (store, clock) = (MemoryStore::default(), PausedClock::new());
    let manager = Arc::new(started(&store, &clock).await);
    let running = tokio::spawn({
        let manager = manager.clone();
        async move { manager.run().await }
    });
    let first = active_id(&manager);
    let begun = tokio::time::Instant::now();
    let until = |seconds: u64| tokio::time::sleep_until(begun + Duration::from_secs(seconds));
    until(12 * HOUR).await;
    assert!(manager.x509_states().await.unwrap().other.is_none());
    until(12 * HOUR + 15).await;
    let prepared = manager.x509_states().await.unwrap().other.unwrap();
    assert_eq!(prepared.status, crate::ca::Status::Prepared);
    let jwt = manager.jwt_states().await.unwrap();
    let prepared_jwt = jwt.other.unwrap().id;
    assert_eq!(store.own().x509.len(), 2);
    assert_eq!(store.own().jwt.len(), 2);
    until(20 * HOUR).await;
    assert_eq!(active_id(&manager), first);
    until(20 * HOUR + 15).await;
    assert_eq!(active_id(&manager), prepared.id);
    assert_eq!(manager.jwt_states().await.unwrap().active.id, prepared_jwt);
    let old = manager.x509_states().await.unwrap().other.unwrap();
    assert_eq!((old.id, old.status), (first, crate::ca::Status::Old));
    assert_eq!(store.active().0, std::slice::from_ref(&prepared.id));
    // Made at 12 h 10 s, it is past half of its life at 24 h 10 s, and the first one has just ended.
    until(24 * HOUR + 30).await;
    assert_eq!(active_id(&manager), prepared.id);
    assert_eq!(store.own().x509.len(), 3);
    // Pruned a day after its end, at a turn of 6 hours.
    until(47 * HOUR).await;
    let before = store.own();
    until(48 * HOUR + 30).await;
    let gone: Vec<_> = before
        .x509
        .iter()
        .filter(|ca| !store.own().x509.contains(ca))
        .collect();
    assert_eq!(gone.len(), 1);
    let two_weeks = i64::try_from(START).unwrap() + 48 * 3600 - 14 * 24 * 3600;
    assert_eq!(store.pruned_before(), Some(two_weeks));
    signs_for_the_bundle(manager.authorities(), &store);
    running.abort();
}

/// Four days of a server, every step of which may be its last.
async fn live(store: MemoryStore, keys: MortalKeys, clock: Arc<HeldClock>) {
    let manager = start(&store, keys, clock.clone()).await.unwrap();
    for _ in 0..16 {
        clock.advance(hours(6));
        manager.rotate().await.unwrap();
        signs_for_the_bundle(manager.authorities(), &store);
    }
}

// kill -9 before and after each thing that a server does to its keys, its bundle and its journal.
#[tokio::test]
async fn a_server_that_is_killed_at_any_step_goes_on() {
    let mut finished = false;
    for end in 0.. {
        let (dir, kept, clock) = place();
        let path = dir.path().join("keys.json");
        let life = Life::until(end);
        let keys = MortalKeys::open(&path, life.clone());
        finished = life
            .of(live(kept.in_life(life.clone()), keys, clock.clone()))
            .await;
        if finished {
            assert!(end > 60, "only {end} steps");
            break;
        }
        let again = on_disk(&dir, &kept, &clock).await;
        signs_for_the_bundle(again.authorities(), &kept);
        let (x509, jwt) = kept.active();
        assert_eq!(x509, [active_id(&again)], "step {end}");
        assert_eq!(
            jwt,
            [again.jwt_states().await.unwrap().active.id],
            "step {end}"
        );
        // And it rotates as if nothing had happened.
        for _ in 0..5 {
            clock.advance(hours(6));
            again.rotate().await.unwrap();
            signs_for_the_bundle(again.authorities(), &kept);
        }
        assert_eq!(kept.active().0, [active_id(&again)], "step {end}");
    }
    assert!(finished);
}

#[tokio::test]
async fn two_servers_on_one_store_have_a_journal_each_and_share_the_bundle() {
    let (_, store, clock) = place();
    let (a, b) = tokio::join!(
        start(&store, MemoryKeys::default(), clock.clone()),
        start(&store, MemoryKeys::default(), clock.clone())
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    for round in 1..=6 {
        clock.advance(hours(7));
        let (one, other) = tokio::join!(a.rotate(), b.rotate());
        one.unwrap();
        other.unwrap();
        for server in [&a, &b] {
            signs_for_the_bundle(server.authorities(), &store);
        }
        let mut active: Vec<_> = store
            .entries()
            .into_iter()
            .map(|(active, _)| active)
            .collect();
        active.sort();
        let mut expected = vec![active_id(&a), active_id(&b)];
        expected.sort();
        assert_eq!(active, expected, "round {round}");
    }
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_gets_new_authorities_at_once() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    for _ in 0..3 {
        // Beyond the end of whatever is active or prepared.
        clock.advance(hours(24 * 30));
        manager.rotate().await.unwrap();
        signs_for_the_bundle(manager.authorities(), &store);
    }
}

// A server that was started with a clock in the future has to get over it.
#[tokio::test]
async fn a_clock_that_jumps_back_gets_new_authorities_too() {
    let (dir, store, clock) = place();
    let manager = on_disk(&dir, &store, &clock).await;
    let first = active_id(&manager);
    // As far as certificates are backdated, nothing happens.
    clock.set(-10);
    manager.rotate().await.unwrap();
    assert_eq!(active_id(&manager), first);
    clock.set(-1_000_000);
    manager.rotate().await.unwrap();
    assert_ne!(active_id(&manager), first);
    signs_for_the_bundle(manager.authorities(), &store);
    drop(manager);
    clock.set(-2_000_000);
    let again = on_disk(&dir, &store, &clock).await;
    signs_for_the_bundle(again.authorities(), &store);
}

#[tokio::test]
async fn without_a_bundle_nothing_new_is_used() {
    let (_, store, clock) = place();
    store.fail(true, false);
    let error = start(&store, MemoryKeys::default(), clock.clone())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, CaError::Store(_)), "{error}");
    store.fail(false, false);
    let manager = started(&store, &clock).await;
    let first = active_id(&manager);
    store.fail(true, false);
    clock.advance(hours(21));
    assert!(manager.rotate().await.is_err());
    assert_eq!(active_id(&manager), first);
    store.fail(false, false);
    manager.rotate().await.unwrap();
    assert_ne!(active_id(&manager), first);
    signs_for_the_bundle(manager.authorities(), &store);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_is_written_later() {
    let (dir, store, clock) = place();
    let manager = on_disk(&dir, &store, &clock).await;
    let first = active_id(&manager);
    clock.advance(hours(13));
    manager.rotate().await.unwrap();
    let other = manager.x509_states().await.unwrap().other.unwrap().id;
    store.fail(false, true);
    // An operator activates while the store is read-only.
    manager.activate_x509(&other).await.unwrap();
    assert_eq!(active_id(&manager), other);
    assert_eq!(store.active().0, [first]);
    // The key that the stored journal is found by is not overwritten meanwhile.
    clock.advance(hours(13));
    assert!(manager.rotate().await.is_err());
    assert!(manager.prepare_x509().await.is_err());
    store.fail(false, false);
    let killed = manager;
    let again = on_disk(&dir, &store, &clock).await;
    signs_for_the_bundle(again.authorities(), &store);
    assert_eq!(store.entries().len(), 1);
    drop(again);
    // Or, not killed, it saves what it had not.
    killed.rotate().await.unwrap();
    assert_eq!(store.active().0, [active_id(&killed)]);
}

// As after a datastore was restored from a backup: nobody could verify what such a CA signs.
#[tokio::test]
async fn an_authority_that_the_bundle_lacks_is_not_used() {
    let (dir, store, clock) = place();
    let first = active_id(&on_disk(&dir, &store, &clock).await);
    let mut bundle = store.own();
    bundle.x509.clear();
    bundle.jwt.clear();
    store.put(bundle);
    let again = on_disk(&dir, &store, &clock).await;
    assert_ne!(active_id(&again), first);
    signs_for_the_bundle(again.authorities(), &store);
}

#[tokio::test]
async fn the_last_keys_are_not_pruned() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    let before = store.own();
    clock.advance(hours(49));
    let error = manager.prune_bundle().await.unwrap_err();
    assert!(error.to_string().starts_with("would prune all"), "{error}");
    assert_eq!(store.own(), before);
    manager.rotate().await.unwrap();
    manager.prune_bundle().await.unwrap();
    assert_eq!(store.own().x509.len(), 1);
    assert_eq!(store.own().jwt.len(), 1);
    assert!(store.own().sequence > before.sequence);
}

// What upstream's server made and this one does not: it goes when its time is over, but for the last.
#[tokio::test]
async fn wit_keys_are_pruned_but_for_the_last() {
    let (_, store, clock) = place();
    let manager = without_wit(&store, MemoryKeys::default(), &clock).await;
    let wit = |id: &str, hours: i64| JwtKey {
        spki: vec![1],
        id: id.into(),
        expires_at: i64::try_from(START).unwrap() + hours * 3600,
        tainted: false,
    };
    let mut own = store.own();
    own.wit = vec![wit("a", 1), wit("b", 30)];
    store.put(own);
    let kept = || store.own().wit.into_iter().map(|key| key.id);
    clock.advance(hours(49));
    manager.rotate().await.unwrap();
    manager.prune_bundle().await.unwrap();
    assert_eq!(kept().collect::<Vec<_>>(), ["b"]);
    clock.advance(hours(49));
    manager.rotate().await.unwrap();
    manager.prune_bundle().await.unwrap();
    assert_eq!(kept().collect::<Vec<_>>(), ["b"]);
    assert_eq!(store.own().jwt.len(), 1);
}

// Keys, journal and bundle that upstream 1.14.1 wrote with jwt_key_type rsa-2048.
#[tokio::test]
async fn what_upstream_left_is_taken_over() {
    let (dir, store, clock) = place();
    std::fs::write(
        dir.path().join("keys.json"),
        include_str!("../../../tests/fixtures/upstream-keys.json"),
    )
    .unwrap();
    let journal = include_bytes!("../../../tests/fixtures/upstream-journal.bin");
    let mut entries = Entries::decode(journal.as_slice()).unwrap();
    let theirs = entries.x509_c_as.last().unwrap().clone();
    assert_eq!(theirs.status, i32::from(Status::Active));
    // As with its feature flag wit-svid.
    let wit = JwtKeyEntry {
        slot_id: "A".into(),
        kid: "wit".into(),
        ..JwtKeyEntry::default()
    };
    entries.wit_keys.push(wit.clone());
    store.put_raw_journal(&theirs.authority_id, &entries.encode_to_vec());
    let bundle = include_bytes!("../../../tests/fixtures/upstream-bundle.bin");
    let mut bundle = common::Bundle::decode(bundle.as_slice()).unwrap();
    bundle.wit_signing_keys.push(common::PublicKey {
        pkix_bytes: vec![1],
        kid: "wit".into(),
        not_after: theirs.not_after,
        tainted_key: false,
    });
    store.put(bundle_from_stored(&bundle).unwrap());
    clock.set(theirs.issued_at + 3600 - i64::try_from(START).unwrap());
    let manager = without_wit(&store, keys_in(&dir), &clock).await;
    assert_eq!(active_id(&manager), theirs.authority_id);
    assert_eq!(store.own().x509.len(), 1);
    let now = clock.now();
    assert!(manager.authorities().active_token(Token::Wit, now).is_err());
    // It goes on from there, in the same journal.
    clock.advance(hours(20));
    manager.rotate().await.unwrap();
    let [(active, entries)] = store.entries().try_into().unwrap();
    assert_eq!(active, active_id(&manager));
    assert_eq!(entries.wit_keys, [wit]);
    assert_eq!(
        bundle_to_stored(&store.own()).wit_signing_keys,
        bundle.wit_signing_keys
    );
    let slots: Vec<_> = entries
        .x509_c_as
        .iter()
        .map(|entry| entry.slot_id.as_str())
        .collect();
    assert_eq!(slots, ["A", "B"]);
    // With the flag there is a key, which the journal names from then on.
    let manager = on_disk(&dir, &store, &clock).await;
    signs_for_the_bundle(manager.authorities(), &store);
    let [(_, entries)] = store.entries().try_into().unwrap();
    assert_eq!(entries.wit_keys.len(), 2);
}

// Upstream journals old and active in two writes: a crash between them leaves no active authority.
#[tokio::test]
async fn a_rotation_that_upstream_was_killed_in_is_completed() {
    let (dir, store, clock) = place();
    let manager = on_disk(&dir, &store, &clock).await;
    clock.advance(hours(13));
    manager.rotate().await.unwrap();
    let prepared = manager.x509_states().await.unwrap().other.unwrap().id;
    let [(active, mut entries)] = store.entries().try_into().unwrap();
    for entry in &mut entries.x509_c_as {
        if entry.authority_id == active {
            entry.status = Status::Old.into();
        }
    }
    let restored = MemoryStore::default();
    restored.put_raw_journal(&active, &entries.encode_to_vec());
    restored.put(store.own());
    let again = on_disk(&dir, &restored, &clock).await;
    assert_eq!(active_id(&again), prepared);
    assert_eq!(restored.active().0, [prepared]);
    assert_eq!(restored.own().x509.len(), 2);
}

#[tokio::test]
async fn a_damaged_journal_is_said() {
    let (dir, store, clock) = place();
    let manager = on_disk(&dir, &store, &clock).await;
    let damaged = MemoryStore::default();
    damaged.put_raw_journal(&active_id(&manager), b"\xff");
    let error = start(&damaged, keys_in(&dir), clock).await.err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("CA journal 1 cannot be read: "),
        "{error}"
    );
}

#[tokio::test]
async fn without_jwt_there_is_no_jwt_key() {
    let (_, store, clock) = place();
    let authorities = Arc::new(Authorities::new(Profile::new(domain()), clock.clone()));
    let mut settings = settings();
    settings.disable_jwt = true;
    let keys = MemoryKeys::default();
    Manager::start(authorities, Arc::new(store.clone()), keys, settings)
        .await
        .unwrap();
    assert!(store.own().jwt.is_empty());
    assert_eq!(store.own().wit.len(), 1);
}

/// A server without the feature flag `wit-svid`.
async fn without_wit<K: KeyManager>(
    store: &MemoryStore,
    keys: K,
    clock: &Arc<HeldClock>,
) -> Manager<MemoryStore, K> {
    let authorities = Arc::new(Authorities::new(Profile::new(domain()), clock.clone()));
    let mut settings = settings();
    settings.wit_key_type = None;
    Manager::start(authorities, Arc::new(store.clone()), keys, settings)
        .await
        .unwrap()
}

// A switch of the flag changes nothing for those who hold a bundle.
#[tokio::test]
async fn wit_keys_rotate_with_the_flag_alone() {
    let (dir, store, clock) = place();
    let manager = on_disk(&dir, &store, &clock).await;
    let first = store.own().wit;
    assert_eq!(first.len(), 1);
    clock.advance(hours(13));
    manager.rotate().await.unwrap();
    assert_eq!(store.own().wit.len(), 2);
    let signer = |manager: &Manager<MemoryStore, _>| {
        let svid = manager.authorities().sign_wit_svid(wit_request()).unwrap();
        UnverifiedJwt::parse(&svid.token).unwrap().key_id.unwrap()
    };
    assert_eq!(signer(&manager), first[0].id);
    clock.advance(hours(8));
    manager.rotate().await.unwrap();
    assert_eq!(signer(&manager), store.own().wit[1].id);
    drop(manager);
    let held = store.own().wit;
    let off = without_wit(&store, keys_in(&dir), &clock).await;
    let error = off.authorities().sign_wit_svid(wit_request()).err();
    let text = "WIT key is not available for signing";
    assert_eq!(error.unwrap().to_string(), text);
    assert_eq!(store.own().wit, held);
    drop(off);
    let on = on_disk(&dir, &store, &clock).await;
    assert_eq!(signer(&on), held[1].id);
}

#[tokio::test]
async fn the_journal_forgets_the_oldest() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    for _ in 0..12 {
        clock.advance(hours(25));
        manager.rotate().await.unwrap();
    }
    let [(_, entries)] = store.entries().try_into().unwrap();
    let tokens = [entries.jwt_keys.len(), entries.wit_keys.len()];
    assert_eq!((entries.x509_c_as.len(), tokens), (10, [10, 10]));
    assert!(clock.now() > at(0));
}

// As by another server's pruning, while this one was away.
#[tokio::test]
async fn a_journal_that_is_gone_is_written_anew() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    store.forget_journals();
    clock.advance(hours(21));
    manager.rotate().await.unwrap();
    assert_eq!(store.active().0, [active_id(&manager)]);
}

#[tokio::test]
async fn what_was_found_again_serves_while_nothing_new_can_be_made() {
    let (dir, store, clock) = place();
    let first = on_disk(&dir, &store, &clock).await;
    clock.advance(hours(21));
    store.fail(true, false);
    let again = on_disk(&dir, &store, &clock).await;
    assert_eq!(active_id(&again), active_id(&first));
    signs_for_the_bundle(again.authorities(), &store);
    clock.advance(hours(4));
    let keys = keys_in(&dir);
    assert!(start(&store, keys, clock).await.is_err());
}
