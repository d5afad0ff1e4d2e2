//! A server that is not what it should be is refused, and the agent says why.

use ah_spire_plugin::agent::Bootstrap;

use crate::fake::{Ca, DOMAIN, Fake};
use crate::rig::Node;

async fn refused(change: impl FnOnce(&Fake, &mut Node), because: &str) {
    let fake = Fake::start().await;
    let mut node = Node::new(&fake);
    change(&fake, &mut node);
    let agent = node.start();
    let report = agent.fault().await;
    assert!(report.contains(because), "{report}");
    let state = agent.health.state();
    assert!(state.not_ready().unwrap().contains(because));
    assert_eq!(state.id, None);
    agent.stop().await.unwrap();
    let data = std::fs::read_to_string(node.data().join("agent-data.json")).unwrap();
    assert!(data.contains(r#""svid":null"#), "{data}");
}

// ER-23
#[tokio::test]
async fn another_ca() {
    refused(
        |fake, _| fake.state().other_ca = Some(Ca::new()),
        "unable to get local issuer certificate",
    )
    .await;
}

// ER-12
#[tokio::test]
async fn another_trust_domain() {
    refused(
        |fake, _| fake.state().server_id = "spiffe://other.org/spire/server".into(),
        "server SPIFFE ID mismatch: expected spiffe://example.org/spire/server, got spiffe://other.org/spire/server",
    )
    .await;
}

#[tokio::test]
async fn a_workload_that_plays_the_server() {
    refused(
        |fake, _| fake.state().server_id = format!("spiffe://{DOMAIN}/spire/agent/x"),
        "server SPIFFE ID mismatch",
    )
    .await;
}

#[tokio::test]
async fn an_empty_bundle() {
    refused(
        |fake, _| fake.state().hide_bundle = true,
        "it has no X.509 authority",
    )
    .await;
}

#[tokio::test]
async fn a_bundle_that_the_server_itself_is_not_of() {
    // On the first use nothing else ties the server to what it hands out.
    refused(
        |fake, node| {
            fake.state().other_ca = Some(Ca::new());
            node.settings.bootstrap = Bootstrap::Insecure;
        },
        "the server's own certificate is not of the bundle that it sent",
    )
    .await;
}

#[tokio::test]
async fn an_svid_for_another_key() {
    refused(
        |fake, _| fake.state().wrong_key = true,
        "it was issued for another key than the agent's",
    )
    .await;
}

#[tokio::test]
async fn an_svid_of_another_trust_domain() {
    refused(
        |fake, _| fake.state().svid_id = Some("spiffe://other.org/spire/agent/x".into()),
        "spiffe://other.org/spire/agent/x is of the trust domain other.org, the agent's is example.org",
    )
    .await;
}

#[tokio::test]
async fn an_svid_that_is_no_agents() {
    refused(
        |fake, _| fake.state().svid_id = Some(format!("spiffe://{DOMAIN}/w")),
        "is no agent's SPIFFE ID",
    )
    .await;
}

#[tokio::test]
async fn a_workloads_svid_for_another_name_is_not_served() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let agent = node.start();
    agent.until(|state| state.last_sync.is_some()).await;
    fake.state().svid_id = Some(format!("spiffe://{DOMAIN}/mallory"));
    fake.set_entry("a", "/a", |_| {});
    fake.called("BatchNewX509SVID", 1).await;
    fake.state().svid_id = None;
    let updates = agent.subscribe().await;
    let id = updates.borrow().identities[0].entry.spiffe_id.to_string();
    assert_eq!(id, format!("spiffe://{DOMAIN}/a"));
    assert!(fake.calls("BatchNewX509SVID") > 1);
    agent.stop().await.unwrap();
}
