//! Set-ups with the SPIFFE identity that are broken.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use ah_testkit::ca::TestCa;
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};

use crate::site::{EXECUTOR_ID, Site, need, need_root, set_ups, strings};

/// Where the agent's socket is.
fn socket(site: &mut Site) -> std::path::PathBuf {
    let path = site.host.path("agent.sock");
    let shown = path.display().to_string();
    site.identity = Some(strings(&[
        "--identity",
        "spiffe",
        "--spiffe-socket",
        &shown,
    ]));
    path
}

/// An agent that serves an SVID of `ca`, and trusts it.
fn agent(site: &mut Site, ca: &TestCa) {
    let svid = ca.leaf().spiffe(EXECUTOR_ID).issue();
    let path = socket(site);
    let api = WorkloadApi::unix(path, Answer::Set(Svids::of(&svid, ca)));
    site.keep(api);
}

// ER-10 to ER-12
set_ups! {
    workload_api_whose_socket_is_not_there: |site| {
        site.listen(&[]);
        socket(site);
        Ok(())
    } => "workload-api", ["failed to connect to Workload API: ", "agent.sock: no such file"];

    workload_api_whose_agent_was_killed: |site| {
        site.listen(&[]);
        let path = socket(site);
        drop(UnixListener::bind(path).unwrap());
        Ok(())
    } => "workload-api", ["failed to connect to Workload API: ", "agent.sock: connection refused"];

    workload_api_that_this_user_may_not_open: |site| {
        need("setpriv")?;
        need_root()?;
        site.listen(&[]);
        let ca = site.ca.clone();
        agent(site, &ca);
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(site.host.path("agent.sock"), closed).unwrap();
        site.as_nobody();
        Ok(())
    } => "workload-api", ["failed to connect to Workload API: ", "agent.sock: permission denied"];

    workload_api_without_an_entry_for_us: |site| {
        site.listen(&[]);
        let path = socket(site);
        site.keep(WorkloadApi::unix(path, Answer::no_identity()));
        Ok(())
    } => "svid", ["no identity issued", "uid"];

    access_point_of_another_trust_domain: |site| {
        let other = TestCa::new("other.org");
        let leaf = other.leaf().spiffe("spiffe://other.org/ah/serve").ip("127.0.0.1").issue();
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        site.listen(&[]);
        agent(site, &ca);
        Ok(())
    } => "server-chain", ["x509: certificate signed by unknown authority", "other.org"];

    access_point_with_another_id_than_the_domain_serves: |site| {
        let leaf = site.ca.leaf().spiffe("spiffe://example.org/elsewhere").issue();
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        site.listen(&[]);
        agent(site, &ca);
        Ok(())
    } => "server-name", ["server SPIFFE ID mismatch: expected spiffe://example.org/ah/serve, got spiffe://example.org/elsewhere"];
}

#[test]
fn a_spiffe_site_that_works() {
    let mut site = Site::new();
    site.listen(&["--executor-san-uri-prefix", "spiffe://example.org/ah/agent"]);
    let ca = site.ca.clone();
    agent(&mut site, &ca);
    let report = site.doctor();
    report.is_well_but(&[]);
    assert_eq!(report.verdict("svid"), "pass");
    report.is_told_of_in_the_document();
}
