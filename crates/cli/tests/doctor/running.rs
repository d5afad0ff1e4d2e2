//! Set-ups with an executor that runs beside the doctor.

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
fn an_identity_that_another_process_holds_is_blamed_on_the_running_executor() {
    // RG-2: only who enrolls is told of a duplicate.
    let mut site = Site::new();
    site.listen(&[]);
    let first = site.enroll(&["--name", "first"]);
    first.wait_for(" enrolled executor.id=");
    site.flags = strings(&["--name", "second"]);
    let second = site.enroll(&[]);
    second.wait_for("error:");
    let report = site.doctor();
    assert_eq!(report.verdict("access-point"), "pass", "{report:#?}");
    let told = report.check("executor");
    if told["verdict"] == "fail" {
        report.blames("executor", &[EXECUTOR_ID]);
    } else {
        // A duplicate ends the process for good: then there is none to ask.
        assert_eq!(told["verdict"], "skip", "{report:#?}");
    }
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
