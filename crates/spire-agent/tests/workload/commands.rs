//! The commands, as processes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{Finished, Process};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::rig::{Rig, WORKLOAD, bundle_of, domain, entry, identity, svid};

fn command(rig: &Rig, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spire-agent"));
    command
        .args(args)
        .env_remove("SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE")
        .env("SPIRE_AGENT_PUBLIC_SOCKET", rig.socket());
    command
}

fn run(rig: &Rig, args: &[&str]) -> Finished {
    Finished::from(command(rig, args).output().unwrap())
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn federate(rig: &Rig) -> TestCa {
    let other = TestCa::new("other.org");
    let bundle = Arc::new(bundle_of("other.org", &[&other], &[]));
    rig.identities.change(|update| {
        update.federated.insert(domain("other.org"), bundle);
    });
    other
}

#[test]
fn api_fetch_prints_what_upstream_prints() {
    let rig = Rig::new();
    federate(&rig);
    for args in [&["api", "fetch"][..], &["api", "fetch", "x509"]] {
        let fetched = run(&rig, args);
        assert_eq!((fetched.code, fetched.stderr.as_str()), (0, ""));
        let lines: Vec<_> = fetched.stdout.lines().collect();
        assert!(lines[0].starts_with("Received 1 svid after "), "{lines:?}");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], format!("SPIFFE ID:\t\t{WORKLOAD}"));
        for (line, start) in lines[3..].iter().zip([
            "SVID Valid After:\t",
            "SVID Valid Until:\t",
            "CA #1 Valid After:\t",
            "CA #1 Valid Until:\t",
            "[spiffe://other.org] CA #1 Valid After:\t",
            "[spiffe://other.org] CA #1 Valid Until:\t",
        ]) {
            let date = line.strip_prefix(start).unwrap();
            assert!(date.ends_with(" +0000 UTC") && date.len() == 29, "{date}");
        }
        assert_eq!(lines.len(), 10, "{lines:?}");
    }
    // The socket of the flag counts before that of the environment.
    let other = run(
        &rig,
        &["api", "fetch", "-socketPath", "/nonexistent/api.sock"],
    );
    assert_eq!(other.code, 1);
}

#[test]
fn api_fetch_writes_files_with_upstreams_modes() {
    let rig = Rig::new();
    let other = federate(&rig);
    let leaf = rig.identities.rotate();
    let folder = rig.path("out");
    std::fs::create_dir(&folder).unwrap();
    let to = folder.to_str().unwrap();
    let fetched = run(&rig, &["api", "fetch", "-silent", "-write", to]);
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let said = format!(
        "Writing SVID #0 to file {to}/svid.0.pem.\nWriting key #0 to file {to}/svid.0.key.\n\
         Writing bundle #0 to file {to}/bundle.0.pem.\n\
         Writing federated bundle #0 for trust domain spiffe://other.org to file {to}/federated_bundle.0.0.pem.\n"
    );
    assert_eq!(fetched.stdout, said);
    let written = |name: &str, content: &str, expected: u32| {
        let path = folder.join(name);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "{name}");
        assert_eq!(mode(&path), expected, "{name}");
    };
    written("svid.0.pem", &leaf.chain_pem(), 0o644);
    written("svid.0.key", &leaf.key_pem(), 0o600);
    written("bundle.0.pem", &rig.identities.ca.pem(), 0o644);
    written("federated_bundle.0.0.pem", &other.pem(), 0o644);
    assert_eq!(folder.read_dir().unwrap().count(), 4);
    let mut here = command(&rig, &["api", "fetch", "-silent", "-write", "."]);
    let fetched = Finished::from(here.current_dir(&folder).output().unwrap());
    assert!(
        fetched
            .stdout
            .starts_with("Writing SVID #0 to file svid.0.pem.\n")
    );
}

// SR-1
#[test]
fn sr_1_what_is_no_directory_is_the_beginning_of_the_names() {
    let rig = Rig::new();
    let leaf = rig.identities.rotate();
    let prefix = rig.path("svid");
    let fetched = run(
        &rig,
        &["api", "fetch", "x509", "-write", prefix.to_str().unwrap()],
    );
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let read = |name: &str| std::fs::read_to_string(rig.path(name)).unwrap();
    assert_eq!(read("svid.0.pem"), leaf.chain_pem());
    assert_eq!(read("svid.0.key"), leaf.key_pem());
    assert_eq!(read("svid.bundle.0.pem"), rig.identities.ca.pem());

    let nowhere = rig.path("no/where");
    let fetched = run(
        &rig,
        &["api", "fetch", "x509", "-write", nowhere.to_str().unwrap()],
    );
    assert_eq!(fetched.code, 1);
    assert!(
        fetched.stderr.contains("no such directory"),
        "{}",
        fetched.stderr
    );
}

#[test]
fn json_has_every_field_under_its_protobuf_name() {
    let rig = Rig::new();
    federate(&rig);
    let hinted = entry("spiffe://example.org/b", "internal");
    let leaf = svid(&rig.identities.ca, "spiffe://example.org/b");
    rig.identities
        .change(|update| update.identities.push(identity(&leaf, &hinted)));
    let fetched = run(&rig, &["api", "fetch", "-output", "json"]);
    let json: Value = serde_json::from_str(&fetched.stdout).unwrap();
    let names = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&json), ["crl", "federated_bundles", "svids"]);
    assert_eq!(names(&json["federated_bundles"]), ["spiffe://other.org"]);
    let second = &json["svids"][1];
    assert_eq!(
        names(second),
        ["bundle", "hint", "spiffe_id", "x509_svid", "x509_svid_key"]
    );
    assert_eq!(second["hint"], "internal");
    assert_eq!(second["x509_svid"], STANDARD.encode(leaf.der()));

    let fetched = run(
        &rig,
        &["api", "fetch", "jwt", "-audience", "a,b", "-format", "json"],
    );
    let json: Value = serde_json::from_str(&fetched.stdout).unwrap();
    assert_eq!(names(&json[0]["svids"][0]), ["hint", "spiffe_id", "svid"]);
    assert_eq!(
        names(&json[1]["bundles"]),
        ["spiffe://example.org", "spiffe://other.org"]
    );
}

#[test]
fn a_jwt_svid_is_fetched_and_validated() {
    let rig = Rig::new();
    let fetched = run(&rig, &["api", "fetch", "jwt", "--audience=a,b"]);
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let lines: Vec<_> = fetched.stdout.lines().collect();
    assert_eq!(lines[0], format!("token({WORKLOAD}):"));
    assert_eq!(lines[2], "bundle(spiffe://example.org):");
    let token = lines[1].strip_prefix('\t').unwrap();

    let valid = run(
        &rig,
        &["api", "validate", "jwt", "-audience", "b", "-svid", token],
    );
    assert_eq!(valid.code, 0, "{}", valid.stderr);
    let lines: Vec<_> = valid.stdout.lines().collect();
    assert_eq!(lines[0], "SVID is valid.");
    assert_eq!(lines[1], format!("SPIFFE ID : {WORKLOAD}"));
    let claims = lines[2].strip_prefix("Claims    : ").unwrap();
    let claims: Value = serde_json::from_str(claims).unwrap();
    assert_eq!(claims["aud"], serde_json::json!(["a", "b"]));
    assert!(claims["exp"].is_u64(), "{claims}");

    let wrong = run(
        &rig,
        &["api", "validate", "jwt", "-audience", "c", "-svid", token],
    );
    assert_eq!(wrong.code, 1);
    assert!(
        wrong
            .stderr
            .starts_with("SVID is not valid: expected audience in")
    );
    for (args, text) in [
        (&["api", "fetch", "jwt"][..], "audience must be specified\n"),
        (
            &["api", "validate", "jwt", "-audience", "a"],
            "svid must be specified\n",
        ),
        (
            &["api", "validate", "jwt", "-svid", "a"],
            "audience must be specified\n",
        ),
    ] {
        let wrong = run(&rig, args);
        assert_eq!((wrong.code, wrong.stderr.as_str()), (1, text));
    }
}

// ER-10, ER-11, ER-24
#[test]
fn errors_name_the_thing_and_the_remedy() {
    let mut rig = Rig::new();
    rig.identities.unregister();
    let refused = run(&rig, &["api", "fetch"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    let text = "rpc error: code = PermissionDenied desc = no identity issued\n  hint: ";
    assert!(refused.stderr.starts_with(text), "{}", refused.stderr);
    assert!(refused.stderr.contains("spire-agent api explain"));

    rig.attestor.held.send_replace(true);
    let late = run(&rig, &["api", "fetch", "-timeout", "50ms"]);
    let text = "rpc error: code = DeadlineExceeded desc = context deadline exceeded\n";
    assert!(late.stderr.starts_with(text), "{}", late.stderr);
    rig.attestor.held.send_replace(false);

    let socket = rig.socket().display().to_string();
    rig.stop();
    let missing = run(&rig, &["api", "fetch"]);
    let text = format!("error: failed to connect to Workload API: {socket}: no such file\n");
    assert!(missing.stderr.starts_with(&text), "{}", missing.stderr);
    drop(std::os::unix::net::UnixListener::bind(rig.socket()).unwrap());
    let dead = run(&rig, &["api", "fetch"]);
    let text = format!("error: failed to connect to Workload API: {socket}: connection refused\n");
    assert!(dead.stderr.starts_with(&text), "{}", dead.stderr);

    // Something that speaks another protocol.
    std::fs::remove_file(rig.socket()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(rig.socket()).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let other = run(&rig, &["api", "fetch"]);
    let text = format!(
        "error: failed to connect to Workload API: {socket}: what listens there does not speak gRPC\n"
    );
    assert!(other.stderr.starts_with(&text), "{}", other.stderr);
}

#[test]
fn api_watch_prints_each_update_and_survives_the_agent() {
    let mut rig = Rig::new();
    let mut watching = Process::start(&mut command(&rig, &["api", "watch"]));
    watching.wait_for("Received 1 svid after ");
    rig.identities.rotate();
    watching.wait_for_nth("Received 1 svid after ", 2);
    rig.stop();
    watching.wait_for("rpc error: code = Unavailable desc = error reading from server: EOF");
    rig.start();
    watching.wait_for_nth("Received 1 svid after ", 3);
    watching.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(watching.wait().code(), Some(1));
    assert_eq!(
        watching.count("rpc error: code = Canceled desc = context canceled"),
        1
    );
}

#[test]
fn healthcheck_says_what_upstream_says() {
    let mut rig = Rig::new();
    let healthy = run(&rig, &["healthcheck"]);
    assert_eq!(
        (healthy.code, healthy.stdout.as_str()),
        (0, "Agent is healthy.\n")
    );
    let healthy = run(&rig, &["healthcheck", "-shallow", "-verbose"]);
    assert_eq!(
        healthy.stdout,
        "Checking agent health...\nAgent is healthy.\n"
    );
    rig.attestor.broken.send_replace(true);
    let broken = run(&rig, &["healthcheck"]);
    assert_eq!(broken.code, 1);
    assert_eq!(
        broken.stderr,
        "Agent is unhealthy: agent returned status \"NOT_SERVING\"\n"
    );
    rig.stop();
    let gone = run(&rig, &["healthcheck"]);
    assert_eq!(
        gone.stderr,
        "Agent is unhealthy: unable to determine health\n"
    );
    let gone = run(&rig, &["healthcheck", "-verbose"]);
    assert!(
        gone.stderr
            .starts_with("Failed to check health: error: failed to connect to Workload API: ")
    );
    assert!(
        gone.stderr
            .ends_with("Agent is unhealthy: unable to determine health\n")
    );
    assert_eq!(gone.code, 1);
}

#[test]
fn api_explain_names_the_nearest_entry_and_what_it_lacks() {
    let rig = Rig::new();
    let explained = run(&rig, &["api", "explain"]);
    let own = super::rig::own_selector();
    explained.prints(&[
        &format!("  {own}\n"),
        "This agent has 1 entries.",
        WORKLOAD,
        "matches: this process is issued it",
    ]);
    rig.identities.unregister();
    let pid = std::process::id().to_string();
    let explained = run(&rig, &["api", "explain", "-pid", &pid]);
    explained.prints(&[
        &format!("Process {pid} has these selectors:"),
        "  lacks unix:uid:4294967294\n",
    ]);
    let explained = run(&rig, &["api", "explain", "-output", "json"]);
    let json: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert_eq!(json["nearest"][0]["missing"][0], "unix:uid:4294967294");
    let gone = run(&rig, &["api", "explain", "-pid", "2147483647"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("is gone"), "{}", gone.stderr);
}

// Both defaults of old and the environment lead elsewhere.
#[test]
fn each_command_is_told_its_socket() {
    let rig = Rig::new();
    let socket = rig.socket().to_str().unwrap();
    let nowhere = rig.path("nowhere.sock");
    let told = |args: &[&str]| {
        let mut command = command(&rig, args);
        command.env("SPIRE_AGENT_PUBLIC_SOCKET", &nowhere);
        command
    };
    let run = |args: &[&str]| Finished::from(told(args).output().unwrap());
    let jwt = [
        "api",
        "fetch",
        "jwt",
        "-audience",
        "a",
        "-socketPath",
        socket,
    ];
    let fetched = run(&jwt);
    let token = fetched.stdout.lines().nth(1).unwrap().trim().to_owned();
    for (args, text) in [
        (&["api", "fetch", "-socketPath", socket][..], WORKLOAD),
        (&["api", "fetch", "x509", "-socketPath", socket], WORKLOAD),
        (
            &[
                "api",
                "validate",
                "jwt",
                "-audience",
                "a",
                "-svid",
                &token,
                "-socketPath",
                socket,
            ],
            "SVID is valid.",
        ),
        (&[&jwt[..], &["-spiffeID", WORKLOAD]].concat(), WORKLOAD),
    ] {
        let done = run(args);
        assert!(done.stdout.contains(text), "{args:?}: {}", done.stderr);
        let elsewhere: Vec<&str> = args
            .iter()
            .map(|argument| match *argument == socket {
                true => nowhere.to_str().unwrap(),
                false => argument,
            })
            .collect();
        assert_eq!(run(&elsewhere).code, 1, "{args:?}");
    }
    let other = [&jwt[..], &["-spiffeID", "spiffe://example.org/other"]].concat();
    let refused = run(&other);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    let watching = Process::start(&mut told(&["api", "watch", "-socketPath", socket]));
    watching.wait_for("Received 1 svid after ");
}

#[test]
fn the_environment_names_sockets_of_instances() {
    let rig = Rig::new();
    let folder: PathBuf = rig.socket().parent().unwrap().into();
    let template = folder.join("%i.sock");
    let fetched = Finished::from(
        command(&rig, &["api", "fetch", "-instance", "api"])
            .env("SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE", template)
            .output()
            .unwrap(),
    );
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let fetched = run(&rig, &["api", "fetch", "-instance", "api"]);
    assert_eq!(fetched.code, 1);
    assert!(
        fetched
            .stderr
            .contains("SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE environment variable")
    );
}
