//! Telling agents that they have news (inventory section 8 Entry; bar 13).

use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::Channel;
use ah_spire_wire::changes::changes_client::ChangesClient;
use ah_spire_wire::changes::{Changed, WatchRequest};
use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::server::agent::BanAgentRequest;
use ah_spire_wire::types::permission_denied_details::Reason;
use spiffe::{SpiffeId, TrustDomain};
use spire_server::entries::Follow;
use spire_server::store::{Agents, BundleChange, Bundles, Entries};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::rig::{DOMAIN, Identity, Rig, entry, reason, refused, wire};

async fn listen(rig: &Rig, identity: Option<&Identity>) -> Result<Streaming<Changed>, Status> {
    let channel = rig.network(identity).await.unwrap();
    let mut client = ChangesClient::with_origin(channel, Channel::origin());
    Ok(client.watch(WatchRequest {}).await?.into_inner())
}

/// What is waited for comes at once.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(ah_testkit::process::DEADLINE, future).await;
    done.unwrap()
}

async fn heard(stream: &mut Streaming<Changed>) {
    soon(stream.message()).await.unwrap().unwrap();
}

fn named(path: &str, parent: &SpiffeId, selector: &str) -> Entry {
    Entry {
        selectors: vec![Selector::new("unix", selector)],
        ..entry(path, parent)
    }
}

#[tokio::test]
async fn an_agent_is_told_of_its_entries_and_of_bundles() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    let (other, others_identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    let mut others = listen(&rig, Some(&others_identity)).await.unwrap();
    rig.store.create_entry(entry("/a", &agent)).await.unwrap();
    heard(&mut news).await;
    // The other agent's first message is of its own entry: it was not told of the one before.
    let served = rig.cache.subscribe(&other);
    assert_eq!(*served.borrow(), 0);
    rig.store.create_entry(entry("/b", &other)).await.unwrap();
    heard(&mut others).await;

    let ours = TrustDomain::new(DOMAIN).unwrap();
    let add_key = |bundle: Option<ah_spire_wire::model::Bundle>| {
        bundle.map(|mut bundle| {
            bundle.refresh_hint += 1;
            bundle
        })
    };
    rig.store
        .update_bundle(&ours, BundleChange::Update, add_key)
        .await
        .unwrap();
    heard(&mut news).await;
    heard(&mut others).await;
    // What changes nothing is no news.
    let bundles = rig.cache.subscribe_to_bundles();
    rig.store
        .update_bundle(&ours, BundleChange::Update, |same| same)
        .await
        .unwrap();
    let same = rig.store.bundle(&ours).await.unwrap().unwrap();
    rig.store.put_bundle(&same).await.unwrap();
    assert!(!bundles.has_changed().unwrap());
}

#[tokio::test]
async fn only_an_agent_in_good_standing_hears() {
    let rig = Rig::start().await;
    let error = refused(listen(&rig, None).await);
    assert_eq!(error.code(), Code::PermissionDenied);
    let nobody = rig.authority.issue(&crate::rig::id("/nobody"));
    let error = refused(listen(&rig, Some(&nobody)).await);
    assert_eq!(reason(&error), Some(Reason::AgentNotAttested));
    let mut local = ChangesClient::with_origin(rig.local().await, Channel::origin());
    let error = refused(local.watch(WatchRequest {}).await);
    assert_eq!(error.code(), Code::PermissionDenied);

    let (agent, identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    let ban = BanAgentRequest {
        id: wire(agent.path()),
    };
    rig.agents().await.ban_agent(ban).await.unwrap();
    let ended = soon(news.message()).await.unwrap_err();
    assert_eq!(reason(&ended), Some(Reason::AgentBanned));

    let (agent, identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    rig.store.delete_agent(&agent).await.unwrap();
    let ended = soon(news.message()).await.unwrap_err();
    assert_eq!(reason(&ended), Some(Reason::AgentNotAttested));
}

#[tokio::test]
async fn what_another_server_writes_is_told_too() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    let (cache, store) = (rig.cache.clone(), rig.store.clone());
    let following = tokio::spawn(async move {
        let how = Follow {
            interval: Duration::from_millis(20),
            ..Follow::default()
        };
        cache.follow(store.as_ref(), &how).await;
    });
    let elsewhere = rig.database().await;
    elsewhere.create_entry(entry("/a", &agent)).await.unwrap();
    heard(&mut news).await;
    let ban = |agent: &mut spire_server::store::Agent| agent.serial_number.clear();
    elsewhere.update_agent(&agent, ban).await.unwrap();
    let ended = soon(news.message()).await.unwrap_err();
    assert_eq!(reason(&ended), Some(Reason::AgentBanned));
    following.abort();
}

#[tokio::test]
async fn a_storm_of_changes_is_few_messages() {
    let rig = Arc::new(Rig::start().await);
    let (agent, identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    let began = Instant::now();
    for n in 0..300 {
        let one = named("/storm", &agent, &format!("uid:{n}"));
        rig.store.create_entry(one).await.unwrap();
    }
    heard(&mut news).await;
    let mut told = 1;
    let quiet = Duration::from_millis(500);
    while let Ok(next) = tokio::time::timeout(quiet, news.message()).await {
        next.unwrap().unwrap();
        told += 1;
    }
    // Ten a second at most, whatever the storm.
    let most = 2 + began.elapsed().as_millis() / 100;
    assert!(told < 300 && told <= most, "{told} of at most {most}");
    assert_eq!(rig.cache.authorized(&agent).len(), 300);
}

#[tokio::test]
async fn a_server_that_stops_ends_the_streams_at_once() {
    let rig = Rig::start().await;
    let (_, identity) = rig.attested().await;
    let mut news = listen(&rig, Some(&identity)).await.unwrap();
    rig.stop();
    let began = Instant::now();
    let ended = soon(news.message()).await;
    assert!(matches!(ended, Ok(None)), "{:?}", ended.map(|_| ()));
    // Calls under way are cut after five seconds: this was not cut.
    assert!(began.elapsed() < Duration::from_secs(5));
}
