//! The SPIFFE parts of the guides, with a Workload API on each side.

use std::net::SocketAddr;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{AccessPoint, Finished, Host, Process, access_point_args};
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};

use crate::kit::{EXECUTOR_ID, Files, Told, chmod, failed, host, json, retrying};

const SERVER_ID: &str = "spiffe://example.org/ah/serve";
const RULE: [&str; 2] = [
    "--executor-san-uri-prefix",
    "spiffe://example.org/ah/agent/",
];

/// A machine whose two processes have an agent each.
struct Site {
    host: Host,
    ca: TestCa,
    server: WorkloadApi,
    worker: WorkloadApi,
}

impl Site {
    /// SVIDs as SPIRE makes them: a SPIFFE ID and no other name.
    fn new() -> Self {
        let (host, ca) = (host(), TestCa::new("example.org"));
        let server = svids(&ca, SERVER_ID);
        let worker = svids(&ca, EXECUTOR_ID);
        Self {
            server: WorkloadApi::unix(host.path("server.sock"), Answer::Set(server)),
            worker: WorkloadApi::unix(host.path("agent.sock"), Answer::Set(worker)),
            host,
            ca,
        }
    }

    fn access_point(&self, more: &[&str]) -> AccessPoint {
        let socket = self.server.endpoint();
        let mut args = vec!["--server-identity", "spiffe", "--spiffe-socket", &socket];
        args.extend(more);
        let all = access_point_args(&args);
        AccessPoint::start(&mut self.host.command(all), &args)
    }

    fn enroll(&self, server: &str, more: &[&str]) -> Process {
        let server = format!("https://{server}");
        let mut args = vec!["agent", "enroll", "--remote-server", &server];
        args.extend(["--identity", "spiffe", "--name", "executor-1"]);
        args.extend(more);
        self.host.start(args)
    }

    /// `ah agent enroll` at this machine's agent.
    fn executor(&self, address: SocketAddr, more: &[&str]) -> Process {
        let socket = self.worker.endpoint();
        let socket = ["--spiffe-socket", &socket];
        self.enroll(&address.to_string(), &[&socket, more].concat())
    }
}

fn svids(ca: &TestCa, id: &str) -> Svids {
    Svids::of(&ca.leaf().spiffe(id).issue(), ca)
}

fn enrolled(process: &Process, id: &str) {
    process.wait_for(&format!(" enrolled executor.id={id} "));
}

// The guides' two lines; by address and by `localhost` alike, for no SVID has a DNS name (EN-5).
#[test]
fn the_guides_lines_enroll_by_spiffe_id() {
    let site = Site::new();
    let listen = ["--fleet-listen", "0.0.0.0:0"];
    let access_point = site.access_point(&[listen, RULE].concat());
    let port = access_point.address.port();
    let socket = site.worker.endpoint();
    let socket = ["--spiffe-socket", &socket];
    for host in ["127.0.0.1", "localhost"] {
        let server = format!("{host}:{port}");
        let expected = ["--expected-server-id", SERVER_ID];
        for expected in [&expected[..], &[]] {
            let mut process = site.enroll(&server, &[&socket[..], expected].concat());
            enrolled(&process, EXECUTOR_ID);
            if expected.is_empty() && host == "localhost" {
                let status = json(&site.host, &["agent", "status", "--json"]);
                assert_eq!(status["provider"], "spiffe", "{status}");
                assert_eq!(status["access_point_id"], SERVER_ID, "{status}");
            }
            process.kill();
        }
    }
}

// AP-4, EN-4, SV-72: each form of the endpoint, by flag and by the variable that SPIFFE programs share.
#[test]
fn ap_4_every_form_of_the_endpoint_is_taken() {
    let site = Site::new();
    let access_point = site.access_point(&RULE);
    let tcp = WorkloadApi::tcp(Answer::Set(svids(&site.ca, EXECUTOR_ID)));
    let path = site.worker.endpoint();
    let forms = [
        path.clone(),
        format!("unix:{path}"),
        format!("unix://{path}"),
        tcp.endpoint(),
    ];
    let server = format!("https://{}", access_point.address);
    let args = ["agent", "enroll", "--remote-server", &server];
    let args = [&args[..], &["--identity", "spiffe", "--once=enrolled"]].concat();
    for endpoint in &forms {
        let flag = [&args[..], &["--spiffe-socket", endpoint]].concat();
        let done = site.host.run(flag);
        assert_eq!(done.code, 0, "{endpoint}: {}", done.stderr);
        let mut command = site.host.command(&args);
        command.env("SPIFFE_ENDPOINT_SOCKET", endpoint);
        let done = Finished::from(command.output().unwrap());
        assert_eq!(done.code, 0, "{endpoint}: {}", done.stderr);
    }
    let wrong = [&args[..], &["--spiffe-socket", "tcp://localhost:1"]].concat();
    failed(&site.host.run(wrong), 2);
    // The variable is other programs' too: it is no wish for this identity.
    let mut command = site.host.command(["agent", "enroll", "--validate"]);
    command
        .env("SPIFFE_ENDPOINT_SOCKET", &path)
        .env("AH_REMOTE_SERVER", "https://127.0.0.1:1");
    let done = Finished::from(command.output().unwrap());
    assert_eq!(done.code, 0, "{}", done.stderr);
}

// ER-12, exactly; with the own trust domain's /ah/serve expected where nothing is said (EN-5).
#[test]
fn er_12_another_server_id_is_refused_for_good() {
    let site = Site::new();
    let access_point = site.access_point(&RULE);
    let other = "spiffe://other.org/ah/serve";
    let mut process = site.executor(access_point.address, &["--expected-server-id", other]);
    assert_eq!(process.wait().code(), Some(1));
    let text = format!("server SPIFFE ID mismatch: expected {other}, got {SERVER_ID}");
    Told::first(process.lines()).says(&text, &[], "--expected-server-id");

    let evil = "spiffe://example.org/ah/agent/evil";
    site.server.say(Answer::Set(svids(&site.ca, evil)));
    access_point.process.wait_for("generation=2");
    let mut process = site.executor(access_point.address, &[]);
    assert_eq!(process.wait().code(), Some(1));
    let text = format!("server SPIFFE ID mismatch: expected {SERVER_ID}, got {evil}");
    Told::first(process.lines()).says(&text, &[], "--expected-server-id");
}

// ER-11, EN-13: told with the time of the next attempt, and over as soon as an agent listens.
#[test]
fn er_11_an_agent_that_is_not_there_yet_is_waited_for() {
    let mut site = Site::new();
    let access_point = site.access_point(&RULE);
    let text = |why| {
        let socket = site.host.path("agent.sock");
        format!(
            "failed to connect to Workload API: {}: {why}",
            socket.display()
        )
    };
    let texts = ["connection refused", "no such file"].map(text);
    let denied = text("permission denied");
    site.worker.kill();
    let process = site.executor(access_point.address, &[]);
    retrying(&process).says(&texts[0], &[], "systemctl status spire-agent");
    drop(process);
    site.worker.stop();
    let process = site.executor(access_point.address, &[]);
    retrying(&process).says(&texts[1], &[], "--spiffe-socket");
    // EN-10, AP-18: where nobody waits it is the end.
    let socket = site.worker.endpoint();
    for (command, last) in [
        ("enroll", "--once"),
        ("enroll", "--validate"),
        ("access-point", "--validate"),
    ] {
        let identity = if command == "enroll" {
            "--identity"
        } else {
            "--server-identity"
        };
        let mut args = vec![
            "agent",
            command,
            identity,
            "spiffe",
            "--spiffe-socket",
            &socket,
            last,
        ];
        if command == "enroll" {
            args.extend(["--remote-server", "https://127.0.0.1:1"]);
        }
        failed(&site.host.run(args), 1).says(&texts[1], &[], "--spiffe-socket");
    }
    site.worker.start();
    enrolled(&process, EXECUTOR_ID);
    drop(process);

    chmod(&site.host.path("agent.sock"), 0);
    let server = format!("https://{}", access_point.address);
    let args = [
        "agent",
        "enroll",
        "--remote-server",
        &server,
        "--identity",
        "spiffe",
    ];
    let args = [
        &args[..],
        &["--spiffe-socket", &socket, "--name", "executor-1"],
    ]
    .concat();
    // Root is let in everywhere, unless it gives that up.
    let unprivileged = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
    ];
    let process = Process::start(&mut site.host.command_under(&unprivileged, args));
    retrying(&process).says(&denied, &[], "ls -la ");
    chmod(&site.host.path("agent.sock"), 0o777);
    enrolled(&process, EXECUTOR_ID);
}

// ER-10: no entry yet, told with what an entry could select; over as soon as there is one.
#[test]
fn er_10_an_identity_that_is_not_issued_yet_is_waited_for() {
    let site = Site::new();
    site.server.say(Answer::no_identity());
    site.worker.say(Answer::no_identity());
    let socket = site.server.endpoint();
    let mut args = vec!["--server-identity", "spiffe", "--spiffe-socket", &socket];
    args.extend(RULE);
    let server = site.host.start(access_point_args(&args));
    let process = site.executor(([127, 0, 0, 1], 1).into(), &[]);
    for process in [&server, &process] {
        let pid = format!("pid {};", process.pid());
        let path = format!("unix:path:{}", env!("CARGO_BIN_EXE_ah"));
        let facts = [pid.as_str(), "unix:uid:", "unix:gid:", &path];
        retrying(process).says("no identity issued", &facts, "spire-server entry show");
    }
    site.server.say(Answer::Set(svids(&site.ca, SERVER_ID)));
    server.wait_for("listening for executors");
    site.worker.say(Answer::Set(svids(&site.ca, EXECUTOR_ID)));
    process.wait_for("error: connection refused to 127.0.0.1:1");
}

// SP-1, SV-52: two trust domains that know each other's bundle enroll across; a third is nobody.
#[test]
fn sp_1_an_executor_of_a_federated_domain_enrolls() {
    let site = Site::new();
    let (other, third) = (TestCa::new("other.org"), TestCa::new("third.org"));
    let own = svids(&site.ca, SERVER_ID);
    site.server
        .say(Answer::Set(own.federated("other.org", &[&other])));
    let access_point = site.access_point(&[
        "--executor-san-uri-prefix",
        "spiffe://other.org/ah/agent",
        "--executor-san-uri-prefix",
        "spiffe://third.org/ah/agent",
    ]);
    let expected = ["--expected-server-id", SERVER_ID];
    let theirs = "spiffe://other.org/ah/agent/1";
    let federated = svids(&other, theirs).federated("example.org", &[&site.ca]);
    site.worker.say(Answer::Set(federated));
    enrolled(&site.executor(access_point.address, &expected), theirs);

    // The access point has no bundle of theirs.
    let unknown = svids(&third, "spiffe://third.org/ah/agent/1");
    let unknown = unknown.federated("example.org", &[&site.ca]);
    site.worker.say(Answer::Set(unknown));
    let mut process = site.executor(access_point.address, &expected);
    assert_eq!(process.wait().code(), Some(1));
    let text = "client certificate rejected: certificate signed by unknown authority";
    assert_eq!(Told::first(process.lines()).text, text);

    // They have no bundle of the access point, and nothing that others say of it counts.
    let alone = svids(&other, theirs).federated("third.org", &[&site.ca]);
    site.worker.say(Answer::Set(alone));
    let mut process = site.executor(access_point.address, &expected);
    assert_eq!(process.wait().code(), Some(1));
    let told = Told::first(process.lines());
    told.says(
        "x509: certificate signed by unknown authority",
        &["`example.org`"],
        "",
    );
}

// AP-3: `--ca` beside spiffe lets executors of another PKI in.
#[test]
fn ap_3_executors_with_files_enroll_with_an_access_point_of_spire() {
    let site = Site::new();
    let pki = TestCa::new("pki.example.com");
    let leaf = pki.leaf().dns("worker.executors.example.com").issue();
    let files = Files::write(&site.host, "worker", &leaf, &site.ca);
    let ca = pki.write(&site.host.path(""), "pki").display().to_string();
    let access_point = site.access_point(&["--ca", &ca]);
    let expected = ["--expected-server-id", SERVER_ID];
    files.enrolls_as(
        &site.host,
        access_point.address,
        "worker.executors.example.com",
        &expected,
    );
}

// SP-1: both processes of one machine see both SVIDs, and each takes its own.
#[test]
fn sp_1_each_process_picks_its_own_of_several() {
    let site = Site::new();
    let (server, worker) = (
        site.ca.leaf().spiffe(SERVER_ID).issue(),
        site.ca.leaf().spiffe(EXECUTOR_ID).issue(),
    );
    let both = Svids::of(&worker, &site.ca)
        .and(&server, &site.ca)
        .hint("serve");
    site.server.say(Answer::Set(both.clone()));
    site.worker.say(Answer::Set(both));
    let access_point = site.access_point(&["--spiffe-hint", "serve"]);
    let process = site.executor(access_point.address, &["--spiffe-id", EXECUTOR_ID]);
    enrolled(&process, EXECUTOR_ID);
}
