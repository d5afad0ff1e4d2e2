//! Attestors against real processes, sockets and certificates.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod aws;
mod aws_iid;
mod azure_imds;
mod azure_msi;
#[cfg(target_os = "linux")]
mod cgroups;
#[cfg(target_os = "linux")]
mod docker;
mod documents;
mod gcp_iit;
mod http_challenge;
mod join_token;
mod k8s;
#[cfg(target_os = "linux")]
mod kubelet;
#[cfg(target_os = "linux")]
mod kubernetes_objects;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod reused;
#[cfg(target_os = "linux")]
mod sigstore;
#[cfg(target_os = "linux")]
mod slurm;
mod sshpop;
#[cfg(target_os = "linux")]
mod systemd;
mod tokens;
#[cfg(target_os = "linux")]
mod tpm_devid;
#[cfg(target_os = "linux")]
mod unix;
#[cfg(target_os = "linux")]
mod workload;
mod x509pop;

use ah_spire_attest::AttestError;
use ah_testkit::web;

/// Panics unless `error` is told as the node attestor `plugin`'s, with a hint and all of `words`.
#[track_caller]
fn assert_told(error: &AttestError, plugin: &str, words: &[&str]) {
    let report = error.explained().report();
    for word in words {
        assert!(report.contains(word), "no {word:?} in:\n{report}");
    }
    let named = format!("nodeattestor({plugin}): ");
    assert!(report.contains(&named), "{report}");
    assert!(report.contains("hint: "), "{report}");
}
