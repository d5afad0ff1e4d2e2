//! What `monitoring/spire.rules.yml` and the dashboard ask for is what server and agent export.

use std::collections::BTreeSet;

use ah_e2e::Machine;
use ah_e2e::packages::root;
use ah_testkit::process::eventually;

const SERVER: &str = r#"server {
    bind_address = "127.0.0.1"
    trust_domain = "example.org"
    data_dir = "/var/lib/spire/server"
    socket_path = "/run/spire/server.sock"
    agent_ttl = "8s"
}
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "/var/lib/spire/server/datastore.sqlite3" } }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
}
telemetry { Prometheus { host = "127.0.0.1", port = 9988 } }
"#;

const AGENT: &str = r#"agent {
    data_dir = "/var/lib/spire/agent"
    trust_domain = "example.org"
    server_address = "127.0.0.1"
    server_port = 8081
    socket_path = "/run/spire/agent.sock"
    insecure_bootstrap = true
}
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
    WorkloadAttestor "unix" { plugin_data {} }
}
telemetry { Prometheus { host = "127.0.0.1", port = 9989 } }
"#;

/// The metrics of SPIRE in a rule or query.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours =
        words.filter(|word| word.starts_with("spire_server_") || word.starts_with("spire_agent_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn what_rules_and_panels_ask_for_is_exported() {
    let asked = ["spire.rules.yml", "grafana-spire.json"].map(|name| {
        let text = std::fs::read_to_string(root().join("monitoring").join(name));
        metrics_in(&text.expect("it is there"))
    });
    let asked: BTreeSet<_> = asked.into_iter().flatten().collect();
    assert!(asked.len() > 20, "{asked:?}");
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.shell(&format!(
        "cat > /etc/spire/server.conf << 'END'\n{SERVER}\nEND\ncat > /etc/spire/agent.conf << 'END'\n{AGENT}\nEND"
    ));
    let healthy = |socket: &str| {
        let [program, path] = socket.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{socket}");
        };
        eventually(socket, || {
            let asked = machine
                .command_as("root", [program, "healthcheck", "-socketPath", path])
                .output();
            asked.expect("it runs").status.success().then_some(())
        });
    };
    let _server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
    healthy("spire-server /run/spire/server.sock");
    let token = machine.shell("spire-server token generate -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/node");
    let token = token
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("Token: "))
        .expect("a token")
        .to_owned();
    let _agent = machine.start(
        "root",
        &format!("spire-agent run -config /etc/spire/agent.conf -joinToken {token}"),
    );
    healthy("spire-agent /run/spire/agent.sock");
    machine.shell(
        "spire-server entry create -socketPath /run/spire/server.sock -parentID spiffe://example.org/node \
           -spiffeID spiffe://example.org/w -selector unix:uid:0
         until spire-agent api fetch x509 -socketPath /run/spire/agent.sock; do sleep 0.1; done
         spire-agent api fetch jwt -audience x -socketPath /run/spire/agent.sock",
    );
    // The agent's own SVID is renewed at half of its life.
    eventually("all metrics", || {
        let served = machine
            .shell("curl -fsS http://127.0.0.1:9988/metrics http://127.0.0.1:9989/metrics")
            .stdout;
        let missing: Vec<_> = asked
            .iter()
            .filter(|name| {
                !served.lines().any(|line| {
                    line.strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.starts_with(['{', ' ']))
                })
            })
            .collect();
        if !missing.is_empty() {
            println!("not exported so far: {missing:?}");
        }
        missing.is_empty().then_some(())
    });
}
