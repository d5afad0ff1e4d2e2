//! Set-ups in which a certificate, a key, a clock or a rule is wrong.

use std::time::{Duration, SystemTime};

use ah_testkit::ca::TestCa;
use ah_testkit::process::Finished;

use crate::site::{
    EXECUTOR_ID, SERVER_ID, Site, clock, need, need_root, server_leaf, set_ups, strings,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Valid for a day, from so many days before now.
fn executor_since(site: &Site, from: SystemTime) -> ah_testkit::ca::TestLeaf {
    site.ca
        .leaf()
        .spiffe(EXECUTOR_ID)
        .valid_from(from)
        .valid_for(DAY)
        .issue()
}

fn server_since(site: &Site, from: SystemTime) -> ah_testkit::ca::TestLeaf {
    let leaf = site.ca.leaf().spiffe(SERVER_ID).ip("127.0.0.1");
    leaf.valid_from(from).valid_for(DAY).issue()
}

/// A chain of which the intermediate is left out.
fn without_intermediate(
    root: &TestCa,
    leaf: impl Fn(&TestCa) -> ah_testkit::ca::TestLeaf,
) -> ah_testkit::ca::TestLeaf {
    leaf(
        &root
            .intermediate()
            .subject("forgotten intermediate")
            .issue(),
    )
    .with_intermediates(&[])
}

// FI-1, FI-4, ER-6, ER-8, ER-9
set_ups! {
    certificate_that_is_not_there: |site| {
        site.listen(&[]);
        site.executor.cert = site.host.path("gone.pem");
        Ok(())
    } => "files", ["no such file: ", "gone.pem", "--cert"];

    key_that_is_not_there: |site| {
        site.listen(&[]);
        site.executor.key = site.host.path("gone/key.pem");
        Ok(())
    } => "files", ["no such file: ", "gone/key.pem", "--key"];

    authorities_that_are_not_there: |site| {
        site.listen(&[]);
        site.executor.ca = site.host.path("gone-ca.pem");
        Ok(())
    } => "files", ["no such file: ", "gone-ca.pem", "--ca"];

    key_that_this_user_cannot_read: |site| {
        need("setpriv")?;
        need_root()?;
        site.listen(&[]);
        site.as_nobody();
        Ok(())
    } => "files", ["permission denied reading ", "executor-key.pem", "uid 65534"];

    file_without_a_certificate: |site| {
        site.listen(&[]);
        std::fs::write(&site.executor.cert, "-----BEGIN NONSENSE-----\n").unwrap();
        Ok(())
    } => "pem", ["executor.pem"];

    key_of_another_certificate: |site| {
        site.listen(&[]);
        let other = site.ca.leaf().spiffe("spiffe://example.org/other").issue();
        std::fs::write(&site.executor.key, other.key_pem()).unwrap();
        Ok(())
    } => "key", ["private key does not match certificate"];
}

// ER-3 to ER-5, ER-12, ER-22
set_ups! {
    authority_of_somebody_else: |site| {
        site.listen(&[]);
        TestCa::root("example.org").subject("another root").issue().write(&site.host.path(""), "executor-ca");
        Ok(())
    } => "server-chain", ["unable to get local issuer certificate"];

    authority_of_the_same_name_and_another_key: |site| {
        site.listen(&[]);
        TestCa::new("example.org").write(&site.host.path(""), "executor-ca");
        Ok(())
    } => "server-chain", ["x509: certificate signed by unknown authority"];

    server_without_its_intermediate: |site| {
        let leaf = without_intermediate(&site.ca, server_leaf);
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        site.listen(&[]);
        Ok(())
    } => "server-chain", ["unable to get local issuer certificate", "forgotten intermediate"];

    executor_without_its_intermediate: |site| {
        site.listen(&[]);
        let leaf = without_intermediate(&site.ca, |ca| ca.leaf().spiffe(EXECUTOR_ID).issue());
        let ca = site.ca.clone();
        site.executor_has(&leaf, &ca);
        Ok(())
    } => "client-certificate", ["client certificate rejected: certificate signed by unknown authority", "forgotten intermediate"];

    server_that_expired: |site| {
        need("openssl")?;
        let leaf = server_since(site, SystemTime::now() - 2 * DAY);
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        // It answers by HTTP/1, so that nobody waits for it.
        site.openssl("-www -alpn h2");
        Ok(())
    } => "server-dates", ["certificate has expired or is not yet valid", "the access point's certificate", "has expired"];

    server_of_tomorrow: |site| {
        need("openssl")?;
        let leaf = server_since(site, SystemTime::now() + DAY / 2);
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        // It answers by HTTP/1, so that nobody waits for it.
        site.openssl("-www -alpn h2");
        Ok(())
    } => "server-dates", ["certificate has expired or is not yet valid", "the access point's certificate", "is not yet valid"];

    executor_that_expired: |site| {
        site.listen(&[]);
        let leaf = executor_since(site, SystemTime::now() - 2 * DAY);
        let ca = site.ca.clone();
        site.executor_has(&leaf, &ca);
        Ok(())
    } => "own-dates", ["certificate has expired or is not yet valid", "our certificate", "has expired"];

    executor_of_tomorrow: |site| {
        site.listen(&[]);
        let leaf = executor_since(site, SystemTime::now() + DAY / 2);
        let ca = site.ca.clone();
        site.executor_has(&leaf, &ca);
        Ok(())
    } => "own-dates", ["certificate has expired or is not yet valid", "our certificate", "is not yet valid"];

    server_of_another_name: |site| {
        let leaf = site.ca.leaf().dns("elsewhere.example.com").issue();
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        site.listen(&[]);
        Ok(())
    } => "server-name", ["is not for `127.0.0.1`", "DNS:elsewhere.example.com"];

    server_of_another_spiffe_id: |site| {
        site.listen(&[]);
        site.flags = strings(&["--expected-server-id", "spiffe://other.org/ah/serve"]);
        Ok(())
    } => "server-name", ["server SPIFFE ID mismatch: expected spiffe://other.org/ah/serve, got spiffe://example.org/ah/serve"];

    server_with_two_spiffe_ids: |site| {
        need("openssl")?;
        let leaf = site.ca.leaf().spiffe(SERVER_ID).uri("spiffe://example.org/second").ip("127.0.0.1").issue();
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        site.openssl("-alpn h2");
        Ok(())
    } => "server-form", ["SV-19"];
}

// ER-7, ER-21
set_ups! {
    executor_of_an_unknown_authority: |site| {
        site.listen(&[]);
        let other = TestCa::root("example.org").subject("lone root").issue();
        let leaf = other.leaf().spiffe(EXECUTOR_ID).issue();
        let ca = site.ca.clone();
        site.executor_has(&leaf, &ca);
        Ok(())
    } => "client-certificate", ["client certificate rejected: certificate signed by unknown authority", "lone root"];

    san_that_no_rule_expects: |site| {
        site.listen(&["--executor-san-uri-prefix", "spiffe://example.org/ah/agents"]);
        Ok(())
    } => "san-rules", ["certificate SAN does not match expected pattern", EXECUTOR_ID];

    certificate_that_was_revoked: |site| {
        site.listen(&[]);
        let done = site.host.run(["agent", "fleet", "revoke", EXECUTOR_ID, "--reason", "lost"]);
        assert_eq!(done.code, 0, "{done:?}");
        Ok(())
    } => "revocation", ["client certificate rejected: certificate revoked"];
}

// ER-4: a wrong clock makes every certificate look wrong, and is what has to be named.
set_ups! {
    our_clock_ahead: |site| {
        let (leaf, ca) = (executor_since(site, SystemTime::now() - DAY / 2), site.ca.clone());
        site.executor_has(&leaf, &ca);
        site.listen(&[]);
        site.under = clock("+3d")?;
        Ok(())
    } => "clock", ["the clocks are 3d apart"];

    our_clock_behind_both_certificates: |site| {
        let (leaf, ca) = (executor_since(site, SystemTime::now() - DAY / 2), site.ca.clone());
        site.executor_has(&leaf, &ca);
        let leaf = server_since(site, SystemTime::now() - DAY / 2);
        site.server_has(&leaf, &ca);
        site.listen(&[]);
        site.under = clock("-3d")?;
        Ok(())
    } => "clock", ["the clocks are", "apart"];

    clock_of_the_access_point_ahead: |site| {
        let (leaf, ca) = (executor_since(site, SystemTime::now() - DAY / 2), site.ca.clone());
        site.executor_has(&leaf, &ca);
        let leaf = site.ca.leaf().spiffe(SERVER_ID).ip("127.0.0.1").valid_for(9 * DAY).issue();
        let ca = site.ca.clone();
        site.server_has(&leaf, &ca);
        let clock = clock("+2d")?;
        site.listen_under(&clock, &[]);
        Ok(())
    } => "clock", ["the clocks differ", "our certificate is not valid now"];
}

#[test]
fn dates_are_not_blamed_when_the_clock_is_wrong() {
    // ER-4, ER-25
    let (Ok(days), Ok(minutes)) = (clock("+3d"), clock("+3m")) else {
        return;
    };
    let mut site = Site::new();
    let leaf = executor_since(&site, SystemTime::now() - DAY / 2);
    let ca = site.ca.clone();
    site.executor_has(&leaf, &ca);
    let leaf = server_since(&site, SystemTime::now() - DAY / 2);
    site.server_has(&leaf, &ca);
    site.listen(&[]);
    site.under = days;
    let report = site.doctor();
    report.blames("clock", &["apart"]);
    assert_eq!(report.verdict("own-dates"), "skip");
    assert_eq!(report.verdict("server-dates"), "skip");
    assert_eq!(report.verdict("client-certificate"), "pass", "{report:#?}");
    // Minutes are no reason to fail.
    site.under = minutes;
    site.doctor().is_well_but(&["clock"]);
}

#[test]
fn nothing_is_wrong_with_a_site_that_works() {
    let mut site = Site::new();
    site.listen(&["--executor-san-uri-prefix", "spiffe://example.org/ah/agent"]);
    let report = site.doctor();
    report.is_well_but(&[]);
    for name in [
        "files",
        "key",
        "dns",
        "tcp",
        "tls",
        "clock",
        "own-dates",
        "own-chain",
        "server-chain",
        "server-name",
        "client-certificate",
        "san-rules",
        "access-point",
    ] {
        assert_eq!(report.verdict(name), "pass", "{name}: {report:#?}");
    }
    report.is_told_of_in_the_document();
    // It knocks and does not enroll.
    let listed = site.host.run(["agent", "fleet", "list", "--json"]);
    assert!(listed.stdout.contains("\"executors\": []"), "{listed:?}");
}

#[test]
fn what_works_and_is_not_as_it_should_be_is_a_warning() {
    // FI-4, SV-34
    let mut site = Site::new();
    site.listen(&[]);
    std::os::unix::fs::chown(&site.executor.key, None, None).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&site.executor.key, open).unwrap();
    site.doctor().is_well_but(&["key-permissions"]);

    let leaf = site.ca.leaf().spiffe(EXECUTOR_ID).client_only().issue();
    let ca = site.ca.clone();
    site.executor_has(&leaf, &ca);
    let report = site.doctor();
    report.is_well_but(&["own-form"]);
    assert!(
        report.check("own-form")["causes"]
            .to_string()
            .contains("SV-34")
    );

    let ends_soon = SystemTime::now() + Duration::from_secs(600);
    let leaf = executor_since(&site, ends_soon - DAY);
    site.executor_has(&leaf, &ca);
    site.doctor().is_well_but(&["own-dates"]);
}

#[test]
fn the_access_point_says_what_the_fix_of_a_refusal_sends_one_to() {
    // ER-7, ER-25: from both ends.
    let mut site = Site::new();
    site.listen(&[
        "--executor-san-uri-prefix",
        "spiffe://example.org/ah/agents",
    ]);
    let report = site.doctor();
    let fix = report.check("san-rules")["fix"]
        .as_str()
        .unwrap()
        .to_owned();
    let asked = format!("ah agent fleet why {EXECUTOR_ID}");
    assert!(fix.contains(&asked), "{fix}");
    let words: Vec<&str> = asked.split(' ').skip(1).collect();
    let told: Finished = site.host.run(words);
    assert_eq!(told.code, 0, "{told:?}");
    told.prints(&[
        "refused",
        "nearest  URI:spiffe://example.org/ah/agents",
        "`spiffe://example.org/ah/agent` where the rule has `spiffe://example.org/ah/agents`",
        "seen since",
    ]);
}
