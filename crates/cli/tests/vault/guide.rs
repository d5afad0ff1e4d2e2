//! The Vault guide from top to bottom, each of its commands as it is printed, against a real server.

use ah_testkit::process::field;
use nix::sys::signal::Signal;

use crate::kit::{Told, failed, sh};
use crate::walk::Walk;

const ACCESS_POINT: &str = "access point with Vault";
const EXECUTOR: &str = "executor enrollment with Vault";

/// One value of a table that `vault` shows.
fn shown<'a>(table: &'a str, name: &str) -> &'a str {
    let mut rows = table.lines().map(str::split_whitespace);
    let found = rows.find_map(|mut row| (row.next() == Some(name)).then(|| row.next()));
    found
        .flatten()
        .unwrap_or_else(|| panic!("no {name}: {table}"))
}

// VA-1 to VA-4, VA-8 to VA-12, VA-16, AP-9, EN-7, ER-14, ER-15, ER-17
#[test]
fn the_guide_from_top_to_bottom() {
    let Some(mut walk) = Walk::begin() else {
        return;
    };
    walk.bao.initialise();
    let trust = walk.bao.ca().unwrap().display().to_string();

    // ER-15: as it comes from the factory, it is sealed; and so the troubleshooting guide.
    let environment = [
        ("VAULT_CACERT", trust.as_str()),
        ("ROLE_ID", "none"),
        ("SECRET_ID", "none"),
    ];
    let no_retry = format!("{} --vault-retry-max 0", walk.printed(ACCESS_POINT));
    let sealed = walk.run(&environment, &format!("{no_retry} --validate"));
    Told::first(sealed.stderr.lines()).says("vault is sealed", &[], "unseal");
    let mut unseal = walk.printed("Vault sealed");
    for (number, key) in walk.bao.keys().iter().take(3).enumerate() {
        unseal = unseal.replace(&format!("<key{}>", number + 1), key);
    }
    let unsealed = walk.bao.sh(&walk.host.path(""), &unseal);
    assert_eq!(unsealed.matches("Sealed ").count(), 3);
    walk.bao.wait_until_it_answers();
    assert_eq!(shown(&walk.follow("Vault unavailable"), "Sealed"), "false");

    // Vault Setup, and the log that proves what was asked.
    walk.follow("enable the PKI secrets engine");
    walk.follow("role of the access point");
    walk.follow("role of the executors");
    walk.follow("policies");
    let made = walk.follow("AppRole");
    walk.follow("Kubernetes auth");
    walk.follow("audit logging");
    walk.follow("namespaces");
    assert!(walk.follow("permission denied").contains("root"));

    let (role_id, secret_id) = (shown(&made, "role_id"), shown(&made, "secret_id"));
    let (executor_role_id, executor_secret_id) = walk.executor_credentials();
    let environment = [
        ("VAULT_CACERT", trust.as_str()),
        ("ROLE_ID", role_id),
        ("SECRET_ID", secret_id),
        ("EXECUTOR_ROLE_ID", &executor_role_id),
        ("EXECUTOR_SECRET_ID", &executor_secret_id),
    ];

    // ER-14, ER-17: the guide's roles do not admit the names that the guide's command lines ask for. A domain of
    // `allowed_domains` itself needs `allow_bare_domains`, and executor-1.example.com is not below
    // executor.example.com. Vault says so, and so do we.
    for (block, name) in [
        (ACCESS_POINT, "access-point.example.com"),
        (EXECUTOR, "executor-1.example.com"),
    ] {
        let done = walk.run(&environment, &walk.printed(block));
        let told = failed(&done, 1);
        let text = format!(
            "failed to issue certificate: 1 error occurred: * common name {name} not allowed by this role"
        );
        told.says(
            &text,
            &["common name not in allowed domains", name],
            "allowed_domains",
        );
        assert!(told.hint.contains("allow_bare_domains"), "{told:#?}");
    }
    let role = walk.follow("PKI issue failed, diagnosis");
    assert_eq!(shown(&role, "allow_bare_domains"), "false");
    for (block, printed, mended) in [
        (
            "role of the access point",
            "allow_subdomains=true",
            "allow_subdomains=true allow_bare_domains=true",
        ),
        (
            "role of the executors",
            "\"executor.example.com\"",
            "\"executor.example.com,example.com\"",
        ),
    ] {
        let script = walk.printed(block).replace(printed, mended);
        walk.bao.sh(&walk.host.path(""), &script);
    }

    // Both sides as printed.
    let access_point = walk.start(&environment, &walk.printed(ACCESS_POINT));
    let listening = access_point.wait_for("listening for executors");
    assert!(
        field(&listening, "address=").ends_with(":4433"),
        "{listening}"
    );
    let executor = walk.start(&environment, &walk.printed(EXECUTOR));
    let id = "spiffe://example.org/ah/agent/executor-1";
    executor.wait_for(&format!(" enrolled executor.id={id} "));
    // VA-14: what the command lines gave shows in `ps`, which is told once, with what to use instead.
    executor.wait_for("VAULT_SECRET_ID");

    // Monitoring, as the guide looks at it: the certificate, and words in the log.
    let certificate = walk.run(&[], &walk.printed("monitoring rotation"));
    certificate.prints(&[
        "Agent Harbor Intermediate CA",
        "executor-1.example.com",
        id,
        "ECDSA P-256",
    ]);
    executor.signal(Signal::SIGHUP);
    executor.wait_for("certificate rotated; enrollment moved to a new connection");
    access_point.wait_for("executor certificate rotated");
    access_point.signal(Signal::SIGHUP);
    access_point.wait_for("certificate rotated");
    let log = walk.host.path("executor.log");
    std::fs::write(&log, executor.lines().join("\n")).unwrap();
    let found = sh(
        &walk.host,
        r#"grep -i "certificate\|rotation\|renew" executor.log"#,
    );
    assert!(found.contains("certificate rotated"), "{found}");
    // The policies allow nothing else, so nothing else was asked for.
    let refused = walk.bao.all_requests();
    let refused = refused.iter().filter(|request| {
        let error = request["error"].as_str().unwrap_or_default();
        error.contains("permission denied")
    });
    assert_eq!(refused.count(), 0);

    drop(executor);
    from_a_pod(&walk, &trust);
    environment_variables(&walk, &executor_role_id, &executor_secret_id);
    drop(access_point);
    flags_of_other_sections(&walk, &environment);
    best_practices(&walk);
    authentication(&walk);
    walk.was_whole();
}

// VA-5
/// The Kubernetes section: the role that it makes, and the token that every pod has.
fn from_a_pod(walk: &Walk, trust: &str) {
    let script = walk.printed(EXECUTOR);
    let approle = "--vault-role-id $EXECUTOR_ROLE_ID \\\n--vault-secret-id $EXECUTOR_SECRET_ID";
    assert!(script.contains(approle));
    let script = script.replace(approle, "--vault-auth kubernetes --vault-k8s-role executor");
    let done = walk.run(
        &[("VAULT_CACERT", trust)],
        &format!("{script} --once=enrolled"),
    );
    assert_eq!(done.code, 0, "{}", done.stderr);
    let logins = walk.bao.requests("auth/kubernetes/login");
    assert_eq!(logins.len(), 1);
    assert!(logins[0]["error"].is_null(), "{logins:?}");
}

/// The section that gives no certificate names: they come from `--name`, which the role has to admit, and without a
/// URI SAN the access point's rule admits nobody.
fn environment_variables(walk: &Walk, role_id: &str, secret_id: &str) {
    let trust = walk.bao.ca().unwrap().display().to_string();
    let environment = [("VAULT_CACERT", trust.as_str())];
    let script = walk
        .printed("environment variables")
        .replace("your-role-id", role_id)
        .replace("your-secret-id", secret_id);
    let told = failed(&walk.run(&environment, &script), 1);
    let text = "failed to issue certificate: 1 error occurred: * common name executor-1 not allowed by this role";
    told.says(
        text,
        &["common name not in allowed domains"],
        "--vault-cert-cn",
    );

    // The guide: "Enable allow_any_name for testing".
    let role = walk.printed("role of the executors");
    let role = role.replace(
        "allow_any_name=false",
        "allow_any_name=true enforce_hostnames=false",
    );
    walk.bao.sh(&walk.host.path(""), &role);
    let told = failed(&walk.run(&environment, &script), 1);
    told.says(
        "certificate SAN does not match expected pattern",
        &["executor-1"],
        "--executor-san-uri-prefix",
    );
    let script = format!(
        "{script} --once=enrolled --vault-cert-san-uri spiffe://example.org/ah/agent/executor-1"
    );
    let done = walk.run(&environment, &script);
    assert_eq!(done.code, 0, "{}", done.stderr);
    // VA-14: nothing to warn of when the secrets come from the environment.
    assert!(!done.stderr.contains("VAULT_SECRET_ID"), "{}", done.stderr);
}

/// Lines that end in `...`, completed from the section that they belong to. The comment behind the backslash of the
/// first would end the command in any shell; it is left out.
fn flags_of_other_sections(walk: &Walk, environment: &[(&str, &str)]) {
    let access_point = walk.printed(ACCESS_POINT);
    let more = access_point.split_once("--vault-pki-path").unwrap().1;
    let cluster = walk.printed("Vault cluster").replace("...", "");
    let script = format!(
        "{cluster} --fleet-listen 0.0.0.0:4433 --server-identity vault --vault-pki-path {more}"
    );
    let access_point = walk.start(environment, &script);
    access_point.wait_for("listening for executors");

    let executor = walk.printed(EXECUTOR);
    let more = executor.split_once("--vault-addr").unwrap().1;
    let rotation = walk.printed("rotation configuration").replace("...", "");
    let server = "--remote-server https://access-point.example.com:4433";
    let executor = walk.start(
        environment,
        &format!("{rotation} {server} --vault-addr {more}"),
    );
    executor.wait_for(" enrolled executor.id=");
    // VA-11, VA-12: 24 hours, renewed after three quarters of them, less the spread.
    let status = walk.run(&[], "ah agent status --json");
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let time = |value: &serde_json::Value| {
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(value.as_str().unwrap(), format).unwrap()
    };
    let leaf = &status["certificate"]["leaf"];
    let (from, until) = (time(&leaf["not_before"]), time(&leaf["not_after"]));
    let life = until - from;
    assert!(
        (life - time::Duration::hours(24)).abs() < time::Duration::minutes(1),
        "{life}"
    );
    let share = (time(&status["next_renewal"]) - from) / life;
    assert!((0.6..=0.78).contains(&share), "{share}");
}

fn best_practices(walk: &Walk) {
    // 1. A secret id for one use: see the tests of the token's life.
    walk.follow("short-lived credentials");
    let role = walk.bao.read("auth/approle/role/executor");
    assert_eq!(role["data"]["secret_id_num_uses"], 1);
    assert_eq!(
        role["data"]["token_policies"][0], "ah-executor",
        "the rest of the role stays"
    );

    // 2. As printed, the role admits no name in its own domain: neither the domain, which takes
    // allow_bare_domains, nor one below it.
    walk.follow("restricted roles");
    let trust = walk.bao.ca().unwrap().display().to_string();
    let enroll = |name: &str| {
        let (role_id, secret_id) = walk.executor_credentials();
        let environment = [
            ("VAULT_CACERT", trust.as_str()),
            ("EXECUTOR_ROLE_ID", role_id.as_str()),
            ("EXECUTOR_SECRET_ID", &secret_id),
        ];
        let script = walk
            .printed(EXECUTOR)
            .replace("executor-1.example.com", name);
        failed(&walk.run(&environment, &format!("{script} --once")), 1)
    };
    // Nobody listens there now: whoever gets so far has a certificate.
    let far = "connection refused to access-point.example.com:4433";
    let inside = "executor.internal.example.com";
    for name in [inside, "a.executor.internal.example.com"] {
        enroll(name).says(
            &format!("failed to issue certificate: 1 error occurred: * common name {name} not allowed by this role"),
            &["common name not in allowed domains"],
            "allow_bare_domains",
        );
    }
    let role = walk.printed("restricted roles");
    walk.bao.sh(
        &walk.host.path(""),
        &format!("{role} allow_bare_domains=true"),
    );
    assert_eq!(enroll(inside).text, far);

    // The troubleshooting guide's way to mend a role replaces all of it: the URI SANs it admitted are gone, and keys
    // are RSA. To patch it leaves them be.
    walk.bao
        .sh(&walk.host.path(""), &walk.printed("role of the executors"));
    let mended = walk.printed("PKI issue failed, solution");
    let patched = mended.replace("vault write", "vault patch");
    assert_ne!(patched, mended);
    walk.bao.sh(&walk.host.path(""), &patched);
    let role = || walk.bao.read("pki_int/roles/executor")["data"].clone();
    assert_eq!(
        role()["allowed_uri_sans"][0],
        "spiffe://example.org/ah/agent/*"
    );
    assert_eq!(role()["key_type"], "ec");
    assert_eq!(enroll("executor-1.internal.example.com").text, far);
    walk.follow("PKI issue failed, solution");
    assert_eq!(role()["key_type"], "rsa");
    let told = enroll("executor-1.internal.example.com");
    assert!(
        told.text
            .starts_with("failed to issue certificate: 1 error occurred: * "),
        "{told:?}"
    );
    assert!(told.hint.contains("allowed_uri_sans"), "{told:?}");
}

/// ER-13, and what the guide says to type. OpenBao's command line has no `login -method=approle`: `vault write
/// auth/approle/login …` does what is meant, and spends a one-time secret id.
fn authentication(walk: &Walk) {
    let trust = walk.bao.ca().unwrap().display().to_string();
    let environment = [
        ("VAULT_CACERT", trust.as_str()),
        ("EXECUTOR_ROLE_ID", "11111111-2222-3333-4444-555555555555"),
        ("EXECUTOR_SECRET_ID", "66666666-7777-8888-9999-000000000000"),
    ];
    let told = failed(&walk.run(&environment, &walk.printed(EXECUTOR)), 1);
    assert!(
        told.text.starts_with("vault authentication failed: "),
        "{told:?}"
    );
    assert!(
        told.hint
            .contains("vault write -f auth/approle/role/<role>/secret-id"),
        "{told:?}"
    );
    let environment = [
        ("VAULT_CACERT", trust.as_str()),
        ("VAULT_ADDR", walk.bao.url()),
        ("VAULT_ROLE_ID", "11111111-2222-3333-4444-555555555555"),
        ("VAULT_SECRET_ID", "66666666-7777-8888-9999-000000000000"),
    ];
    let login = walk.run(&environment, &walk.printed("authentication failed"));
    assert!(
        login.stderr.contains("Unknown auth method: approle"),
        "{login:?}"
    );
    let (role_id, secret_id) = walk.executor_credentials();
    let typed = format!("vault write auth/approle/login role_id={role_id} secret_id={secret_id}");
    let login = walk.bao.sh(&walk.host.path(""), &typed);
    assert!(shown(&login, "token_policies").contains("ah-executor"));
}
