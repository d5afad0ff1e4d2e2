//! A server that tells of changes, one that does not, and one that stops telling.

use std::time::Duration;

use ah_spire_wire::types::permission_denied_details::Reason;

use crate::fake::{Ca, Fake};
use crate::rig::{Node, ids, update};

/// So long that only what the server tells can make the agent look.
const NEVER: Duration = Duration::from_secs(3600);

fn node(fake: &Fake) -> Node {
    let mut node = Node::new(fake);
    node.settings.sync_interval = NEVER;
    node
}

// Bar 13: an entry that changed is served at once.
#[tokio::test]
async fn a_change_that_is_told_is_served_without_a_poll() {
    let fake = Fake::start().await;
    fake.state().tells = true;
    fake.set_entry("a", "/a", |_| {});
    let agent = node(&fake);
    let agent = agent.start();
    let mut updates = agent.subscribe().await;

    fake.set_entry("b", "/b", |_| {});
    fake.tell();
    update(&mut updates, |update| ids(update) == ["/a", "/b"]).await;
    fake.state().entries.clear();
    fake.tell();
    update(&mut updates, |update| update.identities.is_empty()).await;

    // A new root makes a new connection, on which the agent listens again.
    let next = Ca::new();
    fake.state().more_authorities = vec![ah_spire_wire::types::X509Certificate {
        asn1: next.der.to_vec().into(),
        tainted: false,
    }];
    fake.tell();
    update(&mut updates, |update| update.bundle.x509.len() == 2).await;
    fake.set_entry("c", "/c", |_| {});
    fake.tell();
    update(&mut updates, |update| ids(update) == ["/c"]).await;
    assert_eq!(fake.calls("Watch"), 2);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_storm_of_news_is_few_looks() {
    let fake = Fake::start().await;
    fake.state().tells = true;
    fake.set_entry("a", "/a", |_| {});
    let agent = node(&fake);
    let agent = agent.start();
    let mut updates = agent.subscribe().await;

    // One look is held up while fifty more changes are told.
    fake.state().held.insert("SyncAuthorizedEntries");
    let before = fake.calls("SyncAuthorizedEntries");
    fake.tell();
    fake.called_in_all("SyncAuthorizedEntries", before + 1)
        .await;
    for n in 0..50 {
        fake.set_entry("b", &format!("/b{n}"), |_| {});
        fake.tell();
    }
    fake.set_entry("b", "", |entry| {
        entry.spiffe_id.as_mut().unwrap().path = "/last".into()
    });
    fake.tell();
    fake.release();
    update(&mut updates, |update| ids(update) == ["/a", "/last"]).await;
    // By the time that it hears the end it has heard all that came before.
    fake.hang_up(None);
    fake.called_in_all("Watch", 2).await;
    let looks = fake.calls("SyncAuthorizedEntries") - before;
    assert!(looks < 10, "{looks} looks");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_tell_is_polled_and_asked_once() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    fake.called("SyncAuthorizedEntries", 3).await;
    fake.set_entry("b", "/b", |_| {});
    update(&mut updates, |update| ids(update) == ["/a", "/b"]).await;
    assert_eq!(fake.calls("Watch"), 1, "once for each connection");

    // Its successor does, behind the same address.
    fake.state().tells = true;
    fake.go_away();
    fake.come_back().await;
    fake.called_in_all("Watch", 2).await;
    assert_eq!(fake.calls("AttestAgent"), 1);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again_and_nothing_is_missed() {
    let fake = Fake::start().await;
    fake.state().tells = true;
    fake.set_entry("a", "/a", |_| {});
    let agent = node(&fake);
    let agent = agent.start();
    let mut updates = agent.subscribe().await;
    fake.hang_up(None);
    // Told to nobody.
    fake.set_entry("b", "/b", |_| {});
    update(&mut updates, |update| ids(update) == ["/a", "/b"]).await;

    // The same for a connection that breaks.
    let listened = fake.calls("Watch");
    fake.go_away();
    fake.set_entry("c", "/c", |_| {});
    fake.come_back().await;
    update(&mut updates, |update| ids(update) == ["/a", "/b", "/c"]).await;
    fake.called_in_all("Watch", listened + 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_banned_hears_it_at_once() {
    let fake = Fake::start().await;
    fake.state().tells = true;
    fake.set_entry("a", "/a", |_| {});
    let agent = node(&fake);
    let agent = agent.start();
    let mut updates = agent.subscribe().await;
    fake.state().denied = Some(Reason::AgentBanned);
    fake.hang_up(Some(Reason::AgentBanned));
    update(&mut updates, |update| update.identities.is_empty()).await;
    agent.stop().await.unwrap();
}

// Safe rotation: operators wait for what agents say that they hold.
#[tokio::test]
async fn the_server_is_told_what_is_held_on_each_connection() {
    let fake = Fake::start().await;
    fake.state().tells = true;
    fake.set_entry("a", "/a", |_| {});
    let agent = node(&fake);
    let agent = agent.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    fake.called_in_all("Report", 1).await;
    assert_eq!(fake.state().reports, [(1, 0)]);

    // Nothing that is tainted is left when it is told.
    fake.state().taint = true;
    fake.state().sequence = 2;
    fake.tell();
    fake.called_in_all("Report", 2).await;
    assert_eq!(fake.state().reports.get(1), Some(&(2, 0)));
    assert_ne!(
        updates.borrow_and_update().identities[0].chain,
        first.identities[0].chain
    );

    // A server that was started again knows nothing.
    fake.go_away();
    fake.state().reports.clear();
    let before = fake.calls("Report");
    fake.come_back().await;
    fake.called_in_all("Report", before + 1).await;
    assert_eq!(fake.state().reports.first(), Some(&(2, 0)));
    agent.stop().await.unwrap();
}
