//! What the protocol tolerates and what it does not (`fleet.proto`).

use std::time::Duration;

use ah_fleet::MAX_MESSAGE_BYTES;
use ah_fleet::proto;
use ah_fleet::proto::access_point_message::Kind as Incoming;
use ah_fleet::proto::executor_message::Kind as Outgoing;
use bytes::Bytes;

use crate::raw::{connect, heartbeat, hello, message};
use crate::support::{Site, eventually};

/// A field 900 of type bytes, which no version so far knows.
const UNKNOWN_FIELD: &[u8] = &[0xa2, 0x38, 0x03, b'n', b'e', b'w'];

#[tokio::test]
async fn newer_executors_are_served() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.call().await;
    let mut newer = hello("one");
    newer.protocol = 7;
    newer.provider = "telepathy".into();
    let mut bytes = message(Outgoing::Hello(Box::new(newer)));
    bytes.extend_from_slice(UNKNOWN_FIELD);
    call.send(&bytes);
    let Ok(Incoming::Welcome(welcome)) = call.next().await else {
        panic!("no welcome");
    };
    assert_eq!(welcome.protocol, 1, "the highest that both speak");
    // A kind of a later version is ignored, and counts as a sign of life.
    call.send(UNKNOWN_FIELD);
    call.send(&[]);
    call.send(&heartbeat(1));
    assert!(
        matches!(call.next().await, Ok(Incoming::HeartbeatReply(reply)) if reply.sequence == 1)
    );
    assert_eq!(access_point.views().await[0].provider, None);
}

#[tokio::test]
async fn a_message_too_large_ends_its_call_and_no_other() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    call.send(&vec![0; MAX_MESSAGE_BYTES + 1]);
    let ended = call.ended().await;
    assert_eq!(
        (ended.code, ended.ah_code()),
        (tonic::Code::OutOfRange, "usage")
    );
    access_point.wait_live(0).await;
    // The connection lives.
    let mut call = connection.enroll(hello("one")).await;
    call.send(&heartbeat(1));
    assert!(matches!(call.next().await, Ok(Incoming::HeartbeatReply(_))));
}

#[tokio::test]
async fn what_is_no_hello_is_refused_by_name() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut garbage = hello("one");
    garbage.name = "a\u{1b}[2J".into();
    let mut short = hello("one");
    short.instance_id = "short".into();
    let invalid = tonic::Code::InvalidArgument;
    for (first, code, word) in [
        (heartbeat(1), invalid, "not a hello"),
        (UNKNOWN_FIELD.to_vec(), invalid, "not a hello"),
        (
            message(Outgoing::Hello(Box::new(garbage))),
            invalid,
            "control character",
        ),
        (
            message(Outgoing::Hello(Box::new(short))),
            invalid,
            "instance_id",
        ),
        (vec![0xff; 32], invalid, ""),
        (vec![0; MAX_MESSAGE_BYTES + 1], tonic::Code::OutOfRange, ""),
    ] {
        let mut call = connection.call().await;
        call.send(&first);
        let ended = call.ended().await;
        assert_eq!((ended.code, ended.ah_code()), (code, "usage"), "{word}");
        assert!(ended.message.contains(word), "{}", ended.message);
    }
    assert_eq!(
        access_point.metric("ah_rejections_total{reason=\"usage\"}"),
        Some(6.0)
    );

    let mut call = connection.enroll(hello("one")).await;
    call.send(&message(Outgoing::Hello(Box::new(hello("one")))));
    assert_eq!(call.ended().await.ah_code(), "usage");
}

// AP-16: a call alone holds nothing; slow or gone is not wrong, and may try again.
#[tokio::test]
async fn ap_16_a_call_without_a_hello_ends_after_ten_seconds() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut silent = connection.call().await;
    // Half a message is no message.
    silent.send_bytes(Bytes::from_static(&[0, 0, 0, 1]));
    let ended = silent.ended().await;
    assert_eq!(ended.ah_code(), "unavailable");
    assert!(ended.message.contains("no hello"), "{}", ended.message);
}

// AP-16
#[tokio::test]
async fn ap_16_a_connection_without_a_call_is_closed() {
    let site = Site::with(|tunables| tunables.handshake_timeout = Duration::from_millis(200));
    let access_point = site.start().await;
    connect(&site, &access_point, &site.leaf(1))
        .await
        .closed()
        .await;
    // After its last call, too.
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    call.goodbye();
    assert_eq!(call.ended().await.code, tonic::Code::Ok);
    connection.closed().await;
    access_point.wait_metric("ah_connections_open", 0.0).await;
}

#[tokio::test]
async fn heartbeats_are_answered_counted_and_timed() {
    let site = Site::with(|tunables| tunables.heartbeat_interval = Duration::from_secs(30));
    let access_point = site.start().await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let mut call = connection.enroll(hello("one")).await;
    for sequence in 1..=3 {
        call.send(&heartbeat(sequence));
        assert!(
            matches!(call.next().await, Ok(Incoming::HeartbeatReply(reply)) if reply.sequence == sequence)
        );
        let Ok(Incoming::Heartbeat(beat)) = call.next().await else {
            panic!("the access point sends its own with the answer");
        };
        assert_eq!(beat.sequence, sequence);
        // Only the answer to the last one tells a round trip.
        for answer in [beat.sequence + 7, beat.sequence] {
            call.send(&message(Outgoing::HeartbeatReply(proto::HeartbeatReply {
                sequence: answer,
            })));
        }
        access_point
            .wait_metric("ah_heartbeat_round_trip_seconds_count", sequence as f64)
            .await;
        if sequence > 1 {
            assert!(beat.last_round_trip_us > 0);
        }
    }
    assert_eq!(
        access_point.metric("ah_heartbeats_received_total"),
        Some(3.0)
    );
    assert_eq!(access_point.metric("ah_heartbeats_sent_total"), Some(3.0));
    let live = eventually("a round trip", async || {
        access_point.views().await[0].live.clone()
    })
    .await;
    assert!(live.round_trip_us.is_some_and(|micros| micros > 0));
    assert!(live.last_heard_ms < 30_000);
}

// Two intervals of silence, by the interval that the welcome named: settings of later are for later sessions.
#[tokio::test]
async fn silence_ends_a_session_by_the_interval_of_its_welcome() {
    let site = Site::with(|tunables| tunables.heartbeat_interval = Duration::from_secs(3_600));
    let access_point = site.start().await;
    let mut patient = connect(&site, &access_point, &site.leaf(1)).await;
    let mut old = patient.enroll(hello("one")).await;
    let mut quick = site.tunables.clone();
    quick.heartbeat_interval = Duration::from_millis(100);
    access_point.operator.retune(quick);
    let mut hasty = connect(&site, &access_point, &site.leaf(2)).await;
    let mut new = hasty.enroll(hello("two")).await;
    let ended = new.ended().await;
    assert_eq!(
        (ended.code, ended.ah_code()),
        (tonic::Code::ResourceExhausted, "unavailable")
    );
    assert!(ended.message.contains("no heartbeat"), "{}", ended.message);
    // The older one beats once and is then silent for as long as it took the other to be given up.
    old.send(&heartbeat(1));
    assert!(matches!(old.next().await, Ok(Incoming::HeartbeatReply(_))));
    assert!(matches!(old.next().await, Ok(Incoming::Heartbeat(_))));
    hasty.enroll(hello("two")).await.ended().await;
    old.send(&heartbeat(2));
    assert!(matches!(old.next().await, Ok(Incoming::HeartbeatReply(_))));
    assert_eq!(access_point.live().await, 1);
}
