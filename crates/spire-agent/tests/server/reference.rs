//! The first agent reference (SPIRE 0.7), row by row: what it promises takes effect. Rows of Google's cloud and of plugins
//! that are processes of their own are left out.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::cgroup::ControlGroup;
use ah_testkit::process::{Process, eventually};
use ah_testkit::web::Web;
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::program::{Conf, fetch, program, serve_us, stdout};
use crate::rig::Node;

/// File below this package, name of a test in it, and the rows that it shows.
const ROWS: &[(&str, &str, &[&str])] = &[
    (
        HERE,
        "the_file_says_where_everything_is",
        &[
            "KeyManager disk",
            "NodeAttestor join_token",
            "WorkloadAttestor unix",
            "agent { } in HCL",
            "data_dir, default $PWD",
            "log_file",
            "server_address, an IP address",
            "server_port",
            "socket_path",
            "trust_bundle_path",
            "trust_domain",
            "join_token",
            "plugins { type \"name\" { } }",
            "enabled",
            "plugin_data",
            "run",
            "run -config",
            "sample configuration file",
        ],
    ),
    (
        HERE,
        "an_instance_of_ec2_attests_with_its_document",
        &["NodeAttestor aws_iid"],
    ),
    (
        AZURE,
        "azure_msi_believes_the_token_of_a_machine",
        &["NodeAttestor azure_msi"],
    ),
    (
        HERE,
        "keys_in_memory_end_with_the_process",
        &["KeyManager memory"],
    ),
    (
        HERE,
        "a_node_attests_with_its_certificate_under_the_old_name",
        &["NodeAttestor x509_pop"],
    ),
    (
        HERE,
        "the_same_in_json_at_the_default_place",
        &["agent { } in JSON", "run -config, default (SR-5)"],
    ),
    (
        HERE,
        "flags_win_over_the_file",
        &[
            "flags take precedence over the file",
            "run -dataDir",
            "run -joinToken",
            "run -logFile",
            "run -serverAddress",
            "run -serverPort",
            "run -socketPath",
            "run -trustBundle",
            "run -trustDomain",
        ],
    ),
    (
        HERE,
        "what_is_not_said_is_as_the_reference_says",
        &[
            "data_dir",
            "log_level, default INFO",
            "socket_path, default (SR-4)",
        ],
    ),
    (
        HERE,
        "each_level_of_the_log",
        &[
            "log_level",
            "log_level DEBUG",
            "log_level INFO",
            "log_level WARN",
            "log_level ERROR",
            "run -logLevel",
        ],
    ),
    (
        "tests/server/bootstrap.rs",
        "a_server_is_found_at_whichever_of_its_addresses_it_is",
        &["server_address, a DNS name"],
    ),
    (
        "tests/server/lies.rs",
        "another_ca",
        &["trust_bundle_path of another server"],
    ),
    (
        "tests/server/lies.rs",
        "another_trust_domain",
        &["trust_domain of another server"],
    ),
    (
        HERE,
        "a_plugin_is_enabled_unless_the_file_says_otherwise",
        &["enabled, by default"],
    ),
    (
        "tests/server/manager.rs",
        "the_manager_hears_how_it_is_and_a_plugin_is_told_something_new",
        &["plugin_data of unix"],
    ),
    (
        HERE,
        "a_workload_is_known_by_its_pod",
        &[
            "WorkloadAttestor k8s",
            "WorkloadAttestor k8s, selectors ns and sa",
            "kubelet_read_only_port of k8s, in quotes",
            "k8s beside unix",
        ],
    ),
    (
        COMMANDS,
        "api_fetch_prints_what_upstream_prints",
        &["api fetch", "api fetch x509"],
    ),
    (
        COMMANDS,
        "api_fetch_writes_files_with_upstreams_modes",
        &["api fetch -silent", "api fetch -write"],
    ),
    (
        COMMANDS,
        "sr_1_what_is_no_directory_is_the_beginning_of_the_names",
        &["api fetch -write, a prefix (SR-1)"],
    ),
    (
        COMMANDS,
        "each_command_is_told_its_socket",
        &[
            "api fetch -socketPath",
            "api watch -socketPath",
            "api fetch jwt -socketPath",
            "api fetch jwt -spiffeID",
            "api validate jwt -socketPath",
        ],
    ),
    (
        COMMANDS,
        "api_watch_prints_each_update_and_survives_the_agent",
        &["api watch"],
    ),
    (
        COMMANDS,
        "a_jwt_svid_is_fetched_and_validated",
        &[
            "api fetch jwt",
            "api fetch jwt -audience",
            "api validate jwt",
            "api validate jwt -audience",
            "api validate jwt -svid",
        ],
    ),
    (
        "src/cli/socket.rs",
        "the_flag_comes_before_the_instance_before_the_environment",
        &["-socketPath, default (SR-4)"],
    ),
];

const HERE: &str = "tests/server/reference.rs";
const AZURE: &str = "../spire-attest/tests/all/azure_msi.rs";
const COMMANDS: &str = "tests/workload/commands.rs";

#[test]
fn each_row_has_a_test() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = BTreeSet::new();
    for (file, test, rows) in ROWS {
        for row in *rows {
            assert!(seen.insert(row), "{row} is there twice");
        }
        let text = std::fs::read_to_string(package.join(file)).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| {
            let name = line.trim_start_matches("async ").strip_prefix("fn ");
            name.and_then(|rest| rest.strip_prefix(test)) == Some("() {")
        });
        let at = at.unwrap_or_else(|| panic!("{file} has no test {test}"));
        let attributes = lines[..at].iter().rev().take_while(|line| !line.is_empty());
        let is_test = attributes
            .filter(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
            .count();
        assert_eq!(is_test, 1, "{test} of {file} is no test");
    }
}

/// `spire-agent ARGUMENTS` in `directory`.
fn inside(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = program(arguments);
    command.current_dir(directory);
    command
}

fn served(node: &Node) -> String {
    eventually("a workload is served", || {
        let fetched = fetch(node, &[]);
        fetched.status.success().then(|| stdout(&fetched))
    })
}

/// An entry for whoever runs the test, by user and group.
fn serve_us_by_both(fake: &Fake) {
    serve_us(fake);
    let gid = nix::unistd::getgid();
    fake.set_entry("a", "/a", |entry| {
        entry.selectors.push(ah_spire_wire::types::Selector {
            r#type: "unix".into(),
            value: format!("gid:{gid}"),
        });
    });
    fake.set_entry("b", "/not-for-us", |entry| {
        entry.selectors[0].value = "uid:4294967294".into();
    });
}

// As the reference's sample is written (SR-6), with numbers in quotes; the second attestor is turned off.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_where_everything_is() {
    let fake = Fake::start().await;
    serve_us_by_both(&fake);
    let node = Node::new(&fake);
    let here = node.directory.path();
    let (shown, port) = (here.display(), fake.address.port());
    let text = format!(
        r#"agent {{
    trust_domain = "example.org"
    trust_bundle_path = "{shown}/bundle.pem"

    log_level = "DEBUG"
    log_file = "{shown}/agent.log"
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path ="{shown}/public/api.sock"
    join_token = "token"
}}

plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{
        }}
    }}
    NodeAttestor "x509_pop" {{
        enabled = false
        plugin_data {{
            private_key_path = "/nowhere"
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{
            directory = "{shown}/keys"
        }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{
        }}
    }}
}}
"#
    );
    std::fs::write(here.join("sample.conf"), text).unwrap();
    let mut agent = Process::start(&mut inside(here, &["run", "-config", "sample.conf"]));
    let told = served(&node);
    assert!(told.contains("spiffe://example.org/a\n"), "{told}");
    assert!(!told.contains("not-for-us"), "{told}");
    assert!(fake.state().tokens.is_empty());
    assert!(here.join("agent-data.json").exists());
    assert!(here.join("keys/keys.json").exists());
    let socket = std::fs::metadata(here.join("public/api.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    let log = std::fs::read_to_string(here.join("agent.log")).unwrap();
    assert!(log.contains("level=info"), "{log}");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    // The key is found again: nothing is attested anew.
    let _agent = Process::start(&mut inside(here, &["run", "-config", "sample.conf"]));
    served(&node);
    assert_eq!(fake.calls("AttestAgent"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_said_is_as_the_reference_says() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let conf = Conf::new(&node);
    let config = conf.write(&node, &fake);
    // The default of socket_path is one place on the machine, where an agent of its own may be: it is only read.
    let flags = ah_spire_plugin::agent::run_flags("run");
    let flags = flags.parse(&["-config".to_owned(), config.display().to_string()]);
    let text = std::fs::read_to_string(&config).unwrap();
    let without: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("socket_path"))
        .collect();
    std::fs::write(&config, without.join("\n")).unwrap();
    let loaded = ah_spire_plugin::agent::AgentConfig::load(&flags.unwrap(), &|_| None).unwrap();
    assert_eq!(
        loaded.workload_socket.as_deref(),
        Some(Path::new("/tmp/spire-agent/public/api.sock"))
    );

    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    assert!(node.data().join("agent-data.json").exists());
    assert!(agent.count("level=info") > 0);
    assert_eq!(agent.count("level=debug"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_level_of_the_log() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    // Each says that the server is not verified, that it was found, and that it tells no changes.
    let kinds = ["level=warning", "level=info", "level=debug"];
    for (level, told) in [("ERROR", 0), ("WARN", 1), ("INFO", 2), ("DEBUG", 3)] {
        for by_flag in [false, true] {
            let node = Node::new(&fake);
            let mut conf = Conf::new(&node);
            conf.bootstrap = "insecure_bootstrap = true".into();
            if !by_flag {
                conf.agent = format!("log_level = {level:?}");
            }
            let mut command = conf.command(&node, &fake, "run");
            if by_flag {
                command.args(["-logLevel", level]);
            }
            let agent = Process::start(&mut command);
            fake.called("SyncAuthorizedEntries", 2).await;
            for (at, kind) in kinds.iter().enumerate() {
                assert_eq!(agent.count(kind) > 0, at < told, "{level}: {kind}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_win_over_the_file() {
    let fake = Fake::start().await;
    serve_us(&fake);
    let node = Node::new(&fake);
    let here = node.directory.path();
    let wrong = here.join("wrong");
    let text = format!(
        r#"agent {{
            data_dir = "{0}/data" log_file = "{0}/log" log_level = "ERROR" trust_domain = "wrong.test"
            server_address = "wrong.invalid" server_port = 1 socket_path = "{0}/api.sock"
            trust_bundle_path = "{0}/bundle.pem" join_token = "wrong"
        }}
        plugins {{
            NodeAttestor "join_token" {{ plugin_data {{}} }}
            KeyManager "memory" {{ plugin_data {{}} }}
            WorkloadAttestor "unix" {{ plugin_data {{}} }}
        }}"#,
        wrong.display()
    );
    std::fs::write(here.join("wrong.conf"), text).unwrap();
    let port = fake.address.port().to_string();
    let arguments = [
        "run",
        "-config=wrong.conf",
        "--dataDir=data",
        "-logFile",
        "agent.log",
        "-logLevel",
        "info",
        "-trustDomain",
        "example.org",
        "-serverAddress",
        "127.0.0.1",
        "-serverPort",
        &port,
        "-socketPath",
        "public/api.sock",
        "-trustBundle",
        "bundle.pem",
        "-joinToken",
        "token",
    ];
    let _agent = Process::start(&mut inside(here, &arguments));
    served(&node);
    assert!(here.join("data/agent-data.json").exists());
    let log = std::fs::read_to_string(here.join("agent.log")).unwrap();
    assert!(log.contains("level=info"), "{log}");
    assert!(!wrong.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_in_json_at_the_default_place() {
    let fake = Fake::start().await;
    serve_us(&fake);
    let node = Node::new(&fake);
    let here = node.directory.path();
    let conf = serde_json::json!({
        "agent": {
            "data_dir": here.join("data"),
            "trust_domain": "example.org",
            "trust_bundle_path": here.join("bundle.pem"),
            "server_address": "127.0.0.1",
            "server_port": fake.address.port().to_string(),
            "socket_path": here.join("public/api.sock"),
            "join_token": "token",
        },
        "plugins": {
            "NodeAttestor": { "join_token": { "plugin_data": {} } },
            "KeyManager": { "disk": { "plugin_data": { "directory": here.join("data") } } },
            "WorkloadAttestor": { "unix": { "plugin_data": {} } },
        },
    });
    std::fs::create_dir_all(here.join("conf/agent")).unwrap();
    std::fs::write(here.join("conf/agent/agent.conf"), conf.to_string()).unwrap();
    let _agent = Process::start(&mut inside(here, &["run"]));
    served(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_memory_end_with_the_process() {
    let fake = Fake::start().await;
    fake.state().reattestable = true;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.keys = r#""memory" { plugin_data {} }"#.into();
    for attested in [1, 2] {
        let mut agent = Process::start(&mut conf.command(&node, &fake, "run"));
        fake.called("SyncAuthorizedEntries", 2).await;
        assert_eq!(fake.calls("AttestAgent"), attested);
        agent.signal(Signal::SIGTERM);
        assert!(agent.wait().success());
        assert!(!node.data().join("keys.json").exists());
    }
}

// SR-2
#[tokio::test(flavor = "multi_thread")]
async fn a_node_attests_with_its_certificate_under_the_old_name() {
    let fake = Fake::start().await;
    serve_us(&fake);
    let node = Node::new(&fake);
    let here = node.directory.path();
    let pki = TestCa::new("nodes.test");
    std::fs::write(here.join("roots.pem"), pki.pem()).unwrap();
    fake.state().node_roots = Some(here.join("roots.pem"));
    let leaf = pki.leaf().issue();
    std::fs::write(here.join("node.pem"), leaf.chain_pem()).unwrap();
    std::fs::write(here.join("node.key"), leaf.key_pem()).unwrap();
    let mut conf = Conf::new(&node);
    conf.node = format!(
        r#""x509_pop" {{ plugin_data {{ private_key_path = "{0}/node.key" certificate_path = "{0}/node.pem" }} }}"#,
        here.display()
    );
    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    served(&node);
    let line = agent.wait_for("the node is attested");
    assert!(line.contains("/spire/agent/x509pop/"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_ec2_attests_with_its_document() {
    let metadata = Web::start().await;
    metadata.answers("/latest/api/token", "of-this-visit");
    for part in ["document", "signature", "rsa2048"] {
        metadata.answers(&format!("/latest/dynamic/instance-identity/{part}"), part);
    }
    let fake = Fake::start().await;
    serve_us(&fake);
    let shown = r#"{"document":"document","signature":"signature","rsa2048":"rsa2048"}"#;
    fake.state().tokens = [shown.to_owned()].into();
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.node = format!(
        r#""aws_iid" {{ plugin_data {{ ec2_metadata_endpoint = "{}" }} }}"#,
        metadata.url("")
    );
    let _agent = Process::start(&mut conf.command(&node, &fake, "run"));
    served(&node);
    assert_eq!(fake.state().attestors, ["aws_iid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_enabled_unless_the_file_says_otherwise() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    for (unix, valid) in [
        ("plugin_data {}", true),
        ("enabled = true plugin_data {}", true),
        ("enabled = false plugin_data {}", false),
    ] {
        conf.unix = unix.into();
        let checked = conf.command(&node, &fake, "validate").output().unwrap();
        assert_eq!(checked.status.success(), valid, "{unix}: {checked:?}");
    }
}

/// The kubelet's read-only port, as the agent reaches it.
async fn kubelet(pods: serde_json::Value) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = pods.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /pods HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    port
}

// The two attestors of the reference's sample (SR-6). A workload of this test is put into a pod's control group.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_known_by_its_pod() {
    let (container, uid) = (format!("{:064x}", std::process::id()), uuid());
    let port = kubelet(serde_json::json!({"items": [{
        "metadata": {"uid": uid, "name": "server", "namespace": "shop"},
        "spec": {"serviceAccountName": "shop-server"},
        "status": {"containerStatuses": [{"containerID": format!("containerd://{container}")}]},
    }]}))
    .await;
    let fake = Fake::start().await;
    serve_us(&fake);
    fake.set_entry("k", "/in-a-pod", |entry| {
        entry.selectors = ["ns:shop", "sa:shop-server"]
            .map(|value| ah_spire_wire::types::Selector {
                r#type: "k8s".into(),
                value: value.into(),
            })
            .into();
    });
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.unix = format!(
        r#"plugin_data {{}} }}
        WorkloadAttestor "k8s" {{ plugin_data {{ kubelet_read_only_port = "{port}" }}"#
    );
    let _agent = Process::start(&mut conf.command(&node, &fake, "run"));
    let told = served(&node);
    assert!(told.contains("spiffe://example.org/a\n"), "{told}");
    assert!(!told.contains("/in-a-pod"), "{told}");

    for kind in ["cgroup", "cgroup2"] {
        let path = format!("kubepods-{container}/pod{uid}/{container}");
        let Some(group) = ControlGroup::make(kind, &path) else {
            continue;
        };
        let mut workload = Command::new("sh");
        workload
            .args(["-c", r#"echo 0 > "$0" && exec "$@""#])
            .arg(group.processes())
            .arg(env!("CARGO_BIN_EXE_spire-agent"))
            .args(["api", "fetch", "-timeout", "30s", "-socketPath"])
            .arg(node.directory.path().join("public/api.sock"));
        let told = stdout(&workload.output().unwrap());
        assert!(told.contains("spiffe://example.org/in-a-pod\n"), "{told}");
        assert!(told.contains("spiffe://example.org/a\n"), "{told}");
    }
}

/// The UID of a pod that no other test has.
fn uuid() -> String {
    format!("{:08x}-0000-4000-8000-000000000000", std::process::id())
}
