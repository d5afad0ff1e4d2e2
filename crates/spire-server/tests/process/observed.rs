//! What a running server tells of itself: metrics, the audit log, its log file, systemd.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use ah_testkit::process::{DEADLINE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::server::{Server, attest, token};

const CONF: &str = r#"
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "/run/spire/server.sock"
    trust_domain = "example.org"
    data_dir = "/var/lib/spire/server"
    log_level = "DEBUG"
    log_file = "/var/lib/spire/server.log"
    audit_log_enabled = true
    profiling_enabled = true
    profiling_port = 9989
    experimental { cache_reload_interval = "100ms" }
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "/var/lib/spire/server/datastore.sqlite3"
            log_sql = true
        }
    }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
}
telemetry {
    EnableHostnameLabel = false
    Prometheus { host = "127.0.0.1" port = 9988 }
}
"#;

/// The port that the configuration of `server` has after `key`.
fn port(server: &Server, key: &str) -> u16 {
    let conf = std::fs::read_to_string(server.folder.path().join("etc/server.conf")).unwrap();
    let (_, port) = conf.rsplit_once(&format!("{key} = ")).unwrap();
    port.split_whitespace().next().unwrap().parse().unwrap()
}

pub(crate) fn scrape(port: u16) -> String {
    get(port, "/metrics")
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The number that the series `series` has.
fn value(metrics: &str, series: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// The lines of the audit log about `method`.
fn audited<'a>(log: &'a str, method: &str) -> Vec<&'a str> {
    let method = format!(" method={method} ");
    let lines = log
        .lines()
        .filter(|line| line.contains("msg=\"API accessed\""));
    lines.filter(|line| line.contains(&method)).collect()
}

/// Everything is on: metrics, audit log, statements, a log file, systemd's socket.
async fn used() -> (Server, UnixDatagram, TempDir) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(DEADLINE)).unwrap();
    let server = Server::start(CONF, &[("NOTIFY_SOCKET", Path::new(&path))]);
    let told =
        server.ok("spire-server token generate -socketPath /run/spire/server.sock -ttl 3600");
    let token = token(&told);
    attest(&server.folder.path().join("run/server.sock"), token).await;
    server.ok("spire-server jwt mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -audience a,b");
    server.ok("spire-server entry create -socketPath /run/spire/server.sock -entryID e1 -parentID spiffe://example.org/node -spiffeID spiffe://example.org/w -selector unix:uid:1 -selector unix:gid:2 -dns w.example.org");
    server.sh("spire-server entry delete -socketPath /run/spire/server.sock -entryID none");
    server.sh("spire-server agent evict -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/spire/agent/none");
    (server, systemd, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_tells_what_it_does() {
    let (mut server, systemd, _folder) = used().await;

    // Inventory section 10.1, by upstream's names.
    let prometheus = port(&server, " port");
    let metrics = eventually("the cache has followed", || {
        let metrics = scrape(prometheus);
        let entries = "spire_server_entry_entries_by_entryid_cache_count";
        (value(&metrics, entries) == Some(1.0)).then_some(metrics)
    });
    let domain = r#"{trust_domain_id="example_org"}"#;
    for (series, expected) in [
        (r#"ca_manager_x509_ca_prepare{status="OK"}"#, 1.0),
        (r#"ca_manager_jwt_key_prepare{status="OK"}"#, 1.0),
        ("ca_manager_x509_ca_activate", 1.0),
        ("manager_jwt_key_activate", 1.0),
        // The server's own and the agent's.
        ("server_ca_sign_x509_svid", 2.0),
        ("server_ca_sign_jwt_svid", 1.0),
        (r#"svid_rotate{status="OK"}"#, 1.0),
        (r#"registration_entry_manager_prune{status="OK"}"#, 1.0),
        (r#"entry_cache_reload{status="OK"}"#, 1.0),
        ("entry_nodealiases_by_entryid_cache_count", 0.0),
        ("entry_nodealiases_by_selector_cache_count", 0.0),
        ("entry_skipped_entry_event_ids_count", 0.0),
        ("node_agents_by_id_cache_count", 1.0),
        ("node_agents_by_expiresat_cache_count", 1.0),
        ("node_skipped_node_event_ids_count", 0.0),
        (r#"rpc_agent_v1_agent_attest_agent{status="OK"}"#, 1.0),
        (r#"datastore_node_create{status="OK"}"#, 1.0),
    ] {
        let found = value(&metrics, &format!("spire_server_{series}"));
        assert_eq!(found, Some(expected), "{series}\n{metrics}");
    }
    let gauge = |name: &str| value(&metrics, &format!("spire_server_{name}{domain}")).unwrap();
    let ttl = gauge("manager_x509_ca_rotate_ttl");
    assert!((86_390.0..=86_400.0).contains(&ttl), "{ttl}");
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    let ends = gauge("manager_x509_ca_rotate_expiration");
    assert!((now..=now + 86_400.0).contains(&ends), "{ends}");

    // Inventory section 5.1: profiling_enabled, profiling_port.
    let profiled = get(port(&server, "profiling_port"), "/debug/pprof/cmdline");
    assert!(profiled.contains("spire-server\0run\0"), "{profiled}");

    // Inventory section 10: the audit log.
    let file = server.folder.path().join("var/server.log");
    let log = std::fs::read_to_string(&file).unwrap();
    let uid = format!("caller_uid={} ", nix::unistd::geteuid());
    let program = format!("caller_path={}", env!("CARGO_BIN_EXE_spire-server"));
    for (method, all) in [
        (
            "CreateJoinToken",
            &[
                "service=agent.v1.Agent",
                "status=success",
                "ttl=3600",
                "authorized_as=local",
                "request_id=",
                &uid,
                &program,
            ][..],
        ),
        (
            "AttestAgent",
            &[
                "node_attestor_type=join_token",
                "agent_id=spiffe://example.org/spire/agent/join_token/",
                "status=success",
            ],
        ),
        (
            "MintJWTSVID",
            &[
                "audience=\"a,b\"",
                "spiffe_id=\"spiffe://example.org/w\"",
                "status=success",
            ],
        ),
        (
            "BatchCreateEntry",
            &[
                "entry_id=e1",
                "selectors=\"unix:uid:1,unix:gid:2\"",
                "dns_name=w.example.org",
                "admin=false",
                "status=success",
            ],
        ),
        (
            "BatchDeleteEntry",
            &[
                "entry_id=none",
                "status=error",
                "status_code=NotFound",
                "status_message=\"entry not found\"",
            ],
        ),
        (
            "DeleteAgent",
            &[
                "spiffe_id=\"spiffe://example.org/spire/agent/none\"",
                "status=error",
                "status_code=NotFound",
                "status_message=\"agent not found\"",
            ],
        ),
    ] {
        let lines = audited(&log, method);
        let [line] = lines.as_slice() else {
            panic!("{method}: {lines:?}\n{log}")
        };
        for part in all {
            assert!(
                line.replace("agent_id=\"", "agent_id=").contains(part),
                "{part} is not in {line}"
            );
        }
    }
    // Inventory section 7: DataStore sql, log_sql.
    assert!(log.contains("INSERT INTO registered_entries"), "{log}");

    // USR2 opens the log file again.
    let moved = server.folder.path().join("var/server.log.1");
    std::fs::rename(&file, &moved).unwrap();
    let id = Pid::from_raw(server.child.id().try_into().unwrap());
    // Inventory section 12: SIGUSR2 (POSIX).
    kill(id, Signal::SIGUSR2).unwrap();
    eventually("there is a new log file", || {
        let log = std::fs::read_to_string(&file).ok()?;
        log.contains("The log file was opened again").then_some(())
    });

    // sd_notify(3)
    let mut told = String::new();
    let mut receive = || {
        let mut datagram = [0; 4096];
        let length = systemd.recv(&mut datagram).unwrap();
        told.push_str(std::str::from_utf8(&datagram[..length]).unwrap());
        told.clone()
    };
    while !receive().contains("READY=1") {}
    // Inventory section 12: SIGINT, SIGTERM.
    kill(id, Signal::SIGTERM).unwrap();
    while !receive().contains("STOPPING=1") {}
    assert!(server.child.wait().unwrap().success());
}
