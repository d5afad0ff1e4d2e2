//! The example script that asks Vault through curl, for the exec identity (EX-1, EX-2).

use std::fs;
use std::process::Command;

use ah_testkit::process::{AccessPoint, Finished, Process, access_point_args};
use nix::sys::signal::Signal;

use crate::fleet::{Fleet, id};
use crate::kit::{failed, shown};

const SERVER_ID: &str = "spiffe://example.org/ah/serve";
const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/exec/vault-curl.sh"
);

/// Where the script finds Vault and its ids.
struct Given {
    url: String,
    mount: String,
    role_id: String,
    secret_id: String,
}

impl Given {
    /// Credentials for `role`, in files.
    fn of(fleet: &Fleet, role: &str) -> Self {
        let credentials = fleet.realm.credentials(&fleet.bao, role);
        let file = |name: &str, text: &str| {
            let path = fleet.host.path(format!("{role}-{name}"));
            // As an editor leaves it.
            fs::write(&path, format!("{text}\n")).unwrap();
            path.display().to_string()
        };
        Self {
            url: fleet.bao.url().to_owned(),
            mount: fleet.realm.approle.clone(),
            role_id: file("role-id", &credentials.role_id),
            secret_id: file("secret-id", &credentials.secret_id),
        }
    }

    fn to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("VAULT_ADDR", &self.url)
            .env("VAULT_AUTH_MOUNT", &self.mount)
            .env("VAULT_ROLE_ID_FILE", &self.role_id)
            .env("VAULT_SECRET_ID_FILE", &self.secret_id)
    }
}

/// `--exec-command` for a certificate of `role` with these names.
fn command(fleet: &Fleet, role: &str, common_name: &str, uri: &str) -> String {
    let path = fleet.realm.issue(role);
    format!("{SCRIPT} {path} {common_name} {uri}")
}

fn access_point(fleet: &Fleet) -> AccessPoint {
    let command = command(fleet, "access-point", "access-point.example.com", SERVER_ID);
    let args = ["--server-identity", "exec", "--exec-command", &command];
    let rule = [
        "--executor-san-uri-prefix",
        "spiffe://example.org/ah/agent/",
    ];
    let args = [&args[..], &rule].concat();
    let given = Given::of(fleet, "access-point");
    let mut command = fleet.host.command(access_point_args(&args));
    AccessPoint::start(given.to(&mut command), &args)
}

fn enroll(fleet: &Fleet, server: &str, given: &Given, command: &str, more: &[&str]) -> Command {
    let mut args = vec!["agent", "enroll", "--remote-server", server];
    args.extend(["--identity", "exec", "--exec-command", command]);
    args.extend(["--expected-server-id", SERVER_ID, "--name", "one"]);
    args.extend(more);
    let mut command = fleet.host.command(args);
    given.to(&mut command);
    command
}

// EX-1, EX-2, AP-10, EN-7, EN-14: both sides' identities, and the next at a HUP.
#[test]
fn ex_1_both_sides_enroll_by_curl_and_rotate() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = access_point(&fleet);
    let server = format!("https://{}", access_point.address);
    let given = Given::of(&fleet, "executor");
    let command = command(&fleet, "executor", "one.example.com", &id("one"));
    let executor = Process::start(&mut enroll(&fleet, &server, &given, &command, &[]));
    executor.wait_for(&format!(" enrolled executor.id={} ", id("one")));
    assert_eq!(shown(&fleet.host, "one")["provider"], "exec");
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor"), (1, 1));

    executor.signal(Signal::SIGHUP);
    executor.wait_for("certificate rotated; enrollment moved");
    access_point.process.signal(Signal::SIGHUP);
    access_point.process.wait_for("certificate rotated");
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor"), (2, 2));
    assert_eq!(executor.count("retrying in"), 0);
}

// EX-4, ER-13, ER-16: what Vault says reaches whoever reads, the secrets do not; nothing is issued.
#[test]
fn ex_4_what_vault_refuses_is_told_in_its_words() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let good = || Given::of(&fleet, "executor");
    let issue = |name: &str| command(&fleet, "executor", name, &id("one"));
    let wrong_secret = {
        let given = good();
        fs::write(&given.secret_id, "12345678-wrong-secret\n").unwrap();
        given
    };
    let refused = |given: &Given, command: &str| {
        let server = "https://127.0.0.1:1";
        let mut run = enroll(&fleet, server, given, command, &["--once"]);
        let done = Finished::from(run.output().unwrap());
        assert!(!done.stderr.contains("wrong-secret"), "{}", done.stderr);
        let told = failed(&done, 1);
        let ended = format!("the identity command {SCRIPT} exited with code 1");
        assert_eq!(told.text, ended, "{told:#?}");
        told.causes.join("\n")
    };
    let told = refused(&wrong_secret, &issue("one.example.com"));
    assert!(told.contains("invalid role or secret ID"), "{told}");

    let told = refused(&good(), &issue("one.elsewhere.example.org"));
    assert!(told.contains("one.elsewhere.example.org"), "{told}");
    assert!(told.contains("not allowed by this role"), "{told}");

    let path = fleet.realm.issue("access-point");
    let told = refused(
        &good(),
        &format!("{SCRIPT} {path} access-point.example.com"),
    );
    assert!(told.contains("permission denied"), "{told}");

    let away = Given {
        url: "http://127.0.0.1:1".to_owned(),
        ..good()
    };
    let told = refused(&away, &issue("one.example.com"));
    assert!(told.contains("curl: (7)"), "{told}");
    let (asked, _) = fleet.realm.issued(&fleet.bao, "executor");
    assert_eq!(asked, 1, "the wrong name alone came as far as the role");
}
