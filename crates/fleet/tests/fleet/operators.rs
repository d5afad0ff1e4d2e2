//! What operators do to a fleet (FL-1).

use std::str::FromStr;

use ah_fleet::access_point::{ListFilter, NotDone, Selector};
use ah_fleet::store::{AnyStore, Change, ExecutorId, RevocationTarget, Store};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::raw::{connect, hello};
use crate::support::{Plan, Site, eventually, id};

fn named(name: &str) -> ah_fleet::proto::Hello {
    ah_fleet::proto::Hello {
        name: name.into(),
        ..hello(name)
    }
}

// FL-1: by id, name, serial number and SHA-256; each cuts the live session and bars the next handshake.
#[tokio::test]
async fn fl_1_a_revocation_cuts_and_bars_and_is_lifted_by_the_same() {
    let site = Site::new();
    let access_point = site.start().await;
    let operator = &access_point.operator;
    // A serial number whose first bit is set: openssl prints it without the zero that the encoding has.
    let serial = [0xc3, 0x5d, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08];
    let leaf = site.ca.leaf().spiffe(&id(1)).serial(&serial).issue();
    let facts = leaf.identity(&[&site.ca]).leaf().clone();
    let by_id = RevocationTarget::Id(id(1).into());
    for (selector, target) in [
        (id(1), by_id.clone()),
        ("one".to_owned(), by_id),
        (
            "C3:5D:01:02:03:04:05:06:07:08".to_owned(),
            RevocationTarget::Serial(facts.serial.clone()),
        ),
        (
            facts.sha256.to_uppercase(),
            RevocationTarget::Sha256(facts.sha256.clone()),
        ),
    ] {
        let mut connection = connect(&site, &access_point, &leaf).await;
        let mut call = connection.enroll(named("one")).await;
        let selector = Selector(selector);
        assert_eq!(operator.revoke(&selector, "lost").await.unwrap(), target);
        let ended = call.ended().await;
        assert_eq!(
            (ended.code, ended.ah_code()),
            (tonic::Code::PermissionDenied, "client_revoked")
        );
        access_point.wait_live(0).await;
        // Neither the connection that stands nor a new one helps.
        assert_eq!(
            connection.greet(named("one")).await.ended().await.ah_code(),
            "client_revoked"
        );
        let refused = Plan::new(&site, &leaf, &[access_point.address])
            .start()
            .ended()
            .await
            .unwrap_err();
        assert_eq!(refused.code.as_str(), "client_revoked");
        let view = operator.show(&Selector(id(1))).await.unwrap();
        assert_eq!(view.revocation.unwrap().reason, "lost");

        assert_eq!(operator.reinstate(&selector).await.unwrap(), target);
        let again = operator.reinstate(&selector).await;
        assert!(matches!(again, Err(NotDone::Conflict(_))), "{again:?}");
    }
    let mut connection = connect(&site, &access_point, &leaf).await;
    let _enrolled = connection.enroll(named("one")).await;
    let line = access_point.audited("revoked").await;
    assert_eq!(
        (line["executor_id"].as_str(), line["reason"].as_str()),
        (Some(id(1).as_str()), Some("lost"))
    );
    let line = access_point.audited("reinstated").await;
    assert_eq!(line["executor_id"], id(1));
}

// FL-1: before it ever came.
#[tokio::test]
async fn fl_1_an_executor_is_barred_before_it_enrolls() {
    let site = Site::new();
    let access_point = site.start().await;
    access_point
        .operator
        .revoke(&Selector(id(7)), "")
        .await
        .unwrap();
    let refused = Plan::new(&site, &site.leaf(7), &[access_point.address])
        .start()
        .ended()
        .await
        .unwrap_err();
    assert_eq!(
        refused.text,
        "client certificate rejected: certificate revoked"
    );
    let unknown = access_point
        .operator
        .revoke(&Selector("nobody".into()), "")
        .await;
    assert!(matches!(unknown, Err(NotDone::Unknown(_))), "{unknown:?}");
}

// FL-1: a name is no authority. Two of one name are told apart by id, and nobody draws another's bar upon itself.
#[tokio::test]
async fn fl_1_names_are_not_authority() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut calls = Vec::new();
    for (number, name) in [
        (1, "twin"),
        (2, "twin"),
        (3, "spiffe://example.org/ah/agent/8"),
    ] {
        let mut connection = connect(&site, &access_point, &site.leaf(number)).await;
        let call = connection.enroll(named(name)).await;
        calls.push((connection, call));
    }
    let several = access_point
        .operator
        .revoke(&Selector("twin".into()), "")
        .await
        .unwrap_err();
    let NotDone::Conflict(explained) = several else {
        panic!("{several:?}");
    };
    assert!(explained.text.starts_with("2 executors are named twin"));
    assert!(explained.causes[0].contains(&id(1)) && explained.causes[0].contains(&id(2)));

    let target = access_point
        .operator
        .revoke(&Selector(id(8)), "")
        .await
        .unwrap();
    assert_eq!(target, RevocationTarget::Id(id(8).into()));
    assert_eq!(
        access_point.live().await,
        3,
        "who calls itself so is not meant"
    );
}

// FL-1: with the store away the bar is in force, and the operator is told what that is worth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fl_1_a_bar_is_in_force_while_the_store_is_away() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;

    let options = SqliteConnectOptions::from_str(&site.database).unwrap();
    let mut holder = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let told = access_point
        .operator
        .revoke(&Selector(id(1)), "lost")
        .await
        .unwrap_err();
    let NotDone::Unavailable(explained) = told else {
        panic!("{told:?}");
    };
    assert!(
        explained.text.contains("in force but not yet written"),
        "{}",
        explained.text
    );
    assert_eq!(call.ended().await.ah_code(), "client_revoked");
    assert!(access_point.operator.not_ready()[0].starts_with("store: "));

    sqlx::raw_sql("ROLLBACK")
        .execute(&mut holder)
        .await
        .unwrap();
    eventually("the store to catch up", async || {
        let revoked = ListFilter {
            revoked: Some(true),
            ..ListFilter::default()
        };
        (access_point.operator.list(&revoked).await.executors.len() == 1).then_some(())
    })
    .await;
    eventually("readiness", async || {
        access_point.operator.not_ready().is_empty().then_some(())
    })
    .await;
}

// FL-1: what another access point does to a bar right after we set it has the last word.
#[tokio::test]
async fn fl_1_a_bar_lifted_elsewhere_at_once_is_lifted_here() {
    let site = Site::new();
    let access_point = site.start().await;
    let elsewhere = AnyStore::open(&site.database).await.unwrap();
    for _ in 0..3 {
        let target = access_point
            .operator
            .revoke(&Selector(id(1)), "")
            .await
            .unwrap();
        elsewhere
            .apply(&[Change::Reinstated(target)])
            .await
            .unwrap();
        eventually("the executor to be let in", async || {
            let mut plan = Plan::new(&site, &site.leaf(1), &[access_point.address]);
            plan.once = Some(ah_fleet::executor::Once::Enrolled);
            plan.start().ended().await.ok()
        })
        .await;
    }
}

#[tokio::test]
async fn fl_1_a_disconnected_executor_may_come_back() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut worker = Plan::new(&site, &site.leaf(1), &[access_point.address]).start();
    worker.enrolled().await;
    let before = access_point.views().await[0].live.clone().unwrap();
    let gone = access_point
        .operator
        .disconnect(&Selector("worker".into()))
        .await
        .unwrap();
    assert_eq!(gone, ExecutorId::from(id(1)));
    let event = worker.next().await;
    let ah_fleet::executor::Event::Failed { explained, .. } = event else {
        panic!("{event:?}");
    };
    assert!(explained.text.contains("operator"), "{}", explained.text);
    worker.enrolled().await;
    let after = access_point.views().await[0].live.clone().unwrap();
    assert_ne!(before.session_id, after.session_id);
    worker.stop.cancel();
    worker.ended().await.unwrap();
    access_point.wait_live(0).await;
    let offline = access_point.operator.disconnect(&Selector(id(1))).await;
    assert!(matches!(offline, Err(NotDone::Conflict(_))), "{offline:?}");
}

#[tokio::test]
async fn fl_1_lists_are_filtered() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut kept = Vec::new();
    for (number, zone) in [(1, "a"), (2, "b")] {
        let mut hello = hello("one");
        hello.labels.insert("zone".into(), zone.into());
        let mut connection = connect(&site, &access_point, &site.leaf(number)).await;
        let call = connection.enroll(hello).await;
        kept.push((connection, call));
    }
    kept[1].1.goodbye();
    access_point.wait_live(1).await;
    let count = async |labels: Option<&str>, live| {
        let labels = labels.map(str::to_owned);
        let filter = ListFilter {
            labels,
            live,
            revoked: None,
        };
        access_point.operator.list(&filter).await.executors.len()
    };
    assert_eq!(count(None, None).await, 2);
    assert_eq!(count(Some("zone"), None).await, 2);
    assert_eq!(count(Some("zone=b"), None).await, 1);
    assert_eq!(count(Some("zone=b"), Some(true)).await, 0);
    assert_eq!(count(None, Some(false)).await, 1);
}
