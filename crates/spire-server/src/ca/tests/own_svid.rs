use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Clock;
use tokio::time::Instant;

use super::kit::{HeldClock, MemoryStore, PausedClock, started, verify};
use crate::ca::{LocalAuthorities as _, ServerSvids};
use crate::endpoints::ServerSvid;
use crate::keys::{KeyType, LocalKey, SigningKey};

fn holds_together(svid: &ServerSvid, store: &MemoryStore, clock: &dyn Clock) {
    let bundle = store.own();
    let roots = bundle.x509.iter().map(|ca| ca.der.as_slice());
    verify(&svid.chain, roots, clock.now());
    let key = LocalKey::from_private_key("k", &svid.key.der()).unwrap();
    assert_eq!(key.key_type(), KeyType::EcP256);
    let spki = crate::ca::authority::Certificate::read(svid.chain[0].clone())
        .unwrap()
        .spki;
    assert_eq!(spki, key.spki());
}

#[tokio::test(start_paused = true)]
async fn the_servers_svid_is_new_at_half_of_its_life_and_when_its_ca_is_tainted() {
    let (store, clock) = (MemoryStore::default(), PausedClock::new());
    let manager = started(&store, &clock).await;
    let svids = ServerSvids::new(manager.authorities().clone(), manager.tainted()).unwrap();
    let (mut newest, chains) = (svids.subscribe(), svids.chains());
    let begun = Instant::now();
    let running = tokio::spawn(svids.run());
    let first = newest.borrow_and_update().clone().unwrap();
    holds_together(&first, &store, clock.as_ref());

    newest.changed().await.unwrap();
    let after = begun.elapsed();
    // An hour and 10 s of life, that begin 10 s ago; looked at every 5 s.
    let half = Duration::from_secs(3610 / 2 - 10);
    assert!(
        after >= half && after <= half + Duration::from_secs(5),
        "{after:?}"
    );
    let second = newest.borrow_and_update().clone().unwrap();
    assert_ne!(second.chain, first.chain);
    holds_together(&second, &store, clock.as_ref());

    let old = manager.x509_states().await.unwrap().active.id;
    let next = manager.prepare_x509().await.unwrap().id;
    manager.activate_x509(&next).await.unwrap();
    let begun = Instant::now();
    manager.taint_x509(&old).await.unwrap();
    newest.changed().await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(5));
    manager.revoke_x509(&old).await.unwrap();
    let third: Arc<ServerSvid> = newest.borrow_and_update().clone().unwrap();
    holds_together(&third, &store, clock.as_ref());
    assert_eq!(*chains.borrow(), third.chain);
    running.abort();
}

// The CA from the future would sign what nobody takes, and the rotator would be content with it for half an hour.
#[tokio::test(start_paused = true)]
async fn once_the_clock_was_set_back_the_servers_svid_waits_for_a_ca_that_holds() {
    let (store, clock) = (MemoryStore::default(), HeldClock::new());
    let manager = started(&store, &clock).await;
    let svids = ServerSvids::new(manager.authorities().clone(), manager.tainted()).unwrap();
    let mut newest = svids.subscribe();
    let running = tokio::spawn(svids.run());
    newest.mark_unchanged();
    clock.set(-1_000_000);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!newest.has_changed().unwrap());
    manager.rotate().await.unwrap();
    newest.changed().await.unwrap();
    let svid = newest.borrow().clone().unwrap();
    holds_together(&svid, &store, clock.as_ref());
    running.abort();
}
