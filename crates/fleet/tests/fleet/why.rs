//! Why a peer was refused, as the access point tells its operator (ER-25).

use ah_fleet::access_point::{Known, NotDone, Selector, Tunables, Why, WhyFilter};
use ah_identity_provider::Code;
use ah_testkit::ca::{TestCa, TestLeaf};
use ah_tls::SanRules;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Plan, Running, Site, eventually, rules, tunables};

async fn why(access_point: &Running, who: &str) -> Result<Why, NotDone> {
    let filter = WhyFilter::default();
    access_point
        .operator
        .why(&Selector(who.into()), &filter)
        .await
}

/// Enrolls once, whatever comes of it.
async fn attempt(site: &Site, access_point: &Running, leaf: &TestLeaf, name: &str) {
    let mut plan = Plan::new(site, leaf, &[access_point.address]);
    plan.once = Some(ah_fleet::executor::Once::Enrolled);
    plan.name = name.into();
    let _ = plan.start().ended().await;
}

// ER-25, ER-7: by name, id, address and certificate: the rule that failed, the SANs, the nearest rule.
#[tokio::test]
async fn er_25_a_refusal_names_the_rule_that_would_have_matched() {
    let rules = SanRules::parse(
        &["spiffe://example.org/ah/agent".into()],
        &["*.executors.example.com".into()],
        &[],
    )
    .unwrap();
    let site = Site::with(|tunables| tunables.rules = rules);
    let access_point = site.start().await;
    let id = "spiffe://example.org/ah/agents/worker-1";
    let leaf = site.ca.leaf().spiffe(id).issue();
    attempt(&site, &access_point, &leaf, "worker-1").await;
    attempt(&site, &access_point, &leaf, "worker-1").await;

    let facts = leaf.identity(&[&site.ca]).leaf().clone();
    for who in [id, "worker-1", "127.0.0.1", &facts.serial, &facts.sha256] {
        let told = why(&access_point, who).await.unwrap();
        let [refused] = told.attempts.as_slice() else {
            panic!("{who}: {told:#?}");
        };
        assert_eq!((refused.admitted, refused.times), (false, 2), "{who}");
        assert_eq!(refused.vouched, Some(true));
        assert_eq!(refused.code, Some(Code::SanMismatch));
        assert_eq!(refused.id.as_deref(), Some(id));
        assert_eq!(refused.sans, [format!("URI:{id}")]);
        let nearest = refused.nearest.as_ref().unwrap();
        assert_eq!(nearest.rule, "URI:spiffe://example.org/ah/agent");
        assert_eq!(
            (nearest.distance, refused.rules_admit_now),
            (1, Some(false))
        );
        assert_eq!(told.rules.len(), 2);
    }

    // The operator mends the rule: the refusal stays known, and that it would not happen again.
    access_point.operator.retune(Tunables {
        rules: crate::support::rules("spiffe://example.org/ah/agents"),
        ..tunables()
    });
    let told = why(&access_point, "worker-1").await.unwrap();
    assert_eq!(told.attempts[0].rules_admit_now, Some(true));
    attempt(&site, &access_point, &leaf, "worker-1").await;
    let told = why(&access_point, "worker-1").await.unwrap();
    let outcomes: Vec<_> = told
        .attempts
        .iter()
        .map(|attempt| attempt.admitted)
        .collect();
    assert_eq!(outcomes, [true, false], "newest first: {told:#?}");
    assert_eq!(told.attempts[0].name.as_deref(), Some("worker-1"));

    let nobody = why(&access_point, "nobody").await.unwrap_err();
    assert!(matches!(nobody, NotDone::Unknown(_)), "{nobody:?}");
}

// ER-25: whom nobody vouches for is known by its address, and its certificate's word is called a claim.
#[tokio::test]
async fn er_25_strangers_are_known_by_their_address_and_cannot_pose_as_others() {
    let site = Site::with(|tunables| tunables.rules = rules("spiffe://example.org/ah/agent"));
    let access_point = site.start().await;
    let id = "spiffe://example.org/ah/agent/worker-1";
    let honest = site.ca.leaf().spiffe(id).issue();
    attempt(&site, &access_point, &honest, "worker-1").await;
    let stranger = TestCa::new("example.org").leaf().spiffe(id).issue();
    for _ in 0..20 {
        attempt(&site, &access_point, &stranger, "worker-1").await;
    }
    let mut plain = TcpStream::connect(access_point.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let by_address = eventually("both refusals", async || {
        let told = why(&access_point, "127.0.0.1").await.ok()?;
        (told.attempts.len() == 3).then_some(told)
    })
    .await;
    let codes: Vec<_> = by_address.attempts.iter().map(|a| a.code).collect();
    assert_eq!(
        codes,
        [Some(Code::Other), Some(Code::ClientUnknownAuthority), None]
    );
    let told = why(&access_point, id).await.unwrap();
    let [claim, accepted] = told.attempts.as_slice() else {
        panic!("{told:#?}");
    };
    assert_eq!((claim.vouched, claim.times), (Some(false), 20));
    assert_eq!((accepted.vouched, accepted.admitted), (Some(true), true));
}

// ER-25, AP-16: who was reset before anything could be read is in no attempt; the answer says that there were some.
#[tokio::test]
async fn er_25_connections_that_found_no_place_are_counted() {
    let mut site = Site::with(|_| {});
    site.handshakes.max_waiting = 1;
    let access_point = site.start().await;
    let id = "spiffe://example.org/ah/agent/worker-1";
    let leaf = site.ca.leaf().spiffe(id).issue();
    attempt(&site, &access_point, &leaf, "worker-1").await;
    assert_eq!(why(&access_point, id).await.unwrap().shed, 0);
    let none = why(&access_point, "worker-2").await.unwrap_err();
    assert!(!format!("{none:?}").contains("for want of a place"));

    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(access_point.address).await.unwrap());
    }
    access_point
        .wait_metric("ah_handshakes_shed_total", 2.0)
        .await;
    assert_eq!(why(&access_point, id).await.unwrap().shed, 2);
    let none = why(&access_point, "worker-2").await.unwrap_err();
    let told = format!("{none:?}");
    assert!(
        told.contains("reset since then for want of a place (--max-handshakes): 2"),
        "{told}"
    );
}

// ER-25: after a restart the audit log answers for what was before, and the answer says from when on it is first hand.
#[tokio::test]
async fn er_25_after_a_restart_the_audit_log_remembers() {
    let site = Site::with(|tunables| tunables.rules = rules("spiffe://example.org/ah/agent"));
    let access_point = site.start().await;
    let id = "spiffe://example.org/ah/other/worker-1";
    let leaf = site.ca.leaf().spiffe(id).issue();
    attempt(&site, &access_point, &leaf, "worker-1").await;
    access_point.audited("rejected").await;
    access_point.stopped().await;

    let access_point = site.start().await;
    for who in [id, "worker-1", "127.0.0.1"] {
        let told = why(&access_point, who).await.unwrap();
        let [earlier] = told.attempts.as_slice() else {
            panic!("{who}: {told:#?}");
        };
        assert_eq!(earlier.known_from, Known::AuditLog);
        assert!(earlier.at < told.known_since);
        let reason = earlier.reason.as_deref().unwrap();
        assert!(
            reason.contains("expected pattern") && reason.contains(id),
            "{reason}"
        );
        assert_eq!(told.no_earlier, None);
    }
    attempt(&site, &access_point, &leaf, "worker-1").await;
    let told = why(&access_point, id).await.unwrap();
    let from: Vec<_> = told.attempts.iter().map(|a| a.known_from).collect();
    assert_eq!(from, [Known::Memory, Known::AuditLog]);
}
