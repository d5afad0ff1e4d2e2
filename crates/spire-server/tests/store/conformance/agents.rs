//! Agents, and the tokens that let them in.

use aws_lc_rs::digest::{SHA256, digest};
use spire_server::store::{
    Agent, AgentFilter, Agents, Entries, EntryFilter, JoinToken, JoinTokens, Match, Page,
    StoreError,
};

use super::{ids, page};
use crate::common::{Database, add, agent, entry, id, selectors, spender};

on_all!(
    an_agent_comes_back_as_it_went_in,
    a_ban_stands_whoever_attests_at_that_time,
    agents_are_found_by_what_they_are,
    agents_are_pruned_when_their_certificates_ended,
    a_join_token_s_own_entry_goes_with_its_agent,
    every_change_of_an_agent_is_told,
    a_join_token_lets_one_in,
    one_of_many_gets_a_join_token,
    whoever_took_a_join_token_gets_it_again_for_a_while,
);

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

// inventory §6 agent ban
async fn a_ban_stands_whoever_attests_at_that_time(database: &Database) {
    let store = database.open().await;
    let one = agent("a", &["t:a"]);
    store.put_agent(&one).await.unwrap();
    let attesting: Vec<_> = (0..16)
        .map(|n| {
            let (store, mut again) = (store.clone(), one.clone());
            again.selectors = selectors(&[&format!("t:{n}")]);
            tokio::spawn(async move { store.put_agent(&again).await })
        })
        .collect();
    let ban = |agent: &mut spire_server::store::Agent| agent.serial_number.clear();
    let banned = store.update_agent(&one.id, ban).await.unwrap();
    for one in attesting {
        // Before the ban, or refused.
        match one.await.unwrap() {
            Ok(()) | Err(StoreError::Precondition(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(store.agent(&one.id).await.unwrap(), Some(banned.clone()));
    let told = store.agent_events(None).await.unwrap();
    let refused = store.put_agent(&one).await;
    assert!(
        matches!(refused, Err(StoreError::Precondition(_))),
        "{refused:?}"
    );
    // Nothing of it is left behind.
    assert_eq!(store.agent(&one.id).await.unwrap(), Some(banned));
    assert_eq!(store.agent_events(None).await.unwrap(), told);
    // An agent that was evicted begins anew.
    store.delete_agent(&one.id).await.unwrap();
    store.put_agent(&one).await.unwrap();
    assert_eq!(store.agent(&one.id).await.unwrap(), Some(one));
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
