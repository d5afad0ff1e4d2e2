//! The end of an access point (AP-19).

use std::time::Duration;

use ah_fleet::proto::access_point_message::Kind as Incoming;

use crate::raw::{connect, hello};
use crate::support::{DEADLINE, Site, events, lines};

#[tokio::test]
async fn ap_19_a_drain_tells_everyone_refuses_newcomers_and_ends() {
    // Longer than the test may take: a connection without a call must not be waited for.
    let site = Site::with(|tunables| {
        tunables.handshake_timeout = Duration::from_secs(600);
        tunables.drain_timeout = Duration::from_secs(600);
    });
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    // In the middle of its hello when the drain begins.
    let mut late = connect(&site, &access_point, &site.leaf(2)).await;
    let mut hesitant = late.call().await;
    let idle = connect(&site, &access_point, &site.leaf(3)).await;

    access_point.stop.cancel();
    let Ok(Incoming::Drain(drain)) = call.next().await else {
        panic!("no drain");
    };
    assert!(drain.reconnect_after_ms > 0);
    hesitant.send(&crate::raw::message(
        ah_fleet::proto::executor_message::Kind::Hello(Box::new(hello("two"))),
    ));
    let ended = hesitant.ended().await;
    assert_eq!(
        (ended.code, ended.ah_code()),
        (tonic::Code::Unavailable, "draining")
    );
    assert!(
        tokio::net::TcpStream::connect(access_point.address)
            .await
            .is_err(),
        "nobody new"
    );
    call.goodbye();
    assert_eq!(call.ended().await.code, tonic::Code::Ok);
    idle.closed().await;
    drop((connection, late));
    tokio::time::timeout(DEADLINE, access_point.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let lines = lines(&access_point.audit);
    assert_eq!(events(&lines).last(), Some(&"stopped"));
    let gone = lines
        .iter()
        .find(|line| line["event"] == "disconnected")
        .unwrap();
    assert_eq!(gone["reason"], "drained: done");
}

// AP-19: whoever does not leave is cut off, and the audit log has it before it has our own end.
#[tokio::test]
async fn ap_19_the_drain_has_a_deadline() {
    let site = Site::with(|tunables| tunables.drain_timeout = Duration::from_millis(200));
    let access_point = site.start().await;
    let mut stubborn = Vec::new();
    for number in 1..=5 {
        let mut connection = connect(&site, &access_point, &site.leaf(number)).await;
        let call = connection.enroll(hello("one")).await;
        stubborn.push((connection, call));
    }
    let lines = access_point.stopped().await;
    let told = events(&lines);
    assert_eq!(
        told.iter()
            .filter(|event| **event == "disconnected")
            .count(),
        5,
        "{told:?}"
    );
    assert_eq!(told.last(), Some(&"stopped"));
}
