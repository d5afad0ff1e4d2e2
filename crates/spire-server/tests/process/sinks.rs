//! Metrics that a running server sends (inventory section 10).

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use ah_testkit::process::{DEADLINE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{PROGRAM, Server, place};

const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "join_token" { plugin_data {} } KeyManager "memory" { plugin_data {} } }"#;

/// Somebody who is told metrics.
struct Collector {
    socket: UdpSocket,
    seen: String,
}

impl Collector {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let seen = String::new();
        Self { socket, seen }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Reads until `wanted` was told.
    fn hears(&mut self, wanted: &str) {
        let mut buffer = vec![0; 65_536];
        while !self.seen.contains(wanted) {
            let received = self.socket.recv(&mut buffer);
            assert!(received.is_ok(), "{wanted} is not told: {}", self.seen);
            self.seen += &String::from_utf8_lossy(&buffer[..received.unwrap()]);
        }
    }
}

#[test]
fn a_server_tells_all_collectors_what_it_counts() {
    let folder = place(CONF);
    let file = folder.path().join("etc/server.conf");
    let conf = std::fs::read_to_string(&file).unwrap();
    let [mut one, mut two, mut dog, mut m3] = [0; 4].map(|_| Collector::start());
    let telemetry = format!(
        r#"telemetry {{
            EnableHostnameLabel = false
            EnableTrustDomainLabel = true
            Statsd = [ {{ address = "{}" }}, {{ address = "{}" }} ]
            DogStatsd = [ {{ address = "{}" }} ]
            M3 = [ {{ address = "{}" env = "prod" }} ]
            InMem {{}}
        }}"#,
        one.address(),
        two.address(),
        dog.address(),
        m3.address(),
    );
    std::fs::write(&file, format!("{conf}\n{telemetry}")).unwrap();
    let server = Server::start_in(folder, Command::new(PROGRAM));
    server.command("entry create -parentID spiffe://example.org/a -spiffeID spiffe://example.org/b -selector unix:uid:0");

    // What was counted before the sinks ran, and what is counted now.
    let version = env!("CARGO_PKG_VERSION").replace('.', "_");
    let started = format!("spire_server.started.{version}.example_org.example_org:1.000000|g");
    for collector in [&mut one, &mut two] {
        collector.hears("spire_server.ca.manager.x509_ca.activate.example_org:1.000000|c\n");
        collector
            .hears("spire_server.datastore.registration_entry.create.OK.example_org:1.000000|c\n");
        assert_eq!(collector.seen.lines().next(), Some(started.as_str()));
    }
    dog.hears("spire_server.rpc.entry.v1.entry.batch_create_entry:1|c|#status:OK,trust_domain:example_org");
    m3.hears("rpc_entry_v1_entry_batch_create_entry");

    let id = Pid::from_raw(server.child.id().try_into().unwrap());
    let kept = [
        "[G] 'spire_server.started.",
        "[C] 'spire_server.ca.manager.x509_ca.activate.example_org': Count: 1 Sum: 1.000",
    ];
    let log = eventually("the seconds of the start have ended", || {
        kill(id, Signal::SIGUSR1).unwrap();
        let log = server.log();
        kept.iter().all(|line| log.contains(line)).then_some(log)
    });
    assert!(log.contains("subsystem_name=telemetry"), "{log}");
}
