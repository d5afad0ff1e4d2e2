//! Identities from a command: the scripts of `examples/exec`, each with a real access point, and what happens
//! while a command fails (EX-1 to EX-4, AP-10, EN-7, EN-13).

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::process::{AccessPoint, Host, Process, access_point_args, eventually};
use serde_json::Value;

use crate::kit::{
    EXECUTOR_ID, Files, Told, executor_leaf, failed, host, json, pair, retrying, server_leaf, sh,
};

/// The command line of a script of `examples/exec`.
fn example(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/exec");
    format!("{path}/{name}")
}

/// A command that prints what `script` prints, in `host`'s directory.
fn script(host: &Host, name: &str, script: &str) -> String {
    let path = host.path(name);
    fs::write(&path, script).unwrap();
    format!("sh {}", path.display())
}

fn access_point(host: &Host, command: &str, more: &[&str]) -> AccessPoint {
    let mut args = vec!["--server-identity", "exec", "--exec-command", command];
    args.extend(more);
    host.access_point(&args)
}

fn executor(host: &Host, address: SocketAddr, command: &str, more: &[&str]) -> Process {
    let mut args = vec!["--identity", "exec", "--exec-command", command];
    args.extend(more);
    host.executor(address, &args)
}

/// One executor as `ah agent fleet list` shows it.
fn listed(host: &Host, id: &str) -> Value {
    let all = json(host, &["agent", "fleet", "list", "--json"]);
    let executors = all.get("executors").and_then(Value::as_array).cloned();
    let mut executors = executors.unwrap_or_default().into_iter();
    let found = executors.find(|executor| executor["id"] == id);
    found.unwrap_or(Value::Null)
}

/// A CA that openssl made, in the directory `ca`.
fn openssl_ca(host: &Host) {
    sh(
        host,
        "mkdir ca && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj '/CN=Example CA' \
         -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca/ca-key.pem -out ca/ca.pem",
    );
}

// AP-10, EN-7, EX-1, EN-14: both sides from the sh script and from the Python script; a refresh is a rotation.
#[test]
fn ap_10_en_7_a_plain_openssl_ca_serves_both_sides_and_rotates_them() {
    if !need("openssl") || !need("python3") {
        return;
    }
    let host = host();
    openssl_ca(&host);
    let ca = host.path("ca").display().to_string();
    for (number, name) in ["openssl-ca.sh", "openssl-ca.py"].into_iter().enumerate() {
        let command = format!("{} '{ca}' example.org", example(name));
        let rules = [
            "--executor-san-uri-prefix",
            "spiffe://example.org/ah/agent/",
        ];
        let access_point = access_point(&host, &command, &rules);
        let who = format!("worker-{number}");
        let refresh = ["--name", &who, "--exec-refresh-interval", "1s"];
        let executor = executor(&host, access_point.address, &command, &refresh);
        let id = format!("spiffe://example.org/ah/agent/{who}");
        let enrolled = executor.wait_for(" enrolled executor.id=");
        assert!(enrolled.contains(&id), "{enrolled}");
        executor.wait_for("certificate rotated; enrollment moved to a new connection");
        let shown = listed(&host, &id);
        assert_eq!(shown["provider"], "exec", "{shown}");
        let status = json(&host, &["agent", "status", "--name", &who, "--json"]);
        assert_eq!(status["provider"], "exec");
        assert!(status["next_renewal"].is_string(), "{status}");
        // A name that is no path segment is not signed, and the script's words reach whoever reads.
        let told = retrying(&self::executor(
            &host,
            access_point.address,
            &command,
            &["--name", "../serve"],
        ));
        let says = told.causes.join("\n");
        assert!(
            says.contains("cannot be a part of a SPIFFE ID"),
            "{told:#?}"
        );
    }
}

// EX-2: the files of the step CLI: the leaf with its intermediate, an EC key in SEC1 form, the root.
#[test]
fn ex_2_files_as_the_step_cli_keeps_them() {
    if !need("openssl") {
        return;
    }
    let host = host();
    let root = TestCa::new("example.org");
    let intermediate = root.intermediate().issue();
    let files = Files::write(&host, "server", &server_leaf(&root), &root);
    let access_point = files.access_point(&host, &[]);
    let step = |leaf: &ah_testkit::ca::TestLeaf| {
        leaf.write(&host.path(""), "step");
        root.write(&host.path(""), "root_ca");
        sh(
            &host,
            "openssl ec -in step-key.pem -out step.key && mv step.pem step.crt",
        );
    };
    let leaf = || intermediate.leaf().spiffe(EXECUTOR_ID).issue();
    step(&leaf());
    let [crt, key, ca] = ["step.crt", "step.key", "root_ca.pem"].map(|name| host.path(name));
    let command = format!(
        "{} '{}' '{}' '{}'",
        example("step-files.sh"),
        crt.display(),
        key.display(),
        ca.display()
    );
    let more = ["--exec-refresh-interval", "1s"];
    let executor = executor(&host, access_point.address, &command, &more);
    let enrolled = executor.wait_for(" enrolled executor.id=");
    assert!(enrolled.contains(EXECUTOR_ID), "{enrolled}");
    let key = fs::read_to_string(host.path("step.key")).unwrap();
    assert!(key.contains("BEGIN EC PRIVATE KEY"), "as step writes it");
    step(&leaf());
    executor.wait_for("certificate rotated; enrollment moved");
    // A half-replaced pair is not used, and the session goes on.
    let other = leaf().write(&host.path(""), "other");
    fs::copy(other.cert, host.path("step.crt")).unwrap();
    executor.wait_for("private key does not match certificate");
    assert!(listed(&host, EXECUTOR_ID)["live"].is_object());
}

// EX-2: what spiffe-helper keeps in its directory.
#[test]
fn ex_2_files_as_spiffe_helper_keeps_them() {
    if !need("python3") {
        return;
    }
    let host = host();
    let ca = TestCa::new("example.org");
    let files = Files::write(&host, "server", &server_leaf(&ca), &ca);
    let access_point = files.access_point(&host, &[]);
    let directory = host.path("svids");
    fs::create_dir(&directory).unwrap();
    let keep = || {
        executor_leaf(&ca).write(&directory, "new");
        fs::rename(directory.join("new.pem"), directory.join("svid.pem")).unwrap();
        fs::rename(
            directory.join("new-key.pem"),
            directory.join("svid_key.pem"),
        )
        .unwrap();
        ca.write(&directory, "svid_bundle");
    };
    let command = format!("{} '{}'", example("spiffe-helper.py"), directory.display());
    let more = ["--exec-refresh-interval", "1s"];
    // The helper has not written yet: the script says what to look at, and is asked again.
    let executor = executor(&host, access_point.address, &command, &more);
    let told = retrying(&executor);
    assert!(told.text.contains("exited with code 1"), "{told:#?}");
    assert!(
        told.causes
            .join("\n")
            .contains("see whether spiffe-helper runs")
    );
    keep();
    let enrolled = executor.wait_for(" enrolled executor.id=");
    assert!(enrolled.contains(EXECUTOR_ID), "{enrolled}");
    keep();
    executor.wait_for("certificate rotated; enrollment moved");
}

/// A command that fails until the file `go` is there.
fn fails_until_go(host: &Host, files: &Files) -> String {
    let text = format!(
        "if [ ! -e {} ]; then echo 'the CA is away' >&2; exit 4; fi\ncat {} {} {}\n",
        host.path("go").display(),
        files.cert.display(),
        files.key.display(),
        files.ca.display()
    );
    script(host, "identity.sh", &text)
}

// EN-13: what may pass is told in full with the time until the next attempt, and waited for; status says so (ST-1).
#[test]
fn en_13_an_executor_waits_for_its_first_identity() {
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let command = fails_until_go(&host, &pair.executor);
    let mut executor = executor(&host, access_point.address, &command, &["--name", "w"]);
    retrying(&executor).says(
        "the identity command sh exited with code 4",
        &["stderr: the CA is away"],
        "run sh by hand",
    );
    let status = json(&host, &["agent", "status", "--name", "w", "--json"]);
    assert_eq!(status["enrolled"], false);
    let why = status["why_not"].as_str().unwrap();
    assert!(
        why.starts_with("no identity yet: the identity command sh"),
        "{why}"
    );
    assert!(
        status["identity_error"]["error"]["causes"][0].is_string(),
        "{status}"
    );
    assert!(status["next_attempt"].is_string(), "{status}");
    assert_eq!(host.run(["agent", "status", "--name", "w"]).code, 1, "ST-3");
    assert!(executor.is_running());
    fs::write(host.path("go"), "").unwrap();
    executor.wait_for(" enrolled executor.id=");
    let status = json(&host, &["agent", "status", "--name", "w", "--json"]);
    assert!(status["identity_error"].is_null(), "{status}");
}

// EN-10: with --once the first failure is the last; a fault that only an operator mends always is (EN-13).
#[test]
fn en_10_once_ends_at_the_first_failure_of_the_provider() {
    let host = host();
    let pair = pair(&host);
    let command = fails_until_go(&host, &pair.executor);
    let run = |command: &str, once: &[&str]| {
        let mut args = vec!["agent", "enroll", "--remote-server", "https://127.0.0.1:1"];
        args.extend(["--identity", "exec", "--exec-command", command]);
        args.extend(once);
        host.run(args)
    };
    for once in ["--once", "--once=enrolled"] {
        let done = run(&command, &[once]);
        let told = failed(&done, 1);
        assert_eq!(told.text, "the identity command sh exited with code 4");
        assert!(!done.stderr.contains("retrying in "), "{}", done.stderr);
    }
    let done = run("/no/such/program --secret", &[]);
    failed(&done, 1).says(
        "no such file: /no/such/program",
        &["--exec-command"],
        "whole path",
    );
    assert!(!done.stderr.contains("--secret"), "{}", done.stderr);
}

// AP-10, AP-19: an access point without identity waits in the same way; it listens to nobody and is not ready.
#[test]
fn ap_10_an_access_point_waits_for_its_first_identity_and_is_not_ready() {
    let host = host();
    let pair = pair(&host);
    let command = fails_until_go(&host, &pair.server);
    let manager = host.path("notify");
    let notified = UnixDatagram::bind(&manager).unwrap();
    notified.set_nonblocking(true).unwrap();
    let received = || {
        let mut message = [0; 4096];
        let length = notified.recv(&mut message).ok()?;
        message
            .get(..length)
            .map(|text| String::from_utf8_lossy(text).into_owned())
    };
    let args = ["--server-identity", "exec", "--exec-command", &command];
    let args = access_point_args(&args);
    let mut process = Process::start(host.command(args).env("NOTIFY_SOCKET", &manager));
    let told = retrying(&process);
    assert_eq!(told.text, "the identity command sh exited with code 4");
    let first = eventually("systemd is told", received);
    assert!(
        first.contains("STATUS=waiting for an identity: the identity command"),
        "{first}"
    );
    assert_eq!(process.count("listening for executors"), 0);
    assert!(process.is_running());
    fs::write(host.path("go"), "").unwrap();
    process.wait_for("listening for executors");
    eventually("it is ready", || {
        received().filter(|text| text.contains("READY=1"))
    });
    assert!(!first.contains("READY=1"), "{first}");
}

// EN-14, EX-4: a command that fails later leaves the last good identity in use, and the failure shows.
#[test]
fn en_14_a_command_that_fails_later_keeps_the_last_good_identity() {
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let command = fails_until_go(&host, &pair.executor);
    fs::write(host.path("go"), "").unwrap();
    let more = ["--name", "w", "--exec-refresh-interval", "1s"];
    let executor = executor(&host, access_point.address, &command, &more);
    executor.wait_for(" enrolled executor.id=");
    fs::remove_file(host.path("go")).unwrap();
    executor.wait_for("certificate renewal failed, the last good certificate stays in use");
    let status = json(&host, &["agent", "status", "--name", "w", "--json"]);
    assert_eq!(status["enrolled"], true);
    let text = status["identity_error"]["error"]["text"].as_str().unwrap();
    assert_eq!(text, "the identity command sh exited with code 4");
    assert_eq!(
        status["identity_error"]["error"]["causes"][0],
        "stderr: the CA is away"
    );
    fs::write(host.path("go"), "").unwrap();
    executor.wait_for("certificate renewal works again");
}

// EN-3, AP-3: --ca adds roots to those that the command printed.
#[test]
fn en_3_roots_besides_those_of_the_command() {
    let host = host();
    let (ours, theirs) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let server = Files::write(&host, "server", &server_leaf(&theirs), &theirs);
    ours.write(&host.path(""), "ours");
    theirs.write(&host.path(""), "theirs");
    let server_trusts = Files {
        ca: host.path("ours.pem"),
        ..server
    };
    let access_point = server_trusts.access_point(&host, &[]);
    executor_leaf(&ours).write(&host.path(""), "executor");
    let own = script(
        &host,
        "own.sh",
        &format!(
            "cd {} && cat executor.pem executor-key.pem ours.pem",
            host.path("").display()
        ),
    );
    let refused = executor(&host, access_point.address, &own, &["--once"]).wait();
    assert_eq!(
        refused.code(),
        Some(1),
        "the access point's root is unknown"
    );
    let extra = host.path("theirs.pem").display().to_string();
    let more = ["--ca", &extra, "--once=enrolled"];
    let executor = &mut executor(&host, access_point.address, &own, &more);
    assert_eq!(
        executor.wait().code(),
        Some(0),
        "{}",
        executor.lines().join("\n")
    );
}

// AP-18: --validate runs the command once and says what is wrong with what it printed.
#[test]
fn ap_18_validate_runs_the_command() {
    let host = host();
    let pair = pair(&host);
    let command = fails_until_go(&host, &pair.server);
    let args = [
        "agent",
        "access-point",
        "--server-identity",
        "exec",
        "--validate",
    ];
    let validate = || host.run(args.into_iter().chain(["--exec-command", &command]));
    failed(&validate(), 1).says(
        "the identity command sh exited with code 4",
        &["the CA is away"],
        "by hand",
    );
    fs::write(host.path("go"), "").unwrap();
    let valid = validate();
    assert_eq!(valid.code, 0, "{}", valid.stderr);
}

// EX-1, EN-7: what can be said wrongly.
#[test]
fn ex_1_usage() {
    let host = host();
    let enroll = |more: &[&str]| {
        let mut args = vec!["agent", "enroll", "--remote-server", "https://127.0.0.1:1"];
        args.extend(more);
        Told::first(host.run(args).stderr.lines())
    };
    enroll(&["--identity", "exec"]).says(
        "--identity exec needs --exec-command",
        &[],
        "--exec-command /etc/ah/identity.sh",
    );
    let told = enroll(&["--identity", "exec", "--exec-command", "id 'x"]);
    assert!(
        told.causes.join("").contains("a quote is not closed"),
        "{told:#?}"
    );
    enroll(&["--exec-command", "id"]).says(
        "--exec-command has no meaning with --identity dev",
        &["only the exec identity takes it"],
        "add --identity exec",
    );
    let both = ["--identity", "exec", "--exec-command", "id", "--cert", "c"];
    enroll(&both).says(
        "--cert has no meaning with --identity exec",
        &["only the files identity takes it"],
        "leave it out, or use --identity files",
    );
    let often = [
        "--identity",
        "exec",
        "--exec-command",
        "id",
        "--exec-refresh-interval",
        "10ms",
    ];
    assert!(enroll(&often).text.contains("is shorter than 1s"));
}
