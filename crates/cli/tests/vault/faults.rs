//! What goes wrong with a real Vault while a fleet lives on it: last good identities serve on, the trouble shows,
//! and all is well again once it is mended (VA-13, ER-13 to ER-19).

use std::sync::Arc;

use ah_testkit::clock::FalseClock;
use ah_testkit::openbao::{Fault, Listen, OpenBao, Proxy};
use ah_testkit::process::{AccessPoint, Process, access_point_args, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fleet::{Fleet, IMPATIENT, id};
use crate::kit::{Told, failed};
use crate::site::{get, metric};

/// Tells `process` to look again, which is what a test does instead of waiting for two thirds of a life.
fn hup(process: &Process) {
    process.signal(Signal::SIGHUP);
}

/// The access point's trouble with its identity is in its metrics, and it serves on.
fn troubled(access_point: &AccessPoint) {
    let http = access_point.http.unwrap();
    eventually("the failure in the metrics", || {
        (metric(http, "ah_identity_renewal_failures") >= 1.0).then_some(())
    });
    assert_eq!(
        get(http, "/readyz").0,
        200,
        "the last good identity serves on"
    );
}

fn recovered(access_point: &AccessPoint, generation: f64) {
    let http = access_point.http.unwrap();
    eventually("the access point recovers", || {
        let healthy = metric(http, "ah_identity_renewal_failures") == 0.0;
        (healthy && metric(http, "ah_identity_generation") > generation).then_some(())
    });
}

// VA-13, AP-9, ER-15, ER-18: nobody tells the fleet to look again here; it finds out and recovers by itself.
#[test]
fn er_15_sealed_stopped_and_back_without_anybody_touching_the_fleet() {
    let Some(mut bao) = OpenBao::raft(&Listen::default()) else {
        return;
    };
    bao.initialise();
    bao.unseal();
    let fleet = Fleet::on(Arc::new(bao));
    // Renewed after three seconds, with time left for a machine that is busy.
    let short = [
        "--vault-cert-ttl",
        "60s",
        "--vault-renewal-threshold",
        "0.05",
    ];
    let access_point = fleet.access_point(&short);
    let http = access_point.http.unwrap();
    let executor = fleet.executor(access_point.address, "one", &short);
    executor.wait_for(" enrolled executor.id=");

    let (generation, before) = (metric(http, "ah_identity_generation"), fleet.status("one"));
    fleet.bao.seal();
    fleet.troubled("one", "vault is sealed");
    troubled(&access_point);
    fleet.bao.unseal();
    let before = fleet.recovered("one", &before);
    recovered(&access_point, generation);

    let generation = metric(http, "ah_identity_generation");
    fleet.bao.stop();
    fleet.troubled("one", "failed to connect to vault: connection refused");
    troubled(&access_point);
    fleet.bao.start();
    fleet.bao.unseal();
    fleet.recovered("one", &before);
    recovered(&access_point, generation);
    assert_eq!(
        executor.count("retrying in"),
        0,
        "it was enrolled all the time"
    );
    let audited = fleet.host.state().join("audit.jsonl");
    let audited = std::fs::read_to_string(audited).unwrap();
    assert!(audited.contains("identity-renewal-failed") && audited.contains("vault is sealed"));
}

// ER-14, ER-16, ER-17, VA-13: what an operator of Vault can take away, and give back.
#[test]
fn er_16_policies_roles_tokens_and_mounts_that_go_and_come_back() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let (bao, realm) = (&fleet.bao, &fleet.realm);
    let access_point = fleet.access_point(&[]);
    let executor = fleet.executor(access_point.address, "one", &[]);
    executor.wait_for(" enrolled executor.id=");
    let mut before = fleet.status("one");
    let mut fault = |text: &str, facts: &[&str], mend: &dyn Fn()| {
        hup(&executor);
        let told = fleet.troubled("one", text)["identity_error"]["error"].to_string();
        for fact in facts {
            assert!(told.contains(fact), "no {fact}: {told}");
        }
        mend();
        hup(&executor);
        before = fleet.recovered("one", &before);
    };

    let policy = format!("sys/policies/acl/{}", realm.policy_name("executor"));
    bao.delete(&policy);
    fault(
        &format!("permission denied for path {}", realm.issue("executor")),
        &["vault token lookup", "vault_path_denied"],
        &|| realm.policy(bao, "executor"),
    );

    let role = format!("{}/roles/executor", realm.pki);
    bao.delete(&role);
    fault(
        "failed to issue certificate: 1 error occurred: * unknown role",
        &["executor"],
        &|| realm.pki_role(bao, "executor", json!({})),
    );
    for (change, facts) in [
        (
            json!({"allowed_domains": "elsewhere.example.org"}),
            ["common name not in allowed domains", "one.example.com"],
        ),
        (
            json!({"allowed_uri_sans": "spiffe://example.org/other/*"}),
            ["spiffe://example.org/ah/agent/one", "allowed_uri_sans"],
        ),
    ] {
        realm.pki_role(bao, "executor", change);
        fault(
            "failed to issue certificate: 1 error occurred: * ",
            &facts,
            &|| {
                realm.pki_role(bao, "executor", json!({}));
            },
        );
    }
}

// ER-13, ER-19: token and role are gone at once, so that there is no way back in until somebody makes one.
#[test]
fn er_19_a_revoked_token_whose_role_is_gone_too() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let (bao, realm) = (&fleet.bao, &fleet.realm);
    let access_point = fleet.access_point(&[]);
    let write = || {
        let credentials = realm.credentials(bao, "executor");
        std::fs::write(fleet.host.path("role-id"), credentials.role_id).unwrap();
        std::fs::write(fleet.host.path("secret-id"), credentials.secret_id).unwrap();
    };
    write();
    let files = [
        "--vault-role-id-file",
        "role-id",
        "--vault-secret-id-file",
        "secret-id",
    ];
    let mut command = fleet.enroll(bao.url(), None, access_point.address, "one", &files);
    let executor = Process::start(&mut command);
    executor.wait_for(" enrolled executor.id=");
    let before = fleet.status("one");
    let revoke = || {
        let login = bao.requests(&format!("auth/{}/login", realm.approle));
        let accessor = login.last().unwrap()["auth"]["accessor"].clone();
        bao.write("auth/token/revoke-accessor", json!({"accessor": accessor}));
        hup(&executor);
    };
    // The token alone: it logs in again, and nobody has to know.
    let logins = realm.logins(bao).1;
    revoke();
    let before = fleet.recovered("one", &before);
    assert_eq!(realm.logins(bao).1, logins + 1);

    bao.delete(&format!("auth/{}/role/executor", realm.approle));
    revoke();
    let told = fleet.troubled("one", "vault token expired")["identity_error"]["error"].to_string();
    for fact in ["logging in again", "vault_token_expired", "secret-id"] {
        assert!(told.contains(fact), "no {fact}: {told}");
    }
    // A role of the same name has other ids. They are taken from the files without a word to the executor.
    realm.app_role(bao, "executor", json!({}));
    write();
    fleet.recovered("one", &before);
}

// ER-14, ER-16: the whole mount is gone, which no operator can undo with the same keys.
#[test]
fn a_pki_mount_that_is_gone_leaves_the_last_certificate_in_use() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let executor = fleet.executor(access_point.address, "one", &[]);
    executor.wait_for(" enrolled executor.id=");
    fleet.bao.delete(&format!("sys/mounts/{}", fleet.realm.pki));
    hup(&executor);
    let status = eventually("the trouble", || {
        let status = fleet.status("one");
        status["identity_error"].is_object().then_some(status)
    });
    assert_eq!(status["enrolled"], true);
    let told = status["identity_error"]["error"].to_string();
    assert!(told.contains(&fleet.realm.pki), "{told}");
    hup(&access_point.process);
    troubled(&access_point);
}

/// A proxy before the shared server, and an executor that goes through it.
struct Spoiled {
    fleet: Fleet,
    proxy: Proxy,
    access_point: AccessPoint,
    executor: Process,
}

impl Spoiled {
    fn begin(more: &[&str]) -> Option<Self> {
        let fleet = Fleet::begin()?;
        let proxy = Proxy::before(fleet.bao.url());
        let access_point = fleet.access_point(&[]);
        let credentials = fleet.realm.credentials(&fleet.bao, "executor");
        let mut command = fleet.enroll(
            &proxy.url(),
            Some(&credentials),
            access_point.address,
            "one",
            more,
        );
        let executor = Process::start(&mut command);
        executor.wait_for(" enrolled executor.id=");
        Some(Self {
            fleet,
            proxy,
            access_point,
            executor,
        })
    }
}

// VA-13, ER-24: answers that a load balancer, a limit or a broken network makes.
#[test]
fn va_13_answers_that_are_late_cut_or_not_vaults_own() {
    let Some(spoiled) = Spoiled::begin(&[]) else {
        return;
    };
    let Spoiled {
        fleet,
        proxy,
        executor,
        ..
    } = &spoiled;
    let errors = |text: &str| format!("{{\"errors\":[{text:?}]}}");
    let page = "<html>\n<h1>502 Bad Gateway</h1>\n</html>".to_owned();
    let cases: [(Fault, &str, &str); 8] = [
        (
            Fault::Status(429, errors("request path \"x\": rate limit quota exceeded")),
            "vault cannot answer now: ",
            "rate limit quota exceeded",
        ),
        (
            Fault::Status(500, errors("internal error")),
            "vault cannot answer now: ",
            "HTTP 500",
        ),
        (
            Fault::Status(502, page),
            "vault cannot answer now: ",
            "HTTP 502",
        ),
        (
            Fault::Status(503, errors("Vault is sealed")),
            "vault is sealed",
            "unseal",
        ),
        (Fault::Status(200, "{\"data\":".to_owned()), "", "vault"),
        (
            Fault::Status(
                200,
                "{\"data\":{\"certificate\":\"AAAA\",\"private_key\":\"BBBB-is-secret\"}}"
                    .to_owned(),
            ),
            "",
            "vault",
        ),
        (
            Fault::Truncated,
            "vault gave no answer: the reply broke off",
            "http",
        ),
        (Fault::Closed, "vault gave no answer: ", "http"),
    ];
    let mut before = fleet.status("one");
    for (fault, text, fact) in cases {
        let tries = proxy.count("/issue/");
        proxy.set(fault.clone(), "/issue/");
        hup(executor);
        let status = eventually(&format!("the trouble of {fault:?}"), || {
            let status = fleet.status("one");
            let told = status["identity_error"]["error"]["text"]
                .as_str()
                .unwrap_or_default();
            (!told.is_empty() && told.starts_with(text)).then_some(status)
        });
        assert_eq!(status["enrolled"], true, "{fault:?}");
        let told = status["identity_error"]["error"].to_string();
        assert!(
            told.to_lowercase().contains(&fact.to_lowercase()),
            "{fault:?}: no {fact}: {told}"
        );
        assert!(!told.contains("BBBB-is-secret"), "{told}");
        assert!(proxy.count("/issue/") > tries);
        proxy.set(Fault::None, "");
        hup(executor);
        before = fleet.recovered("one", &before);
    }
    assert_eq!(executor.count("BBBB-is-secret"), 0);

    // A slow answer is waited for, and nothing else is asked meanwhile, however often somebody wants it.
    let tries = proxy.count("/issue/");
    proxy.set(Fault::Held, "/issue/");
    hup(executor);
    proxy.wait_for("/issue/", tries + 1);
    hup(executor);
    hup(executor);
    assert_eq!(fleet.status("one")["enrolled"], true);
    proxy.set(Fault::None, "");
    fleet.recovered("one", &before);
    assert_eq!(proxy.most_at_once(), 1, "one request at a time");
    assert_eq!(executor.count("retrying in"), 0);
    assert!(spoiled.access_point.http.is_some());
}

// VA-13: so many attempts, and no more.
#[test]
fn va_13_attempts_of_one_request_are_counted() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let proxy = Proxy::before(fleet.bao.url());
    let access_point = fleet.access_point(&[]);
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let enroll = |more: &[&str]| {
        let mut all = vec!["--once"];
        all.extend(more);
        fleet.enroll(
            &proxy.url(),
            Some(&credentials),
            access_point.address,
            "one",
            &all,
        )
    };
    proxy.set(Fault::Status(503, "{\"errors\":[]}".to_owned()), "");
    for (max, attempts) in [("0", 1), ("3", 4)] {
        let before = proxy.seen().len();
        let mut command = enroll(&["--vault-retry-max", max, "--vault-retry-delay", "10ms"]);
        let told = failed(&command.output().unwrap().into(), 1);
        assert!(
            told.text.starts_with("vault cannot answer now: "),
            "{told:?}"
        );
        assert_eq!(proxy.seen().len() - before, attempts);
    }
    // What Vault refuses is not asked again.
    let before = proxy.seen().len();
    proxy.set(
        Fault::Status(
            400,
            "{\"errors\":[\"invalid role or secret ID\"]}".to_owned(),
        ),
        "",
    );
    let mut command = enroll(&["--vault-retry-max", "3", "--vault-retry-delay", "10ms"]);
    let told = failed(&command.output().unwrap().into(), 1);
    assert_eq!(
        told.text,
        "vault authentication failed: invalid role or secret ID"
    );
    assert_eq!(proxy.seen().len() - before, 1);
}

// VA-1, VA-16: a standby sends its callers to the leader; the leader dies and another takes over.
#[test]
fn va_16_a_cluster_whose_standby_redirects_and_whose_leader_dies() {
    let Some(mut first) = OpenBao::raft(&Listen::default()) else {
        return;
    };
    first.initialise();
    first.unseal();
    let (second, third) = (first.joined(), first.joined());
    let fleet = Fleet::on(Arc::new(first));
    // The standby answers for itself instead of asking the leader behind the caller's back.
    let redirecting = Proxy::before(second.url());
    redirecting.set(
        Fault::Header("X-Vault-No-Request-Forwarding: true".to_owned()),
        "",
    );
    let plain = second.call_as("", "GET", "sys/health?standbyok=false", None);
    assert_eq!(plain.status, 429, "it is a standby: {plain:?}");

    let [server, client] = ["access-point", "executor"].map(|role| {
        let credentials = fleet.realm.credentials(&fleet.bao, role);
        // A standby reads for itself, a moment behind its leader: asked at once, it would refuse what it does not
        // know yet.
        let path = format!("auth/{}/role/{role}/secret-id/lookup", fleet.realm.approle);
        let known = json!({"secret_id": credentials.secret_id});
        for node in [&second, &third] {
            eventually("the standby knows the secret id", || {
                let answer = node.call("POST", &path, Some(&known));
                (answer.status == 200).then_some(())
            });
        }
        credentials
    });

    let access_point = fleet.access_point_by(&redirecting.url(), &server, &[]);
    let addresses = format!("{},{},{}", redirecting.url(), fleet.bao.url(), third.url());
    let mut command = fleet.enroll(&addresses, Some(&client), access_point.address, "one", &[]);
    let executor = Process::start(&mut command);
    executor.wait_for(" enrolled executor.id=");
    assert!(redirecting.count("/issue/") > 0, "{:?}", redirecting.seen());
    let leader = fleet.bao.requests(&fleet.realm.issue("executor"));
    assert_eq!(leader.len(), 1, "the leader gave the certificate");

    let before = fleet.status("one");
    let generation = metric(access_point.http.unwrap(), "ah_identity_generation");
    fleet.bao.stop();
    hup(&executor);
    hup(&access_point.process);
    // With two of three left there is a new leader, in its own time, and nobody has to say so.
    eventually("a new leader", || {
        let leads = |node: &OpenBao| node.call("GET", "sys/leader", None).body["is_self"] == true;
        (leads(&second) || leads(&third)).then_some(())
    });
    fleet.recovered("one", &before);
    recovered(&access_point, generation);
    assert_eq!(executor.count("retrying in"), 0);
}

// VA-2, FI-1: a role that gives RSA keys, as the troubleshooting guide's `vault write` makes it by leaving key_type out;
// and one whose key never leaves this machine.
#[test]
fn va_2_rsa_keys_and_keys_made_here() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let executor = fleet.executor(access_point.address, "one", &[]);
    executor.wait_for(" enrolled executor.id=");
    let before = fleet.status("one");
    let key = |status: &Value| {
        status["certificate"]["leaf"]["key"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(key(&before), "ECDSA P-256");
    fleet.realm.pki_role(
        &fleet.bao,
        "executor",
        json!({"key_type": "rsa", "key_bits": 2048}),
    );
    hup(&executor);
    assert!(key(&fleet.recovered("one", &before)).contains("RSA"));
    drop(executor);

    // `sign`: under a policy for that path alone.
    let path = format!("{}/sign/executor", fleet.realm.pki);
    let policy = format!("path \"{path}\" {{ capabilities = [\"create\", \"update\"] }}");
    let name = format!("sys/policies/acl/{}", fleet.realm.policy_name("executor"));
    fleet.bao.write(&name, json!({"policy": policy}));
    fleet.realm.pki_role(&fleet.bao, "executor", json!({}));
    let executor = fleet.executor(access_point.address, "two", &["--vault-pki-path", &path]);
    executor.wait_for(&format!(" enrolled executor.id={} ", id("two")));
    let answers = fleet.bao.requests(&path);
    assert_eq!(answers.len(), 1);
    assert!(
        answers[0]["response"]["data"]["certificate"].is_string(),
        "{answers:?}"
    );
    assert!(answers[0]["response"]["data"]["private_key"].is_null());
}

// ER-4: Vault's clock is ahead of ours by hours. OpenBao's program is static and takes no false clock, so it is ours
// that is put back: to both it is the same.
#[test]
fn er_4_vaults_clock_ahead_is_told_with_both_clocks_and_heals() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let Some(ours) = FalseClock::following(&fleet.host.path("clock")) else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let clock = |offset: &str| {
        // One rename: a reader must not find half of it.
        std::fs::write(fleet.host.path("clock.new"), format!("{offset}\n")).unwrap();
        std::fs::rename(fleet.host.path("clock.new"), fleet.host.path("clock")).unwrap();
    };
    clock("-2h");
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let mut command = fleet.enroll(
        fleet.bao.url(),
        Some(&credentials),
        access_point.address,
        "one",
        &[],
    );
    let executor = Process::start(ours.set(&mut command));
    executor.wait_for("error: ");
    let told = eventually("all of the error", || {
        let told = Told::first(executor.lines());
        (!told.hint.is_empty()).then_some(told)
    });
    assert_eq!(told.text, "certificate has expired or is not yet valid");
    assert!(
        told.causes.iter().any(|cause| cause.contains("ahead")),
        "{told:?}"
    );
    // As the clock is put right, what Vault gave is good: it is used without another request.
    clock("+0h");
    executor.wait_for(" enrolled executor.id=");
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor"), (1, 1));
}

// EN-13, ER-18: whoever starts while Vault is away waits for it.
#[test]
fn er_18_a_start_without_vault_waits_for_it() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let proxy = Proxy::before(fleet.bao.url());
    proxy.set(
        Fault::Status(503, "{\"errors\":[\"Vault is sealed\"]}".to_owned()),
        "",
    );
    let path = fleet.realm.issue("access-point");
    let mut args = vec!["--server-identity", "vault", "--vault-pki-path", &path];
    args.extend([
        "--vault-cert-cn",
        "access-point.example.com",
        "--vault-cert-san-ip",
        "127.0.0.1",
    ]);
    args.extend(["--vault-auth-mount", &fleet.realm.approle]);
    args.extend(IMPATIENT);
    let credentials = fleet.realm.credentials(&fleet.bao, "access-point");
    let mut command = fleet.host.command(access_point_args(&args));
    command
        .env("VAULT_ADDR", proxy.url())
        .env("VAULT_ROLE_ID", credentials.role_id)
        .env("VAULT_SECRET_ID", credentials.secret_id);
    let access_point = Process::start(&mut command);
    access_point.wait_for("vault is sealed");
    proxy.set(Fault::None, "");
    access_point.wait_for("listening for executors");
}
