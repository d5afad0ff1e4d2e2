use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::model::Selector;
use ah_spire_wire::types;
use spire_agent::identities::{Identities, JwtError};

use crate::fake::{Ca, Fake};
use crate::rig::{Node, ids, soon, update, workload};

#[tokio::test]
async fn a_workload_gets_what_its_entries_say_as_they_change() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    assert_eq!(ids(&first), ["/a"]);
    assert_eq!(first.bundle.x509.len(), 1);

    // A second entry comes; the older one stays the default.
    fake.set_entry("b", "/b", |_| {});
    let both = update(&mut updates, |update| update.identities.len() == 2).await;
    assert_eq!(ids(&both), ["/a", "/b"]);
    assert!(Arc::ptr_eq(&both.identities[0], &first.identities[0]));

    // A change makes a new SVID.
    fake.set_entry("b", "/b", |entry| entry.hint = "h".into());
    let hinted = update(&mut updates, |update| {
        update
            .identities
            .iter()
            .any(|identity| identity.entry.hint == "h")
    })
    .await;
    assert_ne!(hinted.identities[1].chain, both.identities[1].chain);

    // Selectors that the workload has not got take the entry away from it.
    fake.set_entry("b", "/b", |entry| entry.selectors[0].value = "uid:2".into());
    update(&mut updates, |update| ids(update) == ["/a"]).await;
    fake.state().entries.clear();
    update(&mut updates, |update| update.identities.is_empty()).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn who_is_not_concerned_is_not_told() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    fake.set_entry("other", "/other", |entry| {
        entry.selectors[0].value = "uid:2".into();
    });
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    updates.borrow_and_update();
    let mut others = soon(
        agent
            .identities
            .subscribe(&[Selector::new("unix", "uid:2")]),
    )
    .await;
    fake.set_entry("other", "/other", |entry| entry.hint = "new".into());
    update(&mut others, |update| {
        update.identities[0].entry.hint == "new"
    })
    .await;
    assert!(!updates.has_changed().unwrap());
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn only_entries_that_changed_are_fetched() {
    let fake = Fake::start().await;
    for n in 0..7 {
        fake.set_entry(&format!("e{n}"), &format!("/{n}"), |_| {});
    }
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    update(&mut updates, |update| update.identities.len() == 7).await;
    fake.called("SyncAuthorizedEntries", 2).await;
    assert_eq!(fake.state().sent, 7);
    fake.set_entry("e3", "/3", |entry| entry.hint = "h".into());
    update(&mut updates, |update| {
        update.identities[3].entry.hint == "h"
    })
    .await;
    assert_eq!(fake.state().sent, 8);
    agent.stop().await.unwrap();
}

// Inventory §8: Agent.PostStatus. Upstream's agents ask once as well, and go on.
#[tokio::test]
async fn a_server_that_takes_no_status_is_asked_once() {
    let fake = Fake::start().await;
    fake.state().denies_status = true;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let updates = agent.subscribe().await;
    fake.called("SyncAuthorizedEntries", 3).await;
    assert_eq!(fake.calls("PostStatus"), 1);
    assert_eq!(ids(&updates.borrow()), ["/a"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn servers_and_settings_without_revisions_are_served_by_the_older_call() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let mut node = Node::new(&fake);
    node.settings.use_sync_authorized_entries = false;
    let agent = node.start();
    let updates = agent.subscribe().await;
    assert_eq!(ids(&updates.borrow()), ["/a"]);
    assert_eq!(fake.calls("SyncAuthorizedEntries"), 0);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn bundles_of_federated_domains_come_and_go() {
    let fake = Fake::start().await;
    let other = Ca::new();
    fake.federate("other.org", &other);
    fake.set_entry("a", "/a", |entry| {
        entry.federates_with = vec!["other.org".into(), "unknown.org".into()];
    });
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    let domains: Vec<_> = first.federated.keys().map(ToString::to_string).collect();
    assert_eq!(domains, ["other.org"]);
    fake.state().federated.clear();
    update(&mut updates, |update| update.federated.is_empty()).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn svids_are_replaced_before_they_end_and_the_agents_own_too() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    let before = agent.health.state().svid_not_after;
    // Less than half of it is left.
    node.clock.jump(Duration::from_secs(2000));
    let next = update(&mut updates, |update| {
        update
            .identities
            .first()
            .is_some_and(|identity| identity.chain != first.identities[0].chain)
    })
    .await;
    assert_ne!(next.identities[0].key, first.identities[0].key);
    agent.until(|state| state.svid_not_after >= before).await;
    fake.called_in_all("RenewAgent", 1).await;
    assert_eq!(fake.calls("AttestAgent"), 1, "a join token is good once");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_tainted_authority_signed_is_replaced() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    let renewed = fake.calls("RenewAgent");
    fake.state().taint = true;
    update(&mut updates, |update| {
        update.identities[0].chain != first.identities[0].chain
    })
    .await;
    fake.called_in_all("RenewAgent", renewed + 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn jwt_svids_are_cached_for_half_of_their_life_and_served_while_valid() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    let audience = ["x".to_owned(), "y".to_owned()];
    let ask = async |audience: &[String]| {
        soon(agent.identities.jwt_svids(&workload(), audience, None)).await
    };
    let first = ask(&audience).await.unwrap();
    let again = ask(&["y".to_owned(), "x".to_owned()]).await.unwrap();
    assert_eq!(again[0].token, first[0].token, "the order is of no matter");
    assert_ne!(
        ask(&["z".to_owned()]).await.unwrap()[0].token,
        first[0].token
    );

    // Past half of its life: the server is asked, and where it is away the old one is served.
    node.clock.jump(Duration::from_secs(200));
    fake.state().jwt_down = true;
    assert_eq!(ask(&audience).await.unwrap()[0].token, first[0].token);
    node.clock.jump(Duration::from_secs(200));
    // With none that is valid the server is asked until it answers.
    fake.state().jwt_life = Duration::from_secs(3000);
    let asked = fake.calls("NewJWTSVID");
    let (new, ()) = tokio::join!(ask(&audience), async {
        fake.called_in_all("NewJWTSVID", asked + 1).await;
        fake.state().jwt_down = false;
    });
    let new = new.unwrap();
    assert_ne!(new[0].token, first[0].token);
    assert_eq!(ask(&audience).await.unwrap()[0].token, new[0].token);

    // A token with an ID of its own is never one of the cache.
    fake.set_entry("a", "/a", |entry| {
        entry.additional_attributes = Some(types::entry::AdditionalAttributes {
            jwt_svid_include_jti: true,
            ..Default::default()
        });
    });
    fake.called("SyncAuthorizedEntries", 2).await;
    let one = ask(&audience).await.unwrap();
    let two = ask(&audience).await.unwrap();
    assert_ne!(one[0].token, two[0].token);

    let nobody = [Selector::new("unix", "uid:9")];
    let none = agent.identities.jwt_svids(&nobody, &audience, None).await;
    assert_eq!(none.err(), Some(JwtError::NoIdentity));
    agent.stop().await.unwrap();
}

// Issue "Agent": many who want the same token at the same time are one request.
#[tokio::test]
async fn equal_requests_for_a_token_are_one() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    fake.state().held.insert("NewJWTSVID");
    let ask = |audience: &'static str| {
        let identities = agent.identities.clone();
        tokio::spawn(async move {
            let audience = [audience.to_owned()];
            let tokens = identities.jwt_svids(&workload(), &audience, None).await;
            tokens.unwrap().remove(0).token
        })
    };
    let mut asked: Vec<_> = (0..20).map(|_| ask("one")).collect();
    asked.push(ask("other"));
    fake.called_in_all("NewJWTSVID", 2).await;
    // All have asked by then: each was polled before the server was reached.
    fake.release();
    let mut tokens = Vec::new();
    for asked in asked {
        tokens.push(soon(asked).await.unwrap());
    }
    assert!(tokens.iter().take(20).all(|token| *token == tokens[0]));
    assert_eq!(fake.calls("NewJWTSVID"), 2);
    agent.stop().await.unwrap();
}
