//! A real executor against real access points (EN-1 to EN-14, ST-1, ST-2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ah_fleet::access_point::Selector;
use ah_fleet::executor::{Event, Once, StatusSocket, read_status, serve_status};
use ah_identity_provider::{Code, Explained};
use ah_testkit::ca::{TestCa, published};
use ah_tls::Expect;

use crate::raw::{connect, hello};
use crate::support::{Plan, Site, TestClock, events, eventually, id, rules};

// EN-14: the new connection stands before the old one closes; the registry always has the executor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn en_14_a_rotation_leaves_no_gap() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut worker = Plan::new(&site, &site.leaf(1), &[access_point.address]).start();
    worker.enrolled().await;
    let since = worker.status.borrow().since;

    let done = Arc::new(AtomicBool::new(false));
    let sampling = {
        let (operator, done) = (access_point.operator.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut samples, mut absent) = (0_u32, 0_u32);
            while !done.load(Ordering::Acquire) {
                let view = operator.show(&Selector(id(1))).await.unwrap();
                samples += 1;
                absent += u32::from(view.live.is_none());
                tokio::task::yield_now().await;
            }
            (samples, absent)
        })
    };
    for generation in 2..=6 {
        let leaf = site.leaf(1);
        let identity = leaf.identity(&[&site.ca]);
        let facts = identity.leaf().clone();
        worker.rotate(generation, identity);
        let event = worker.next().await;
        assert_eq!(
            event,
            Event::Rotated {
                serial: facts.serial.clone()
            }
        );
        let view = access_point.operator.show(&Selector(id(1))).await.unwrap();
        assert_eq!(view.certificate.sha256, facts.sha256);
        assert_eq!(view.history.len() as u64, generation);
    }
    done.store(true, Ordering::Release);
    let (samples, absent) = sampling.await.unwrap();
    assert!(samples > 10);
    assert_eq!(absent, 0, "of {samples} samples");
    // The old connections close, and the enrollment is one.
    access_point.wait_metric("ah_connections_open", 1.0).await;
    {
        let status = worker.status.borrow();
        assert!(status.enrolled);
        assert_eq!(status.since, since, "a rotation is no break");
        assert!(status.last_error.is_none());
    }
    worker.stop.cancel();
    worker.ended().await.unwrap();
    let lines = access_point.stopped().await;
    let told = events(&lines);
    assert_eq!(
        told.iter().filter(|event| **event == "rotated").count(),
        5,
        "{told:?}"
    );
    assert_eq!(
        told.iter()
            .filter(|event| **event == "disconnected")
            .count(),
        1,
        "{told:?}"
    );
    assert_eq!(
        told.iter().filter(|event| **event == "enrolled").count(),
        1,
        "{told:?}"
    );
}

// EN-14: identities that come faster than connections are made end with the newest, and cost no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn en_14_a_burst_of_identities_ends_with_the_newest() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut worker = Plan::new(&site, &site.leaf(1), &[access_point.address]).start();
    worker.enrolled().await;
    let mut last = String::new();
    for generation in 2..40 {
        let identity = site.leaf(1).identity(&[&site.ca]);
        last = identity.leaf().sha256.clone();
        worker.rotate(generation, identity);
        tokio::task::yield_now().await;
    }
    eventually("the newest certificate", async || {
        let view = access_point.operator.show(&Selector(id(1))).await.unwrap();
        assert!(view.live.is_some());
        (view.certificate.sha256 == last).then_some(())
    })
    .await;
    assert!(worker.status.borrow().last_error.is_none());
    while let Ok(event) = worker.told.try_recv() {
        assert!(matches!(event, Event::Rotated { .. }), "{event:?}");
    }
}

// EN-14: a new certificate that the access point refuses leaves the old session up, and is tried again with backoff.
#[tokio::test]
async fn en_14_a_refused_new_certificate_leaves_the_session_as_it_is() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut worker = Plan::new(&site, &site.leaf(1), &[access_point.address]).start();
    worker.enrolled().await;
    let session = worker.status.borrow().session_id.clone();
    let next = site.leaf(1).identity(&[&site.ca]);
    let serial = next.leaf().serial.clone();
    access_point
        .operator
        .revoke(&Selector(format!("0x{serial}")), "")
        .await
        .unwrap();
    worker.rotate(2, next);
    access_point
        .wait_metric("ah_rejections_total{reason=\"client_revoked\"}", 2.0)
        .await;
    {
        let status = worker.status.borrow();
        assert!(status.enrolled);
        assert_eq!(status.session_id, session);
        assert_eq!(
            status.last_error.as_ref().unwrap().error.code,
            Code::ClientRevoked
        );
    }
    assert_eq!(access_point.live().await, 1);
    // Once it is lifted, the move is made.
    access_point
        .operator
        .reinstate(&Selector(format!("0x{serial}")))
        .await
        .unwrap();
    assert_eq!(worker.next().await, Event::Rotated { serial });
}

/// How an executor fares that could not enroll: permanent faults end it, others are told and tried again.
async fn fate(plan: Plan) -> Result<Explained, Explained> {
    let mut worker = plan.start();
    tokio::select! {
        event = worker.told.recv() => match event {
            Some(Event::Failed { explained, retry_in }) => {
                assert!(retry_in <= Duration::from_secs(30));
                Ok(explained)
            }
            // It has ended and told nothing.
            None => Err(worker.ended().await.unwrap_err()),
            other => panic!("{other:?}"),
        },
        ended = &mut worker.task => Err(ended.unwrap().unwrap_err()),
    }
}

// EN-14: a session opened before the access point changed its certificate moves, though its own server is
// distrusted by then.
#[tokio::test]
async fn en_14_the_old_ca_of_an_access_point_that_has_moved_on_costs_no_session() {
    let site = Site::new();
    let new = TestCa::new("example.org");
    let access_point = site.start().await;
    let mut plan = Plan::new(&site, &site.leaf(1), &[access_point.address]);
    plan.identity = site.leaf(1).identity(&[&site.ca, &new]);
    let mut worker = plan.start();
    worker.enrolled().await;
    let server = new.leaf().spiffe("spiffe://example.org/ah/serve");
    let moved = server.dns("localhost").ip("127.0.0.1").issue();
    access_point
        .identity
        .send_replace(Arc::new(published(2, moved.identity(&[&site.ca, &new]))));
    access_point.audited("identity-renewed").await;
    worker.rotate(2, site.leaf(1).identity(&[&new]));
    let event = worker.next().await;
    assert!(matches!(event, Event::Rotated { .. }), "{event:?}");
    worker.stop.cancel();
    worker.ended().await.unwrap();
    let lines = access_point.stopped().await;
    let told = events(&lines);
    assert!(told.contains(&"rotated"), "{told:?}");
    let left = told.iter().filter(|event| **event == "disconnected");
    assert_eq!(left.count(), 1, "{told:?}");
}

// EN-13: end to end, for each code that a first attempt can meet.
#[tokio::test]
async fn en_13_permanent_faults_end_and_transient_ones_do_not() {
    let mut site = Site::new();
    site.tunables.rules = rules("spiffe://example.org/ah/agent");
    site.tunables.max_executors = Some(1);
    let access_point = site.start().await;
    let address = access_point.address;
    let plan = |number| Plan::new(&site, &site.leaf(number), &[address]);

    // Transient.
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut refused = plan(1);
    refused.remotes = vec![nobody];
    let explained = fate(refused).await.unwrap();
    assert_eq!(explained.code, Code::ConnectionRefused);
    let mut holder = connect(&site, &access_point, &site.leaf(1)).await;
    let held = holder.enroll(hello("holder")).await.answering();
    let full = fate(plan(2)).await.unwrap();
    assert_eq!(full.code, Code::Unavailable);
    assert!(
        full.text.starts_with("access point is full") && full.hint.is_some(),
        "{full:?}"
    );

    // Permanent.
    let error = fate(plan(1)).await.unwrap_err();
    assert_eq!(error.code, Code::Duplicate);
    assert!(error.causes[0].contains("named raw"), "{error:?}");
    let evil = site
        .ca
        .leaf()
        .spiffe("spiffe://example.org/ah/agent-evil")
        .issue();
    let error = fate(Plan::new(&site, &evil, &[address])).await.unwrap_err();
    assert_eq!(error.code, Code::SanMismatch);
    let mut other_server = plan(3);
    let expected = ah_tls::parse_spiffe_id("spiffe://example.org/other")
        .ok()
        .unwrap();
    other_server.expect = Expect::SpiffeId(expected);
    assert_eq!(
        fate(other_server).await.unwrap_err().code,
        Code::ServerIdMismatch
    );
    let foreign = TestCa::new("example.org");
    let stranger = foreign.leaf().spiffe(&id(4)).issue();
    assert_eq!(
        fate(Plan::new(&site, &stranger, &[address]))
            .await
            .unwrap_err()
            .code,
        Code::ClientUnknownAuthority
    );
    let mut distrusting = plan(4);
    distrusting.identity = site.leaf(4).identity(&[&foreign]);
    let code = fate(distrusting).await.unwrap_err().code;
    assert!(
        matches!(code, Code::UnknownAuthority | Code::NoLocalIssuer),
        "{code:?}"
    );
    let clock = Arc::new(TestClock::default());
    clock.advance(Duration::from_secs(3 * 86_400));
    let mut old = plan(5);
    old.clock = clock;
    assert_eq!(
        fate(old).await.unwrap_err().code,
        Code::ExpiredOrNotYetValid
    );
    access_point
        .operator
        .revoke(&Selector(id(6)), "")
        .await
        .unwrap();
    assert_eq!(fate(plan(6)).await.unwrap_err().code, Code::ClientRevoked);
    let mut nameless = plan(7);
    nameless.name = "a\nb".into();
    assert_eq!(fate(nameless).await.unwrap_err().code, Code::Usage);
    held.abort();
}

// EN-13: an executor that was enrolled waits for what a rotation can cure, and stops for what it cannot.
#[tokio::test]
async fn en_13_what_was_sound_before_is_tried_again() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut worker = Plan::new(&site, &site.leaf(1), &[access_point.address]).start();
    worker.enrolled().await;
    let foreign = TestCa::new("example.org");
    let distrusting = site.server_leaf().identity(&[&foreign]);
    access_point
        .identity
        .send_replace(Arc::new(published(2, distrusting)));
    let event = worker.next().await;
    assert!(
        matches!(&event, Event::Failed { explained, .. } if explained.code == Code::ClientUnknownAuthority),
        "{event:?}"
    );
    let trusting = site.server_leaf().identity(&[&site.ca]);
    access_point
        .identity
        .send_replace(Arc::new(published(3, trusting)));
    loop {
        match worker.next().await {
            Event::Enrolled { .. } => break,
            Event::Failed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    access_point
        .operator
        .revoke(&Selector(id(1)), "")
        .await
        .unwrap();
    assert_eq!(worker.ended().await.unwrap_err().code, Code::ClientRevoked);
}

// EN-10
#[tokio::test]
async fn en_10_once_ends_at_the_first_failure_or_the_first_welcome() {
    let site = Site::new();
    let access_point = site.start().await;
    let mut plan = Plan::new(&site, &site.leaf(1), &[access_point.address]);
    plan.once = Some(Once::Enrolled);
    plan.start().ended().await.unwrap();
    let line = access_point.audited("disconnected").await;
    assert_eq!(line["reason"], "goodbye: --once=enrolled");
    access_point.stopped().await;
    let other = site.start_logging_to("audit-2.jsonl").await;
    let gone = other.address;
    other.stopped().await;
    let mut plan = Plan::new(&site, &site.leaf(1), &[gone]);
    plan.once = Some(Once::Failed);
    assert_eq!(
        plan.start().ended().await.unwrap_err().code,
        Code::ConnectionRefused
    );
}

// EN-1: in order; a drain leads on to the next.
#[tokio::test]
async fn en_1_fail_over_goes_in_order_and_a_drain_leads_on() {
    let site = Site::new();
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let first = site.start().await;
    let second = site.start_logging_to("audit-2.jsonl").await;
    let remotes = [nobody, first.address, second.address];
    let mut worker = Plan::new(&site, &site.leaf(1), &remotes).start();
    worker.enrolled().await;
    assert_eq!(first.live().await, 1);
    let lines = first.stopped().await;
    assert!(
        lines
            .iter()
            .any(|line| line["reason"] == "drained: draining"),
        "{lines:?}"
    );
    let event = worker.next().await;
    assert!(matches!(event, Event::Draining { .. }), "{event:?}");
    worker.enrolled().await;
    assert_eq!(second.live().await, 1);
    assert_eq!(
        worker.status.borrow().access_point,
        Some(second.address.to_string())
    );
}

// EN-1, EN-13: an access point that is set up wrong is no reason to give up one that is only away.
#[tokio::test]
async fn en_1_one_wrong_access_point_does_not_end_the_wait_for_another() {
    let site = Site::new();
    let mut wrong = Site::with(|tunables| tunables.rules = rules("spiffe://example.org/other"));
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    // One authority for both.
    wrong.ca = site.ca.clone();
    let refusing = wrong.start().await;
    for remotes in [[nobody, refusing.address], [refusing.address, nobody]] {
        let explained = fate(Plan::new(&site, &site.leaf(1), &remotes))
            .await
            .unwrap();
        assert_eq!(explained.code, Code::ConnectionRefused);
    }
}

// ST-1, ST-2, EN-11
#[tokio::test]
async fn st_1_the_status_tells_all_and_follows_a_rotation() {
    let site = Site::with(|tunables| tunables.heartbeat_interval = Duration::from_millis(500));
    let access_point = site.start().await;
    let leaf = site.ca.intermediate().issue().leaf().spiffe(&id(1)).issue();
    let mut worker = Plan::new(&site, &leaf, &[access_point.address]).start();
    let path = site.path("executor.sock");
    tokio::spawn(serve_status(
        StatusSocket::bind(&path).unwrap(),
        worker.status.clone(),
    ));
    worker.enrolled().await;
    let status = eventually("a round trip", async || {
        let status = read_status(&path).await.unwrap();
        let trip = status.heartbeats.as_ref()?.round_trip_us;
        trip.map(|_| status)
    })
    .await;
    assert!(status.enrolled && status.why_not.is_none());
    assert_eq!(status.name, "worker");
    assert_eq!(status.executor_id, Some(id(1)));
    assert_eq!(status.access_point, Some(access_point.address.to_string()));
    assert_eq!(
        status.access_point_id.as_deref(),
        Some("spiffe://example.org/ah/serve")
    );
    assert_eq!(status.provider.as_str(), "files");
    assert!(status.since.is_some() && status.session_id.is_some());
    let beats = status.heartbeats.unwrap();
    assert!(beats.last.is_some() && beats.sent >= 1);
    assert_eq!(beats.interval_ms, 500);
    assert!(status.clock_skew_ms.unwrap().abs() < 60_000);
    assert_eq!(status.pid, std::process::id());
    let shown = status.certificate.unwrap();
    assert_eq!(shown.leaf.uris, [id(1)]);
    assert_eq!((shown.intermediates.len(), shown.trust_roots.len()), (1, 1));
    assert_eq!(shown.pem.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(!shown.pem.contains("PRIVATE"));

    // The health is first to know of a new identity, and TLS follows; the status shows both.
    let next = site.leaf(1).identity(&[&site.ca]);
    let sha256 = next.leaf().sha256.clone();
    worker.health.send_modify(|health| {
        health.generation = 2;
        health.rotations = 1;
    });
    eventually("the rotation to show", async || {
        (worker.status.borrow().rotations == 1).then_some(())
    })
    .await;
    worker.rotate(2, next);
    assert!(matches!(worker.next().await, Event::Rotated { .. }));
    eventually("the new certificate to show", async || {
        let status = read_status(&path).await.unwrap();
        let shown = status.certificate.unwrap();
        (shown.leaf.sha256 == sha256 && shown.generation == 2).then_some(())
    })
    .await;

    // Why not.
    worker.health.send_modify(|health| {
        health.last_error = Some(ah_identity_provider::Failure {
            at: std::time::SystemTime::now(),
            explained: Explained::new(Code::Other, "no renewal"),
            retry_in: None,
        });
    });
    access_point.stopped().await;
    let status = eventually("the failure to show", async || {
        let status = read_status(&path).await.unwrap();
        (status.last_error.is_some()).then_some(status)
    })
    .await;
    assert!(!status.enrolled);
    assert!(status.why_not.unwrap().starts_with("connection refused"));
    assert!(status.next_attempt.is_some() && status.since.is_none());
    assert_eq!(
        status.executor_id,
        Some(id(1)),
        "kept from the last session"
    );
    assert_eq!(status.identity_error.unwrap().error.text, "no renewal");
}
