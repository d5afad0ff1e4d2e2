//! What an agent gets over by itself.

use std::time::Duration;

use ah_spire_plugin::agent::{Bootstrap, RebootstrapMode};
use ah_spire_wire::types::permission_denied_details::Reason;
use spire_agent::identities::Identities;

use crate::fake::{Ca, Fake};
use crate::rig::{Node, ids, soon, update, workload, write_bundle};

#[tokio::test]
async fn a_server_that_was_away() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    fake.go_away();
    let report = agent.fault().await;
    assert!(
        report.starts_with("error: failed to connect to spire server"),
        "{report}"
    );
    // What there is goes on being served.
    assert_eq!(agent.health.state().not_ready(), None);
    assert_eq!(ids(&agent.subscribe().await.borrow()), ["/a"]);
    fake.set_entry("b", "/b", |_| {});
    fake.come_back().await;
    update(&mut updates, |update| ids(update) == ["/a", "/b"]).await;
    agent.until(|state| state.fault.is_none()).await;
    assert_eq!(fake.calls("AttestAgent"), 1);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_restart_while_the_server_is_away() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let first = agent.subscribe().await.borrow().clone();
    // The round that made it was kept once the next one begins.
    fake.called("SyncAuthorizedEntries", 2).await;
    agent.stop().await.unwrap();
    fake.go_away();

    let agent = node.start();
    let again = agent.subscribe().await.borrow().clone();
    assert_eq!(again.identities[0].chain, first.identities[0].chain);
    assert_eq!(again.identities[0].key, first.identities[0].key);
    assert_eq!(again.bundle, first.bundle);
    assert_eq!(agent.health.state().not_ready(), None);
    agent.stop().await.unwrap();

    // Nothing of it can be read from the disk.
    let sealed = std::fs::read(node.data().join("warm-start")).unwrap();
    let key = first.identities[0].key.as_slice();
    assert!(
        !sealed
            .windows(16)
            .any(|window| window == &key[key.len() - 16..])
    );
}

#[tokio::test]
async fn a_warm_start_that_was_turned_off_or_broken() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let mut node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    fake.called("SyncAuthorizedEntries", 2).await;
    agent.stop().await.unwrap();
    let file = node.data().join("warm-start");
    let mut sealed = std::fs::read(&file).unwrap();
    let last = sealed.len() - 1;
    sealed[last] ^= 1;
    std::fs::write(&file, sealed).unwrap();
    let agent = node.start();
    assert_eq!(ids(&agent.subscribe().await.borrow()), ["/a"]);
    agent.stop().await.unwrap();

    node.settings.warm_start = false;
    let agent = node.start();
    assert!(!file.exists());
    agent.subscribe().await;
    fake.called("SyncAuthorizedEntries", 2).await;
    agent.stop().await.unwrap();
    assert!(!file.exists());
}

#[tokio::test]
async fn an_agent_that_the_server_forgot_and_remembers() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let updates = agent.subscribe().await;
    fake.state().denied = Some(Reason::AgentNotAttested);
    let state = agent
        .until(|state| state.denied && state.fault.is_some())
        .await;
    let why = state.not_ready().unwrap();
    assert!(why.contains("the server does not know this agent"), "{why}");
    // It is still what it was: only the server says otherwise.
    assert_eq!(ids(&updates.borrow()), ["/a"]);
    fake.state().denied = None;
    agent
        .until(|state| !state.denied && state.fault.is_none())
        .await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_evicted_node_comes_back_with_a_new_token() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    fake.state().denied = Some(Reason::AgentNotAttested);
    agent.until(|state| state.denied).await;
    let report = agent.fault().await;
    assert!(
        report.contains("the server does not know this agent")
            || report.contains("already been used"),
        "{report}"
    );
    *node.half.0.lock().unwrap() = "second".into();
    {
        let mut state = fake.state();
        state.denied = None;
        state.tokens.insert("second".into());
    }
    agent
        .until(|state| !state.denied && state.fault.is_none())
        .await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_banned_agent_serves_nobody() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    fake.state().denied = Some(Reason::AgentBanned);
    update(&mut updates, |update| update.identities.is_empty()).await;
    let state = agent
        .until(|state| state.denied && state.fault.is_some())
        .await;
    assert!(state.not_ready().unwrap().contains("banned"), "{state:?}");
    assert!(!node.data().join("warm-start").exists());
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_token_that_was_used() {
    let fake = Fake::start().await;
    fake.state().tokens.clear();
    let node = Node::new(&fake);
    let agent = node.start();
    let report = agent.fault().await;
    assert!(
        report.contains("join token does not exist or has already been used"),
        "{report}"
    );
    assert!(report.contains("spire-server token generate"), "{report}");
    fake.state().tokens.insert("token".into());
    agent.until(|state| state.last_sync.is_some()).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_was_set_up_anew() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    fake.set_entry("a", "/a", |_| {});
    let mut node = Node::new(&fake);
    node.settings.rebootstrap_mode = RebootstrapMode::Always;
    node.settings.bootstrap = Bootstrap::Insecure;
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    fake.go_away();
    fake.state().ca = Ca::new();
    fake.come_back().await;
    let next = update(&mut updates, |update| {
        update.bundle != first.bundle
            && update
                .identities
                .first()
                .is_some_and(|identity| identity.chain != first.identities[0].chain)
    })
    .await;
    assert_eq!(next.bundle.x509[0].der, fake.state().ca.der.to_vec());
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn who_must_bootstrap_again_and_cannot_is_told_so() {
    let fake = Fake::start().await;
    let mut node = Node::new(&fake);
    node.settings.rebootstrap_mode = RebootstrapMode::Always;
    let error = node.start().ended().await.unwrap_err();
    assert!(error.text.contains("rebootstrap_mode"), "{error}");
}

#[tokio::test]
async fn broken_files() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    agent.stop().await.unwrap();
    for name in ["agent-data.json", "keys.json"] {
        std::fs::write(node.data().join(name), "{").unwrap();
        let attested = fake.calls("AttestAgent");
        let agent = node.start();
        agent.until(|state| state.last_sync.is_some()).await;
        assert_eq!(ids(&agent.subscribe().await.borrow()), ["/a"]);
        assert_eq!(fake.calls("AttestAgent"), attested + 1, "{name}");
        agent.stop().await.unwrap();
        assert!(node.data().join(format!("{name}.corrupt")).exists());
    }
}

#[tokio::test]
async fn an_svid_that_ended_while_nobody_looked() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    fake.state().agent_life = Duration::from_secs(60);
    fake.state().svid_life = Duration::from_secs(120);
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    agent.subscribe().await;
    agent.stop().await.unwrap();
    node.clock.jump(Duration::from_secs(70));
    fake.state().agent_life = Duration::from_secs(3600);
    fake.state().svid_life = Duration::from_secs(3600);
    let agent = node.start();
    agent.until(|state| state.last_sync.is_some()).await;
    assert_eq!(fake.calls("AttestAgent"), 2);
    agent.stop().await.unwrap();
}

// A laptop that slept past the end of its agent's SVID.
#[tokio::test]
async fn a_clock_that_jumps_past_the_end_of_everything() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    fake.state().agent_life = Duration::from_secs(600);
    fake.state().svid_life = Duration::from_secs(600);
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    fake.state().agent_life = Duration::from_secs(3600);
    fake.state().svid_life = Duration::from_secs(3600);
    node.clock.jump(Duration::from_secs(1000));
    let next = update(&mut updates, |update| {
        update
            .identities
            .first()
            .is_some_and(|identity| identity.chain != first.identities[0].chain)
    })
    .await;
    assert!(next.identities[0].not_after > first.identities[0].not_after);
    agent
        .until(|state| state.fault.is_none() && !state.denied)
        .await;
    agent.stop().await.unwrap();
}

// Both clocks moved past the end of the CA: the server has another one, and nothing that the agent holds vouches for it.
#[tokio::test]
async fn a_bundle_that_ended_is_got_again_where_the_first_came_from() {
    let fake = Fake::start().await;
    {
        let mut state = fake.state();
        state.reattestable = true;
        state.ca = Ca::lasting(Duration::from_secs(600));
        state.agent_life = Duration::from_secs(600);
        state.svid_life = Duration::from_secs(600);
    }
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    let mut trusting = Node::new(&fake);
    trusting.settings.bootstrap = Bootstrap::Insecure;
    let (agent, other) = (node.start(), trusting.start());
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    other.until(|state| state.last_sync.is_some()).await;

    fake.go_away();
    {
        let mut state = fake.state();
        state.ca = Ca::new();
        state.agent_life = Duration::from_secs(3600);
        state.svid_life = Duration::from_secs(3600);
    }
    node.clock.jump(Duration::from_secs(1000));
    trusting.clock.jump(Duration::from_secs(1000));
    fake.come_back().await;
    // As long as the file is the old one, nobody is trusted.
    for agent in [&agent.health, &other.health] {
        let mut changes = agent.watch();
        let told = changes.wait_for(|state| {
            let fault = state.fault.as_ref();
            fault.is_some_and(|fault| fault.report().contains("trust bundle ended on"))
        });
        soon(told).await.unwrap();
    }
    let attested = fake.calls("AttestAgent");
    write_bundle(&node.directory.path().join("bundle.pem"), &fake);
    let next = update(&mut updates, |update| {
        let newest = update.identities.first();
        newest.is_some_and(|newest| newest.chain != first.identities[0].chain)
    })
    .await;
    assert_eq!(next.bundle.x509[0].der, fake.state().ca.der.to_vec());
    agent
        .until(|state| state.fault.is_none() && !state.denied)
        .await;
    agent.stop().await.unwrap();
    // Whom it trusted on first use it does not choose anew.
    assert_eq!(fake.calls("AttestAgent"), attested + 1);
    assert!(other.health.state().fault.is_some());
    other.stop().await.unwrap();
}

// As above, with a connection that was made before: it tells whom to trust next, whoever was trusted how at first.
#[tokio::test]
async fn a_bundle_that_ended_is_heard_by_an_open_connection() {
    let fake = Fake::start().await;
    {
        let mut state = fake.state();
        state.reattestable = true;
        state.ca = Ca::lasting(Duration::from_secs(600));
        state.agent_life = Duration::from_secs(600);
        state.svid_life = Duration::from_secs(600);
    }
    fake.set_entry("a", "/a", |_| {});
    let mut node = Node::new(&fake);
    node.settings.bootstrap = Bootstrap::Insecure;
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    {
        let mut state = fake.state();
        // Its SVID has ended, and only who attests is let in.
        state.denied = Some(Reason::AgentExpired);
        state.ca = Ca::new();
        state.agent_life = Duration::from_secs(3600);
        state.svid_life = Duration::from_secs(3600);
    }
    node.clock.jump(Duration::from_secs(1000));
    fake.called("AttestAnswer", 1).await;
    fake.state().denied = None;
    let next = update(&mut updates, |update| {
        let newest = update.identities.first();
        newest.is_some_and(|newest| newest.chain != first.identities[0].chain)
    })
    .await;
    assert_eq!(next.bundle.x509[0].der, fake.state().ca.der.to_vec());
    agent
        .until(|state| state.fault.is_none() && !state.denied)
        .await;
    agent.stop().await.unwrap();
}

// A machine that booted with a clock in the future, until its time service set it right.
#[tokio::test]
async fn a_clock_that_is_set_back_gets_new_svids() {
    let fake = Fake::start().await;
    fake.set_entry("a", "/a", |_| {});
    let node = Node::new(&fake);
    node.clock.jump(Duration::from_secs(1000));
    let agent = node.start();
    let mut updates = agent.subscribe().await;
    let first = updates.borrow_and_update().clone();
    fake.called("SyncAuthorizedEntries", 2).await;
    assert_eq!(fake.calls("RenewAgent"), 0);
    node.clock.set_back(Duration::from_secs(1000));
    update(&mut updates, |update| {
        let newest = update.identities.first();
        newest.is_some_and(|newest| newest.chain != first.identities[0].chain)
    })
    .await;
    fake.called_in_all("RenewAgent", 1).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn svids_that_cannot_be_signed_now_are_waited_for_without_a_storm() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let agent = node.start();
    agent.until(|state| state.last_sync.is_some()).await;
    fake.state().wrong_key = true;
    fake.set_entry("a", "/a", |_| {});
    fake.called("BatchNewX509SVID", 1).await;
    let waiting = tokio::spawn({
        let identities = agent.identities.clone();
        async move { identities.subscribe(&workload()).await }
    });
    // Two more attempts take a second and a half at least, by then there were thirty rounds.
    let (before, began) = (fake.calls("BatchNewX509SVID"), std::time::Instant::now());
    fake.called_in_all("BatchNewX509SVID", before + 2).await;
    assert!(began.elapsed() > Duration::from_millis(500));
    fake.state().wrong_key = false;
    let updates = soon(waiting).await.unwrap();
    assert_eq!(ids(&updates.borrow()), ["/a"]);
    agent.stop().await.unwrap();
}
