//! Identities that are barred, copied, or in two places at once.

use std::time::Duration;

use ah_testkit::process::{Host, eventually};
use nix::sys::signal::Signal;

use crate::site::{Site, about, id, time_of};

// FL-1, RG-1: the session is cut within one second, and what the command confirmed survives a power cut.
#[test]
fn revocation_cuts_a_live_session_within_a_second_and_survives_kill_9() {
    let site = Site::new();
    let mut access_point = site.start(&[]);
    let address = access_point.address;
    let mut first = site.executor(address, "first", &site.executor_leaf(1));
    let mut second = site.executor(address, "second", &site.executor_leaf(2));
    let third = site.executor(address, "third", &site.executor_leaf(3));
    for process in [&first, &second, &third] {
        process.wait_for("enrolled");
    }

    site.fleet(&["revoke", "first", "--reason", "lost laptop"]);
    assert!(!first.wait().success());
    first.wait_for("error: client certificate rejected: certificate revoked");
    let cut = eventually("the end of the session in the audit log", || {
        let lines = site.audit();
        let revoked = about(&lines, "revoked", &id(1))
            .first()
            .map(|l| time_of(l))?;
        let ended = about(&lines, "disconnected", &id(1))
            .first()
            .map(|l| time_of(l))?;
        Some(ended - revoked)
    });
    assert!(cut < Duration::from_secs(1), "cut after {cut}");

    site.fleet(&["revoke", &id(2)]);
    access_point.process.kill();
    second.kill();
    let at = address.to_string();
    let _access_point = site.start(&["--fleet-listen", &at]);
    for (name, number) in [("first", 1), ("second", 2)] {
        let mut barred = site.executor_again(address, name);
        assert!(!barred.wait().success());
        barred.wait_for("error: client certificate rejected: certificate revoked");
        eventually("the refusal in the audit log", || {
            let lines = site.audit();
            let told = lines.iter().any(|line| {
                line["event"] == "rejected"
                    && line["reason"]
                        .as_str()
                        .is_some_and(|r| r.contains("revoked"))
                    && line.to_string().contains(&id(number))
            });
            told.then_some(())
        });
    }
    // Nobody else is barred.
    third.wait_for_nth("executor.id=", 2);
    let live = site.listed(&["--live"]);
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0]["id"], id(3));
    site.verify_audit();
}

/// A second machine that holds copies of the first one's files.
fn thief(site: &Site) -> Site {
    let host = Host::new(env!("CARGO_BIN_EXE_ah"));
    for file in ["ca.pem", "worker.pem", "worker-key.pem"] {
        std::fs::copy(site.host.path(file), host.path(file)).unwrap();
    }
    Site {
        host,
        ca: site.ca.clone(),
    }
}

#[test]
fn rg_2_the_same_identity_on_two_live_machines_is_refused_and_audited() {
    let site = Site::new();
    let access_point = site.start(&["--heartbeat-interval", "1s"]);
    let worker = site.executor(access_point.address, "worker", &site.executor_leaf(1));
    worker.wait_for("enrolled");
    let other = thief(&site);
    let mut copy = other.executor_again(access_point.address, "worker");
    assert!(!copy.wait().success());
    copy.wait_for(&format!("error: executor id {} is already enrolled", id(1)));
    let reason = eventually("the refusal in the audit log", || {
        let lines = site.audit();
        let line = about(&lines, "rejected", &id(1)).first().copied()?.clone();
        line["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.starts_with("possible stolen identity"), "{reason}");
    // The first was asked, and is none the worse for it.
    assert_eq!(site.status("worker")["enrolled"], true);
    assert_eq!(worker.count("retrying in"), 0);
}

#[test]
fn rg_2_duplicates_replace_lets_the_newcomer_in() {
    let site = Site::new();
    let access_point = site.start(&["--duplicates", "replace"]);
    let worker = site.executor(access_point.address, "worker", &site.executor_leaf(1));
    worker.wait_for("enrolled");
    let other = thief(&site);
    let copy = other.executor_again(access_point.address, "worker");
    copy.wait_for("enrolled");
    worker.wait_for(&format!(
        "executor id {} was taken over by another process",
        id(1)
    ));
}

#[test]
fn rg_2_an_older_session_that_does_not_answer_gives_way() {
    let site = Site::new();
    // Long heartbeats: silence alone does not end the old session in the time this takes.
    let access_point = site.start(&["--heartbeat-interval", "30s"]);
    let worker = site.executor(access_point.address, "worker", &site.executor_leaf(1));
    worker.wait_for("enrolled");
    worker.signal(Signal::SIGSTOP);
    let other = thief(&site);
    let copy = other.executor_again(access_point.address, "worker");
    copy.wait_for("enrolled");
    access_point
        .process
        .wait_for("older session did not answer");
    let lines = site.audit();
    assert!(about(&lines, "rejected", &id(1)).is_empty());
    worker.signal(Signal::SIGCONT);
}
