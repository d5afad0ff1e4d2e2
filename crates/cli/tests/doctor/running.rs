//! Set-ups with an executor that runs beside the doctor.

use nix::sys::signal::Signal;

use crate::site::{EXECUTOR_ID, Site, strings};

#[test]
fn a_running_executor_that_is_well_is_left_so() {
    // ST-1: the doctor neither disturbs it nor counts as a second process of its identity.
    let mut site = Site::new();
    site.listen(&[]);
    site.flags = strings(&["--name", "worker-1"]);
    let executor = site.enroll(&[]);
    executor.wait_for(" enrolled executor.id=");
    let report = site.doctor();
    report.is_well_but(&[]);
    assert_eq!(report.verdict("executor"), "pass");
    assert_eq!(report.verdict("rotation"), "pass");
    assert_eq!(executor.count("enrolled executor.id="), 1);
    assert_eq!(executor.count("error:"), 0, "{:?}", executor.lines());
}

#[test]
fn an_executor_that_ended_as_a_duplicate_is_not_there_to_ask() {
    // RG-2, EN-13: it never was enrolled, so trying again is no use.
    let mut site = Site::new();
    site.listen(&[]);
    let first = site.enroll(&["--name", "first"]);
    first.wait_for(" enrolled executor.id=");
    site.flags = strings(&["--name", "second"]);
    let mut second = site.enroll(&[]);
    second.wait_for(&already_enrolled());
    assert_eq!(second.wait().code(), Some(1));
    let report = site.doctor();
    report.is_well_but(&[]);
    let told = report.check("executor");
    assert_eq!(told["verdict"], "skip", "{report:#?}");
    assert_eq!(told["evidence"], "no executor named second runs here");
}

#[test]
fn an_identity_that_a_copy_took_over_is_blamed_on_the_running_executor() {
    // RG-2: it was enrolled and did not answer for a while, in which another process with its identity came.
    let mut site = Site::new();
    site.listen(&[]);
    site.flags = strings(&["--name", "worker-1"]);
    let executor = site.enroll(&[]);
    executor.wait_for(" enrolled executor.id=");
    executor.signal(Signal::SIGSTOP);
    site.flags = strings(&["--name", "copy"]);
    let copy = site.enroll(&[]);
    copy.wait_for(" enrolled executor.id=");
    executor.signal(Signal::SIGCONT);
    executor.wait_for(&already_enrolled());
    site.flags = strings(&["--name", "worker-1"]);
    let report = site.doctor();
    report.blames("executor", &[EXECUTOR_ID, "is already enrolled"]);
    assert_eq!(report.verdict("access-point"), "pass", "{report:#?}");
    assert_eq!(copy.count("error:"), 0, "{:?}", copy.lines());
}

fn already_enrolled() -> String {
    format!("error: executor id {EXECUTOR_ID} is already enrolled")
}

#[test]
fn a_renewal_that_cannot_be_used_is_seen() {
    // EN-14, FI-3: the last good identity serves on, and rotation has failed.
    let mut site = Site::new();
    site.listen(&[]);
    site.flags = strings(&["--name", "worker-1"]);
    let executor = site.enroll(&[]);
    executor.wait_for(" enrolled executor.id=");
    let other = site.ca.leaf().spiffe(EXECUTOR_ID).issue();
    std::fs::write(&site.executor.key, other.key_pem()).unwrap();
    executor.wait_for("private key does not match certificate");
    let report = site.doctor();
    report.blames("key", &["private key does not match certificate"]);
    assert_eq!(report.verdict("executor"), "pass");
    assert_eq!(report.verdict("rotation"), "fail", "{report:#?}");
}
