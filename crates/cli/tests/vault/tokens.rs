//! The life of a token, and of a secret id that is good once (VA-15), at a real server with short lives.

use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fleet::{Fleet, id};
use crate::kit::{failed, mode};
use crate::site::admin;

/// The guide's best practice: a secret id for one use.
fn one_time(fleet: &Fleet, token_ttl: &str, token_max_ttl: &str) {
    let role = json!({
        "secret_id_num_uses": 1,
        "secret_id_ttl": "24h",
        "token_ttl": token_ttl,
        "token_max_ttl": token_max_ttl,
    });
    fleet.realm.app_role(&fleet.bao, "executor", role);
}

/// How often Vault was asked to renew a token of this realm's executors, with success.
fn renewals(fleet: &Fleet) -> usize {
    let policy = fleet.realm.policy_name("executor");
    let all = fleet.bao.requests("auth/token/renew-self");
    let ours = all.iter().filter(|line| {
        let policies = line["auth"]["token_policies"].to_string();
        policies.contains(&policy) && line["error"].is_null()
    });
    ours.count()
}

// VA-15: renewed, and at its max TTL logged in again.
#[test]
fn va_15_a_token_is_renewed_and_at_its_end_replaced() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let role = json!({"token_ttl": "2s", "token_max_ttl": "5s"});
    fleet.realm.app_role(&fleet.bao, "executor", role);
    let access_point = fleet.access_point(&[]);
    let before = fleet.realm.logins(&fleet.bao).1;
    // The certificate needs no renewal all the while: the token lives on by itself.
    let executor = fleet.executor(access_point.address, "one", &[]);
    executor.wait_for(" enrolled executor.id=");
    eventually("the token is renewed", || {
        (renewals(&fleet) >= 1).then_some(())
    });
    assert_eq!(fleet.realm.logins(&fleet.bao).1, before + 1);
    eventually("at its max TTL, a second login", || {
        (fleet.realm.logins(&fleet.bao).1 == before + 2).then_some(())
    });
    executor.signal(Signal::SIGHUP);
    executor.wait_for("certificate rotated; enrollment moved to a new connection");
    let (asked, given) = fleet.realm.logins(&fleet.bao);
    assert_eq!(asked, given, "no login was refused");
    assert_eq!(fleet.status("one")["identity_error"], json!(null));
}

// VA-15: with a one-time secret id there is no second login.
#[test]
fn va_15_a_token_that_cannot_be_replaced_gets_a_last_certificate_and_says_so() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    one_time(&fleet, "4s", "4s");
    let access_point = fleet.access_point(&[]);
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    std::fs::write(fleet.host.path("secret-id"), &credentials.secret_id).unwrap();
    let mut command = fleet.enroll(
        fleet.bao.url(),
        None,
        access_point.address,
        "one",
        &["--vault-secret-id-file", "secret-id"],
    );
    let executor = Process::start(command.env("VAULT_ROLE_ID", &credentials.role_id));
    executor.wait_for(" enrolled executor.id=");
    let first = fleet.status("one");
    // The certificate would last for a day; one more is fetched while the token still can.
    let second = fleet.recovered("one", &first);
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor"), (2, 2));
    // From then on log and status tell what ends when, and what to put where.
    let line = executor.wait_for("this is the last certificate that the vault token can get");
    let ends = second["certificate"]["leaf"]["not_after"].as_str().unwrap();
    let second_of = |text: &str| text.split(['.', 'Z']).next().unwrap().to_owned();
    assert!(
        line.contains("WARN") && line.contains(&second_of(ends)),
        "{line} {ends}"
    );
    let place = fleet.host.path("secret-id").file_name().unwrap().to_owned();
    let place = place.to_str().unwrap();
    assert!(line.contains(place), "{line}");
    let warned = eventually("the warning in the status", || {
        let status = fleet.status("one");
        status["identity_warning"].is_object().then_some(status)
    });
    assert!(
        warned["identity_warning"].to_string().contains(place),
        "{warned}"
    );
    assert_eq!(warned["enrolled"], true);
    let shown = fleet.host.run(["agent", "status", "--name", "one"]);
    assert!(shown.stdout.contains(place), "{}", shown.stdout);
    for secret in [&credentials.secret_id, &credentials.role_id] {
        assert_eq!(executor.count(secret), 0);
    }

    // Somebody puts another secret id there: it is taken up by itself.
    one_time(&fleet, "1h", "4h");
    let next = fleet.realm.credentials(&fleet.bao, "executor");
    std::fs::write(fleet.host.path("secret-id"), &next.secret_id).unwrap();
    executor.wait_for("logged in to vault again");
    eventually("the warning goes", || {
        fleet.status("one")["identity_warning"]
            .is_null()
            .then_some(())
    });
    assert_eq!(
        executor.count("retrying in"),
        0,
        "it was enrolled all the time"
    );
}

// VA-15, AP-9: the access point's own warning is in its interface.
#[test]
fn va_15_an_access_point_whose_token_cannot_be_replaced_says_so() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let role = json!({"secret_id_num_uses": 1, "token_ttl": "4s", "token_max_ttl": "4s"});
    fleet.realm.app_role(&fleet.bao, "access-point", role);
    let access_point = fleet.access_point(&[]);
    let view = || {
        let answer = admin(&fleet.host, "/api/v1/access-point").unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        serde_json::from_str::<Value>(&body).unwrap()
    };
    access_point
        .process
        .wait_for("this is the last certificate that the vault token can get");
    let warned = eventually("the warning", || {
        let view = view();
        view["identity_warning"].is_object().then_some(view)
    });
    let warning = &warned["identity_warning"];
    assert!(
        warning["text"]
            .as_str()
            .is_some_and(|text| text.contains("cannot be replaced")),
        "{warned}"
    );
    assert!(
        warning["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("VAULT_SECRET_ID")),
        "{warned}"
    );
}

// VA-15, VA-14: a restart does not spend the secret id again.
#[test]
fn va_15_a_restart_works_from_the_token_on_disk() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    one_time(&fleet, "1h", "4h");
    let access_point = fleet.access_point(&[]);
    let before = fleet.realm.logins(&fleet.bao).1;
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let enroll = |more: &[&str]| {
        fleet.enroll(
            fleet.bao.url(),
            Some(&credentials),
            access_point.address,
            "one",
            more,
        )
    };
    let mut executor = Process::start(&mut enroll(&[]));
    executor.wait_for(" enrolled executor.id=");
    executor.kill();
    let mut executor = Process::start(&mut enroll(&[]));
    executor.wait_for(" enrolled executor.id=");
    executor.kill();
    let logins = fleet.realm.logins(&fleet.bao);
    assert_eq!(
        logins,
        (before + 1, before + 1),
        "the secret id was spent once"
    );

    // For the owner alone, and without the secret id.
    let files = files_below(&fleet.host.state());
    let kept = files
        .iter()
        .filter(|path| path.to_string_lossy().contains("vault-token"));
    let mut found = 0;
    for path in kept {
        assert_eq!(mode(path), 0o600, "{}", path.display());
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains(&credentials.secret_id));
        found += usize::from(text.contains("token"));
    }
    assert!(found > 0, "{files:?}");

    // Without the cache the spent secret id shows: ER-13.
    let done = enroll(&["--no-vault-token-cache"]).output().unwrap();
    let told = failed(&done.into(), 1);
    told.says(
        "vault authentication failed: invalid role or secret ID",
        &["approle"],
        "issue another secret id",
    );
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

// VA-15: of several processes with one secret id, one alone spends it, and the others live on its token.
#[test]
fn va_15_processes_started_together_spend_a_secret_id_once() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    one_time(&fleet, "1h", "4h");
    let access_point = fleet.access_point(&[]);
    for round in 0..3 {
        let before = fleet.realm.logins(&fleet.bao);
        let credentials = fleet.realm.credentials(&fleet.bao, "executor");
        let names = ["a", "b", "c"].map(|name| format!("{name}-{round}"));
        let started = names.each_ref().map(|name| {
            let mut command = fleet.enroll(
                fleet.bao.url(),
                Some(&credentials),
                access_point.address,
                name,
                &[],
            );
            Process::start(&mut command)
        });
        for (process, name) in started.iter().zip(&names) {
            process.wait_for(&format!(" enrolled executor.id={} ", id(name)));
        }
        let after = fleet.realm.logins(&fleet.bao);
        assert_eq!(after, (before.0 + 1, before.1 + 1));
    }
}

// VA-15, ER-13: the secret id itself has a time.
#[test]
fn a_secret_id_past_its_time_is_told() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    fleet
        .realm
        .app_role(&fleet.bao, "executor", json!({"secret_id_ttl": "1s"}));
    let access_point = fleet.access_point(&[]);
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let body = json!({"secret_id": credentials.secret_id});
    let path = format!(
        "auth/{}/role/executor/secret-id/lookup",
        fleet.realm.approle
    );
    eventually("its time is over", || {
        let answer = fleet.bao.call("POST", &path, Some(&body));
        (answer.status != 200).then_some(())
    });
    let mut command = fleet.enroll(
        fleet.bao.url(),
        Some(&credentials),
        access_point.address,
        "one",
        &[],
    );
    let told = failed(&command.output().unwrap().into(), 1);
    told.says(
        "vault authentication failed: invalid role or secret ID",
        &[],
        "secret_id_ttl",
    );
}
