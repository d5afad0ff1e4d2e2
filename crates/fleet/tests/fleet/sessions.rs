//! When a session ends that its executor would have kept.

use std::sync::Arc;
use std::time::Duration;

use ah_testkit::ca::{TestCa, published};

use crate::raw::{connect, heartbeat, hello};
use crate::support::{Site, rules};

const DAYS: Duration = Duration::from_secs(2 * 86_400);

// EN-14: a session ends with the certificate that opened it.
#[tokio::test]
async fn en_14_a_session_ends_with_its_certificate() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    site.clock.advance(DAYS);
    call.send(&heartbeat(1));
    let ended = call.ended().await;
    assert_eq!(
        (ended.code, ended.ah_code()),
        (tonic::Code::Unauthenticated, "client_expired")
    );
    let line = access_point.audited("disconnected").await;
    assert!(
        line["reason"]
            .as_str()
            .unwrap()
            .starts_with("client_expired: "),
        "{line}"
    );
    assert_eq!(
        access_point.metric("ah_sessions_closed_total{reason=\"client_expired\"}"),
        Some(1.0)
    );
    // A connection that stood before does not help.
    let ended = connection.greet(hello("one")).await.ended().await;
    assert_eq!(ended.ah_code(), "client_expired");
}

// A bundle without the root of live executors, who were judged by the one before.
#[tokio::test]
async fn a_root_that_is_no_longer_trusted_ends_its_sessions_and_bars_older_connections() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    // Verified now, and not yet enrolled when the bundle changes.
    let mut waiting = connect(&site, &access_point, &site.leaf(2)).await;

    let other = TestCa::new("example.org");
    let distrusting = site.server_leaf().identity(&[&other]);
    access_point
        .identity
        .send_replace(Arc::new(published(2, distrusting)));
    let ended = call.ended().await;
    assert_eq!(ended.ah_code(), "client_unknown_authority", "{ended:?}");
    let ended = waiting.greet(hello("two")).await.ended().await;
    assert_eq!(ended.ah_code(), "client_unknown_authority", "{ended:?}");
    assert_eq!(access_point.live().await, 0);

    // AU-1: the renewal names the new certificate.
    let line = access_point.audited("identity-renewed").await;
    let now = access_point
        .identity
        .borrow()
        .identity
        .leaf()
        .sha256
        .clone();
    assert_eq!(
        line["certificate"]["sha256"]
            .as_str()
            .or(line["sha256"].as_str()),
        Some(now.as_str()),
        "{line}"
    );
}

// The same roots in a new generation end nothing.
#[tokio::test]
async fn a_new_certificate_of_the_access_point_ends_no_session() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    let mut waiting = connect(&site, &access_point, &site.leaf(2)).await;
    let next = site.server_leaf().identity(&[&site.ca]);
    access_point
        .identity
        .send_replace(Arc::new(published(2, next)));
    access_point.audited("identity-renewed").await;
    let _second = waiting.enroll(hello("two")).await;
    call.send(&heartbeat(1));
    assert!(call.next().await.is_ok());
    assert_eq!(access_point.live().await, 2);
}

// AP-8 and AP-19: new rules are for those who are in, too.
#[tokio::test]
async fn ap_8_new_rules_end_the_sessions_that_they_do_not_admit() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut first = connect(&site, &access_point, &site.leaf(1)).await;
    let mut out = first.enroll(hello("one")).await;
    let mut second = connect(&site, &access_point, &site.leaf(2)).await;
    let mut stays = second.enroll(hello("two")).await;
    let mut tunables = site.tunables.clone();
    tunables.rules = rules("spiffe://example.org/ah/agent/2");
    access_point.operator.retune(tunables);
    let ended = out.ended().await;
    assert_eq!(
        (ended.code, ended.ah_code()),
        (tonic::Code::PermissionDenied, "san_mismatch")
    );
    assert!(
        ended
            .message
            .starts_with("certificate SAN does not match expected pattern")
    );
    stays.send(&heartbeat(1));
    assert!(stays.next().await.is_ok());
    assert_eq!(
        first.greet(hello("one")).await.ended().await.ah_code(),
        "san_mismatch"
    );
}

// AU-1: what a line says, for each event of a session's life.
#[tokio::test]
async fn au_1_lines_name_who_from_where_and_with_what() {
    let site = Site::new();
    let access_point = site.start().await;
    let failure = ah_identity_provider::Explained::new(
        ah_identity_provider::Code::Other,
        "no new certificate",
    );
    access_point.health.send_modify(|health| {
        health.last_error = Some(ah_identity_provider::Failure {
            at: std::time::SystemTime::now(),
            explained: failure,
            retry_in: None,
        });
    });
    access_point.audited("identity-renewal-failed").await;
    let leaf = site.leaf(1);
    let facts = leaf.identity(&[&site.ca]).leaf().clone();
    let mut connection = connect(&site, &access_point, &leaf).await;
    let call = connection.enroll(hello("one")).await;
    call.goodbye();
    let lines = access_point.stopped_after(|| async {}).await;
    let names = crate::support::events(&lines);
    assert_eq!(
        names,
        [
            "started",
            "identity-renewal-failed",
            "enrolled",
            "disconnected",
            "stopped"
        ]
    );
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(
            line["seq"].as_u64().or(line["sequence"].as_u64()),
            Some(number as u64 + 1),
            "{line}"
        );
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        assert_eq!(
            line["outcome"],
            if number == 1 { "failure" } else { "success" }
        );
    }
    for line in &lines[2..4] {
        assert_eq!(line["executor_id"], "spiffe://example.org/ah/agent/1");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(line["certificate"]["serial"], facts.serial);
        assert_eq!(line["certificate"]["sha256"], facts.sha256);
        assert_eq!(line["provider"], "files");
    }
    assert_eq!(lines[1]["reason"], "no new certificate");
    assert_eq!(lines[3]["reason"], "goodbye: done");
}
