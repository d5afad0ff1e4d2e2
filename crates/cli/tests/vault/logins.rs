//! Every way to log in, at a real server (VA-3 to VA-8, ER-13).

use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::openbao::{Listen, OpenBao};
use ah_testkit::process::{AccessPoint, Finished, Process, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fleet::{Fleet, id};
use crate::kit::{Told, failed, sh, try_sh};
use crate::tokens_of_others::{jwt, service_account, token_review};

/// Runs an executor that logs in by `args`, until it is enrolled or gives up.
fn once(fleet: &Fleet, access_point: &AccessPoint, name: &str, args: &[&str]) -> Finished {
    Finished::from(command(fleet, access_point, name, args).output().unwrap())
}

fn command(fleet: &Fleet, access_point: &AccessPoint, name: &str, args: &[&str]) -> Command {
    let mut all = vec!["--once=enrolled"];
    all.extend(args);
    fleet.enroll(fleet.bao.url(), None, access_point.address, name, &all)
}

#[track_caller]
fn enrolled(done: &Finished, name: &str) {
    assert_eq!(done.code, 0, "{}", done.stderr);
    let line = format!(" enrolled executor.id={} ", id(name));
    assert!(done.stderr.contains(&line), "{}", done.stderr);
}

/// ER-13 with a hint that names `advice`; and no secret of `secrets` anywhere.
#[track_caller]
fn not_authenticated(done: &Finished, advice: &str, secrets: &[&str]) {
    let told = failed(done, 1);
    assert!(
        told.text.starts_with("vault authentication failed: "),
        "{told:?}"
    );
    assert!(told.hint.contains(advice), "{told:?}");
    for secret in secrets {
        assert!(
            !done.stderr.contains(secret),
            "a secret is told: {}",
            done.stderr
        );
    }
}

// VA-3, VA-4, VA-14
#[test]
fn va_4_approle_from_files_that_are_read_at_each_login() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let good = fleet.realm.credentials(&fleet.bao, "executor");
    let write = |name: &str, text: &str| std::fs::write(fleet.host.path(name), text).unwrap();
    write("role-id", &format!("{}\n", good.role_id));
    write("secret-id", "wrong-and-secret\n");
    let files = [
        "--vault-role-id-file",
        "role-id",
        "--vault-secret-id-file",
        "secret-id",
    ];
    let done = once(&fleet, &access_point, "one", &files);
    not_authenticated(&done, "secret-id", &["wrong-and-secret", &good.role_id]);

    // The token that this login gives is revoked; the file holds another secret id by then.
    write("secret-id", &good.secret_id);
    let args = ["--vault-no-such"];
    assert_eq!(once(&fleet, &access_point, "one", &args).code, 2);
    let mut all = files.to_vec();
    all.push("--no-vault-token-cache");
    let executor = fleet.enroll(fleet.bao.url(), None, access_point.address, "one", &all);
    let mut executor = executor;
    let executor = Process::start(&mut executor);
    executor.wait_for(" enrolled executor.id=");
    let accessor = fleet
        .bao
        .requests(&format!("auth/{}/login", fleet.realm.approle));
    let accessor = accessor.last().unwrap()["auth"]["accessor"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!(
        "auth/{}/role/executor/secret-id/destroy",
        fleet.realm.approle
    );
    fleet.bao.write(&path, json!({"secret_id": good.secret_id}));
    let next = fleet.realm.credentials(&fleet.bao, "executor");
    write("secret-id", &next.secret_id);
    fleet
        .bao
        .write("auth/token/revoke-accessor", json!({"accessor": accessor}));
    executor.signal(Signal::SIGHUP);
    executor.wait_for("certificate rotated; enrollment moved to a new connection");
    for secret in [&good.secret_id, &next.secret_id] {
        assert_eq!(executor.count(secret), 0);
    }
}

// VA-4
#[test]
fn va_4_a_wrapped_secret_id_is_unwrapped_once() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let role_id = fleet.realm.credentials(&fleet.bao, "executor").role_id;
    let mount = &fleet.realm.approle;
    let wrap = format!(
        "vault write -wrap-ttl=60s -field=wrapping_token -f auth/{mount}/role/executor/secret-id"
    );
    let wrapped = fleet.bao.sh(&fleet.host.path(""), &wrap);
    let wrapped = wrapped.trim();
    std::fs::write(fleet.host.path("wrapped"), wrapped).unwrap();
    let args = [
        "--vault-secret-id-file",
        "wrapped",
        "--vault-secret-id-wrapped",
    ];
    let before = fleet.realm.logins(&fleet.bao).1;
    let run = |more: &[&str]| {
        let mut all = args.to_vec();
        all.extend(more);
        let mut command = command(&fleet, &access_point, "wrapped", &all);
        Finished::from(command.env("VAULT_ROLE_ID", &role_id).output().unwrap())
    };
    enrolled(&run(&[]), "wrapped");
    // The token is kept: nothing is unwrapped again.
    enrolled(&run(&[]), "wrapped");
    assert_eq!(fleet.realm.logins(&fleet.bao), (before + 1, before + 1));
    // Without it, it is told that the wrapping was opened before, which may be theft.
    let done = run(&["--no-vault-token-cache"]);
    not_authenticated(&done, "secret id", &[wrapped]);
    let told = Told::first(done.stderr.lines());
    assert!(
        told.causes.iter().any(|cause| cause.contains("wrap")),
        "{told:?}"
    );
}

// VA-5
#[test]
fn va_5_kubernetes_asks_the_cluster_whose_token_it_is() {
    if !need("openssl") {
        return;
    }
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let token = |name: &str| {
        let token = jwt(
            &fleet.host,
            "cluster",
            &service_account("agent-harbor", name),
        );
        std::fs::write(fleet.host.path(format!("{name}.jwt")), &token).unwrap();
        token
    };
    let (right, other) = (token("ah-executor"), token("somebody-else"));
    let accounts =
        format!("{right} agent-harbor ah-executor\n{other} agent-harbor somebody-else\n");
    std::fs::write(fleet.host.path("accounts"), accounts).unwrap();
    let (_cluster, port) = token_review(&fleet.host, &[], 0, None);

    let mount = format!("k8s{}", fleet.realm.suffix);
    fleet
        .bao
        .write(&format!("sys/auth/{mount}"), json!({"type": "kubernetes"}));
    let config = json!({"kubernetes_host": format!("http://127.0.0.1:{port}"), "token_reviewer_jwt": right, "disable_local_ca_jwt": true, "kubernetes_ca_cert": TestCa::new("example.org").pem()});
    fleet.bao.write(&format!("auth/{mount}/config"), config);
    let role = json!({
        "bound_service_account_names": "ah-executor",
        "bound_service_account_namespaces": "agent-harbor",
        "policies": fleet.realm.policy_name("executor"),
        "ttl": "1h",
    });
    fleet
        .bao
        .write(&format!("auth/{mount}/role/executor"), role);
    let login = |file: &str| {
        let args = [
            "--vault-auth",
            "kubernetes",
            "--vault-auth-mount",
            &mount,
            "--vault-k8s-role",
            "executor",
            "--vault-k8s-token-file",
            file,
            "--no-vault-token-cache",
        ];
        once(&fleet, &access_point, "pod", &args)
    };
    enrolled(&login("ah-executor.jwt"), "pod");
    // Another account of the cluster, and a token that the cluster does not know.
    not_authenticated(&login("somebody-else.jwt"), "service account", &[&other]);
    std::fs::write(fleet.host.path("accounts"), "").unwrap();
    not_authenticated(&login("ah-executor.jwt"), "service account", &[&right]);
}

// VA-6
#[test]
fn va_6_a_jwt_is_judged_by_the_keys_that_vault_knows() {
    if !need("openssl") {
        return;
    }
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let claims = |subject: &str| json!({"iss": "https://issuer.example.org", "sub": subject, "aud": "vault", "iat": 1, "exp": 4_000_000_000_u64});
    let make = |name: &str, key: &str, subject: &str| {
        let token = jwt(&fleet.host, key, &claims(subject));
        std::fs::write(fleet.host.path(name), &token).unwrap();
        token
    };
    // The subject of a JWT-SVID is a SPIFFE ID.
    make("good.jwt", "issuer", &id("jwt"));
    let forged = make("forged.jwt", "stranger", &id("jwt"));
    make("other.jwt", "issuer", "spiffe://example.org/ah/other");
    let public = std::fs::read_to_string(fleet.host.path("issuer-public.pem")).unwrap();

    let mount = format!("jwt{}", fleet.realm.suffix);
    fleet
        .bao
        .write(&format!("sys/auth/{mount}"), json!({"type": "jwt"}));
    fleet.bao.write(
        &format!("auth/{mount}/config"),
        json!({"jwt_validation_pubkeys": [public], "default_role": "executor"}),
    );
    let role = json!({
        "role_type": "jwt",
        "bound_audiences": ["vault"],
        "user_claim": "sub",
        "bound_subject": id("jwt"),
        "token_policies": fleet.realm.policy_name("executor"),
    });
    fleet
        .bao
        .write(&format!("auth/{mount}/role/executor"), role);
    let login = |file: &str, more: &[&str]| {
        let mut args = vec![
            "--vault-auth",
            "jwt",
            "--vault-auth-mount",
            &mount,
            "--vault-jwt-file",
            file,
            "--no-vault-token-cache",
        ];
        args.extend(more);
        once(&fleet, &access_point, "jwt", &args)
    };
    enrolled(&login("good.jwt", &["--vault-jwt-role", "executor"]), "jwt");
    enrolled(&login("good.jwt", &[]), "jwt");
    not_authenticated(&login("forged.jwt", &[]), "JWT", &[&forged]);
    not_authenticated(&login("other.jwt", &[]), "JWT", &[]);
}

// VA-7, ER-13, ER-19
#[test]
fn va_7_a_token_from_the_environment_or_a_file() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let create = |ttl: &str| {
        let asked = json!({"policies": [fleet.realm.policy_name("executor")], "ttl": ttl, "renewable": false});
        let made = fleet.bao.write("auth/token/create", asked);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    };
    let token = create("1h");
    let mut by_environment = command(&fleet, &access_point, "token", &[]);
    enrolled(
        &Finished::from(by_environment.env("VAULT_TOKEN", &token).output().unwrap()),
        "token",
    );
    std::fs::write(fleet.host.path("token"), format!("{token}\n")).unwrap();
    let by_file = ["--vault-token-file", "token"];
    enrolled(&once(&fleet, &access_point, "token", &by_file), "token");

    // ER-13: a token that never was.
    std::fs::write(fleet.host.path("token"), "s.never-was-and-secret").unwrap();
    let done = once(&fleet, &access_point, "token", &by_file);
    not_authenticated(&done, "vault token create", &["s.never-was-and-secret"]);

    // ER-19: a token that is revoked while it is in use; another in the file mends it.
    std::fs::write(fleet.host.path("token"), &token).unwrap();
    let mut executor = fleet.enroll(
        fleet.bao.url(),
        None,
        access_point.address,
        "token",
        &by_file,
    );
    let executor = Process::start(&mut executor);
    executor.wait_for(" enrolled executor.id=");
    let before = fleet.status("token");
    fleet
        .bao
        .write("auth/token/revoke", json!({"token": token}));
    executor.signal(Signal::SIGHUP);
    let status = fleet.troubled("token", "vault token expired");
    assert!(
        status.to_string().contains("vault token create"),
        "{status}"
    );
    std::fs::write(fleet.host.path("token"), create("1h")).unwrap();
    fleet.recovered("token", &before);
}

// VA-3, VA-8, ER-18: TLS, with the client certificate that logs in; and a server certificate that ends.
#[test]
fn va_8_cert_auth_over_tls_and_what_tls_may_not_do() {
    if !need("openssl") {
        return;
    }
    let host = crate::kit::host();
    let ca = TestCa::new("example.org");
    let files = ca
        .leaf()
        .dns("localhost")
        .ip("127.0.0.1")
        .issue()
        .write(&host.path(""), "vault");
    let root = ca.write(&host.path(""), "vault-ca");
    let tls = [files.cert.clone(), files.key, root.clone()];
    let Some(mut bao) = OpenBao::raft(&Listen {
        tls: Some(tls),
        ..Listen::default()
    }) else {
        return;
    };
    bao.initialise();
    bao.unseal();
    let fleet = Fleet::on(bao.into());
    let trust = root.display().to_string();
    let access_point = fleet.access_point(&["--vault-ca", &trust]);

    let clients = TestCa::new("example.org");
    let client = clients
        .leaf()
        .dns("machine-1.example.com")
        .subject("machine-1")
        .issue();
    let client = client.write(&fleet.host.path(""), "client");
    fleet.bao.write("sys/auth/cert", json!({"type": "cert"}));
    let role = json!({
        "certificate": clients.pem(),
        "allowed_common_names": "machine-1",
        "token_policies": fleet.realm.policy_name("executor"),
    });
    fleet.bao.write("auth/cert/certs/executor", role);
    let run = |more: &[&str], client: Option<(&str, &str)>| {
        let mut command = command(&fleet, &access_point, "cert", more);
        if let Some((cert, key)) = client {
            command
                .env("VAULT_CLIENT_CERT", cert)
                .env("VAULT_CLIENT_KEY", key);
        }
        Finished::from(command.output().unwrap())
    };
    let (cert, key) = (
        client.cert.display().to_string(),
        client.key.display().to_string(),
    );
    let args = [
        "--vault-auth",
        "cert",
        "--vault-ca",
        &trust,
        "--no-vault-token-cache",
    ];
    enrolled(&run(&args, Some((&cert, &key))), "cert");

    // Another's certificate is taken by TLS and not by the role.
    let stranger = TestCa::new("example.org")
        .leaf()
        .subject("machine-1")
        .dns("x.example.com")
        .issue();
    let stranger = stranger.write(&fleet.host.path(""), "stranger");
    let stranger = (
        stranger.cert.display().to_string(),
        stranger.key.display().to_string(),
    );
    not_authenticated(
        &run(&args, Some((&stranger.0, &stranger.1))),
        "client-cert",
        &[],
    );

    // Without the root that signed Vault's certificate there is no Vault, and VAULT_SKIP_VERIFY does not help.
    let blind = ["--vault-auth", "cert", "--no-vault-token-cache"];
    let told = failed(&run(&blind, Some((&cert, &key))), 1);
    told.says(
        "failed to connect to vault: certificate signed by unknown authority",
        &[fleet.bao.url()],
        "--vault-ca",
    );
    let mut skipping = command(&fleet, &access_point, "cert", &blind);
    let done = Finished::from(skipping.env("VAULT_SKIP_VERIFY", "true").output().unwrap());
    let told = failed(&done, 2);
    assert!(
        done.stderr.contains("VAULT_SKIP_VERIFY") && told.hint.contains("--vault-ca"),
        "{}",
        done.stderr
    );

    // VA-13: Vault's own certificate ends while an executor runs; renewed, all is well by itself.
    let mut executor = fleet.enroll(
        fleet.bao.url(),
        None,
        access_point.address,
        "cert",
        &args[..4],
    );
    executor
        .env("VAULT_CLIENT_CERT", &cert)
        .env("VAULT_CLIENT_KEY", &key);
    let executor = Process::start(&mut executor);
    executor.wait_for(" enrolled executor.id=");
    let before = fleet.status("cert");
    let hour = std::time::Duration::from_secs(3600);
    let from = std::time::SystemTime::now() - 2 * hour;
    let swap = |ended: bool| {
        let leaf = ca
            .leaf()
            .dns("localhost")
            .ip("127.0.0.1")
            .subject(if ended { "ended" } else { "renewed" });
        let leaf = if ended {
            leaf.valid_from(from).valid_for(hour)
        } else {
            leaf
        };
        leaf.issue().write(&fleet.host.path(""), "next");
        sh(
            &fleet.host,
            &format!(
                "mv next-key.pem {0}/vault-key.pem; mv next.pem {0}/vault.pem",
                host.path("").display()
            ),
        );
        fleet.bao.signal(Signal::SIGHUP);
        let subject = if ended { "ended" } else { "renewed" };
        let served = format!(
            "openssl s_client -connect {} < /dev/null 2> /dev/null",
            fleet.bao.url().trim_start_matches("https://")
        );
        let subject = format!("subject=CN = {subject}");
        eventually("the certificate is served", || {
            let shown = try_sh(&fleet.host, &served).stdout;
            shown.contains(&subject).then_some(())
        });
    };
    swap(true);
    executor.signal(Signal::SIGHUP);
    fleet.troubled(
        "cert",
        "failed to connect to vault: certificate has expired or is not yet valid",
    );
    swap(false);
    fleet.recovered("cert", &before);
}
