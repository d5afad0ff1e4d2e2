//! Metrics after a story whose every step is known.

use std::time::Duration;

use ah_testkit::ca::TestCa;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::raw::{connect, hello};
use crate::support::{Plan, Site};

#[tokio::test]
async fn every_connection_is_counted_once_however_it_ends() {
    let mut site = Site::new();
    // Generous enough for a real handshake on a loaded machine, short enough to wait for.
    site.handshakes.timeout = Duration::from_secs(3);
    let access_point = site.start().await;

    // One that goes away, one that says nothing, one that speaks no TLS.
    drop(TcpStream::connect(access_point.address).await.unwrap());
    let mut silent = TcpStream::connect(access_point.address).await.unwrap();
    let mut stranger = TcpStream::connect(access_point.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let _ = stranger.read(&mut [0; 64]).await;
    drop(stranger);
    // One with a certificate of somebody else's authority, one that the policy does not know.
    let other = TestCa::new("example.org");
    let foreign = other
        .leaf()
        .spiffe("spiffe://example.org/ah/agent/9")
        .issue();
    let error = Plan::new(&site, &foreign, &[access_point.address])
        .start()
        .ended()
        .await
        .unwrap_err();
    assert_eq!(error.code.as_str(), "client_unknown_authority");
    // The silent one is cut at the deadline.
    let _ = silent.read(&mut [0; 1]).await;
    // Two that enroll, one of which leaves.
    let mut stays = connect(&site, &access_point, &site.leaf(1)).await;
    let held = stays.enroll(hello("one")).await;
    let mut leaves = connect(&site, &access_point, &site.leaf(2)).await;
    let mut leaving = leaves.enroll(hello("two")).await;
    leaving.goodbye();
    leaving.ended().await;
    access_point.wait_live(1).await;
    drop(leaves);
    access_point.wait_metric("ah_connections_open", 1.0).await;
    for (name, value) in [
        ("ah_connections_accepted_total", 6.0),
        ("ah_connections_closed_total", 5.0),
        ("ah_handshakes_completed_total", 2.0),
        ("ah_handshakes_timed_out_total", 1.0),
        ("ah_handshakes_abandoned_total", 1.0),
        ("ah_handshakes_shed_total", 0.0),
        ("ah_accept_waited_seconds_total", 0.0),
        ("ah_handshake_duration_seconds_count", 2.0),
        (
            "ah_rejections_total{reason=\"client_unknown_authority\"}",
            1.0,
        ),
        ("ah_sessions", 1.0),
        ("ah_sessions_opened_total{kind=\"enrolled\"}", 2.0),
        ("ah_sessions_closed_total{reason=\"goodbye\"}", 1.0),
        ("ah_executor_certificates_expiring{within=\"5m\"}", 0.0),
        ("ah_executor_certificates_expiring{within=\"24h\"}", 1.0),
        ("ah_identity_generation", 1.0),
        ("ah_store_up", 1.0),
        ("ah_audit_up", 1.0),
    ] {
        assert_eq!(
            access_point.metric(name),
            Some(value),
            "{name}\n{}",
            access_point.operator.metrics()
        );
    }
    assert!(
        access_point
            .metric("ah_executor_certificate_earliest_expiry_timestamp_seconds")
            .unwrap()
            > 1.6e9
    );
    assert!(access_point.operator.metrics().ends_with("# EOF\n"));

    drop((held, stays));
    access_point.wait_metric("ah_connections_open", 0.0).await;
    assert_eq!(
        access_point.metric("ah_connections_closed_total"),
        Some(6.0)
    );
}

// A flood of refusals: all counted, few written one by one, the rest as a sum before the end (AU-1).
#[tokio::test]
async fn a_flood_of_refusals_is_counted_whole_and_written_in_part() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut bad = hello("one");
    bad.protocol = 0;
    const FLOOD: usize = 1_500;
    for _ in 0..FLOOD {
        connection.greet(bad.clone()).await.ended().await;
    }
    let counted = access_point.metric("ah_rejections_total{reason=\"usage\"}");
    assert_eq!(counted, Some(FLOOD as f64));
    drop(connection);
    let lines = access_point.stopped().await;
    let rejected = lines
        .iter()
        .filter(|line| line["event"] == "rejected")
        .collect::<Vec<_>>();
    let sums = rejected.iter().filter_map(|line| {
        let (count, rest) = line["reason"]
            .as_str()?
            .split_once(" more refused for usage")?;
        assert!(rest.contains("127.0.0.1 ("), "{rest}");
        count.parse::<usize>().ok()
    });
    let sums = sums.collect::<Vec<_>>();
    assert!(!sums.is_empty() && rejected.len() < FLOOD);
    assert_eq!(
        rejected.len() - sums.len() + sums.iter().sum::<usize>(),
        FLOOD
    );
}
