use std::sync::Arc;

use ah_testkit::postgres::Postgres;
use ah_testkit::process::DEADLINE;

use super::*;
use crate::store::{Agent, Agents, StoreConfig};

fn agent(name: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://example.org/spire/agent/{name}")).unwrap()
}

fn svid(name: &str) -> PeerSvid {
    PeerSvid {
        id: agent(name),
        serial_number: "1".into(),
        not_after: SystemTime::now() + Duration::from_secs(3600),
    }
}

fn holds(bundle_sequence: u64, tainted_svids: u32) -> Holding {
    Holding {
        bundle_sequence,
        tainted_svids,
    }
}

/// A server on the database at `url`.
async fn server(config: &StoreConfig) -> (SqlStore, Arc<Holdings>) {
    let store = SqlStore::open(config).await.unwrap();
    let holdings = Arc::new(Holdings::shared(store.clone()));
    let running = holdings.clone();
    tokio::spawn(async move { running.run().await });
    (store, holdings)
}

/// Waits until `holdings` says so.
async fn until_behind(
    holdings: &Holdings,
    agents: &BTreeSet<SpiffeId>,
    newest: u64,
    wanted: &[(SpiffeId, Option<Holding>)],
) {
    let waited = async {
        loop {
            // Until the table is there this fails.
            let behind = holdings.behind(agents, newest).await;
            if behind.is_ok_and(|behind| behind == wanted) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let within = tokio::time::timeout(DEADLINE, waited).await;
    within.unwrap_or_else(|_| panic!("it never was: {wanted:?}"));
}

// Safe rotation with several servers on one database: what an agent told one of them, the others know.
#[tokio::test(flavor = "multi_thread")]
async fn servers_of_one_database_know_what_agents_told_each() {
    let Some(postgres) = Postgres::shared("servers_of_one_database_know_what_agents_told_each")
    else {
        return;
    };
    let config = StoreConfig {
        database_type: "postgres".into(),
        connection_string: format!("{}?sslmode=disable", postgres.fresh_database()),
        max_open_conns: Some(4),
        ..StoreConfig::default()
    };
    let ((store, one), (_, other)) = tokio::join!(server(&config), server(&config));
    let agents: BTreeSet<_> = ["a", "b", "c"].map(agent).into();
    for id in &agents {
        let known = Agent {
            id: id.clone(),
            attestation_type: "t".into(),
            serial_number: "1".into(),
            expires_at: 2_000_000_000,
            new_serial_number: String::new(),
            new_expires_at: 0,
            can_reattest: false,
            version: String::new(),
            selectors: Vec::new(),
        };
        store.put_agent(&known).await.unwrap();
    }
    let now = SystemTime::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    one.report(&svid("a"), holds(7, 0), now);
    other.report(&svid("b"), holds(6, 0), now);
    let behind = [(agent("b"), Some(holds(6, 0))), (agent("c"), None)];
    until_behind(&one, &agents, 7, &behind).await;
    until_behind(&other, &agents, 7, &behind).await;

    // The agent went to the other server, and what it tells there counts on both, also once it comes back.
    one.report(&svid("b"), holds(7, 2), later(1));
    let behind = [(agent("b"), Some(holds(7, 2))), (agent("c"), None)];
    until_behind(&other, &agents, 7, &behind).await;
    other.report(&svid("b"), holds(7, 0), later(2));
    other.report(&svid("c"), holds(7, 0), later(2));
    until_behind(&one, &agents, 7, &[]).await;
    until_behind(&other, &agents, 7, &[]).await;

    // A server that starts anew knows it, too, and forgets who is gone.
    store.delete_agent(&agent("c")).await.unwrap();
    let (_, third) = server(&config).await;
    until_behind(&third, &agents, 7, &[(agent("c"), None)]).await;
}
