//! The manual part of the SPIFFE guide: a server, an agent, two registration entries, an access point and an
//! executor, with the guide's own lines.

use ah_e2e::Machine;
use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;

const SERVER_CONFIGURATION: &str = r#"cat > /etc/spire/server.conf << EOF
server {
    bind_address = "0.0.0.0"
    bind_port = "8081"
    socket_path = "/run/spire/server.sock"
    trust_domain = "example.org"
    data_dir = "/var/lib/spire/server"
    log_level = "INFO"
}

plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "/var/lib/spire/server/datastore.sqlite3"
        }
    }

    NodeAttestor "join_token" {
        plugin_data {}
    }

    KeyManager "disk" {
        plugin_data {
            keys_path = "/var/lib/spire/server/keys.json"
        }
    }
}
EOF"#;

const AGENT_CONFIGURATION: &str = r#"cat > /etc/spire/agent.conf << EOF
agent {
    data_dir = "/var/lib/spire/agent"
    log_level = "INFO"
    server_address = "spire-server.example.org"
    server_port = "8081"
    socket_path = "/run/spire/agent.sock"
    trust_domain = "example.org"
    join_token = "abc123def456..."
    insecure_bootstrap = true  # Remove in production
}

plugins {
    NodeAttestor "join_token" {
        plugin_data {}
    }

    KeyManager "disk" {
        plugin_data {
            directory = "/var/lib/spire/agent"
        }
    }

    WorkloadAttestor "unix" {
        plugin_data {
            discover_workload_path = true
        }
    }
}
EOF"#;

const TOKEN: &str = r"spire-server token generate \
    -socketPath /run/spire/server.sock \
    -ttl 3600";

pub(crate) const ENTRIES: &str = r#"# Get agent SPIFFE ID
AGENT_ID=$(spire-server agent list -socketPath /run/spire/server.sock | grep -oP 'spiffe://[^\s]+' | head -1)

# Register access point workload
spire-server entry create \
    -socketPath /run/spire/server.sock \
    -parentID "$AGENT_ID" \
    -spiffeID "spiffe://example.org/ah/serve" \
    -selector "unix:user:agent-harbor"

# Register executor workload
spire-server entry create \
    -socketPath /run/spire/server.sock \
    -parentID "$AGENT_ID" \
    -spiffeID "spiffe://example.org/ah/agent/executor-1" \
    -selector "unix:user:executor""#;

pub(crate) const ACCESS_POINT: &str = r#"ah agent access-point \
    --fleet-listen 0.0.0.0:4433 \
    --server-identity spiffe \
    --spiffe-socket /run/spire/agent.sock \
    --executor-san-uri-prefix "spiffe://example.org/ah/agent/""#;

const EXECUTOR: &str = r#"ah agent enroll \
    --remote-server https://access-point.example.org:4433 \
    --identity spiffe \
    --spiffe-socket /run/spire/agent.sock \
    --expected-server-id "spiffe://example.org/ah/serve""#;

/// The page that gives these lines to our users.
const PAGE: &str = include_str!("../../../docs/spire.md");

#[test]
fn the_page_about_spire_prints_what_is_run_here() {
    let runs = [
        SERVER_CONFIGURATION,
        AGENT_CONFIGURATION,
        TOKEN,
        ENTRIES,
        "spire-server run -config /etc/spire/server.conf",
        "spire-agent run -config /etc/spire/agent.conf",
    ];
    for lines in runs {
        assert!(PAGE.contains(lines), "docs/spire.md lacks\n{lines}");
    }
}

/// Server and agent as the guide sets them up.
pub(crate) struct Spire {
    _server: Process,
    agent: Process,
}

impl Spire {
    pub(crate) fn deploy(machine: &Machine) -> Self {
        Self::deploy_with(machine, "", "")
    }

    /// With `server` and `agent` at the end of their configuration files.
    fn deploy_with(machine: &Machine, server: &str, agent: &str) -> Self {
        let (server_end, agent_end) = (format!("{server}\nEOF"), format!("{agent}\nEOF"));
        Self::deploy_as(
            machine,
            &SERVER_CONFIGURATION.replace("\nEOF", &server_end),
            &AGENT_CONFIGURATION.replace("\nEOF", &agent_end),
        )
    }

    /// With these lines in place of the guide's.
    fn deploy_as(machine: &Machine, server: &str, agent: &str) -> Self {
        machine.shell(server);
        let server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
        healthy(machine, "spire-server", "/run/spire/server.sock");
        let printed = machine.shell(TOKEN).stdout;
        let token = printed
            .lines()
            .find_map(|line| line.strip_prefix("Token: "))
            .unwrap_or_else(|| panic!("no token in {printed:?}"));
        machine.shell(&agent.replace("abc123def456...", token));
        let agent = machine.start("root", "spire-agent run -config /etc/spire/agent.conf");
        healthy(machine, "spire-agent", "/run/spire/agent.sock");
        Self {
            _server: server,
            agent,
        }
    }
}

fn healthy(machine: &Machine, program: &str, socket: &str) {
    let check = [program, "healthcheck", "-socketPath", socket];
    eventually(&format!("{program} is healthy"), || {
        let answer = machine.command_as("root", check).output();
        answer.expect("it runs").status.success().then_some(())
    });
}

/// Waits until the agent has heard of the entry of `user`, as a person who goes on to the next command would: an executor
/// that comes first says so and tries again.
pub(crate) fn entitled(machine: &Machine, user: &str) {
    let fetch = "spire-agent api fetch x509 -socketPath /run/spire/agent.sock";
    eventually(&format!("there is an SVID for {user}"), || {
        let answer = machine.command_as(user, ["bash", "-c", fetch]).output();
        answer.expect("it runs").status.success().then_some(())
    });
}

// SP-1, SR-6
#[test]
fn the_manual_deployment_word_for_word() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let spire = Spire::deploy(&machine);
    let created = machine.shell(ENTRIES).stdout;
    assert_eq!(created.matches("Entry ID").count(), 2, "{created}");
    entitled(&machine, "executor");

    let access_point = machine.start("agent-harbor", ACCESS_POINT);
    access_point.wait_for("listening for executors");
    let executor = machine.start("executor", EXECUTOR);
    let enrolled = executor.wait_for(" enrolled executor.id=");
    assert!(
        enrolled.contains("spiffe://example.org/ah/agent/executor-1"),
        "{enrolled}"
    );

    // What the guide's troubleshooting part says to look at.
    let shown = machine.shell("spire-server entry show -socketPath /run/spire/server.sock");
    assert!(shown.stdout.starts_with("Found 2 entries"), "{shown:?}");
    let agents = machine.shell("spire-server agent list -socketPath /run/spire/server.sock");
    assert!(
        agents.stdout.starts_with("Found 1 attested agent"),
        "{agents:?}"
    );

    // A new agent process is the same agent, and nobody notices.
    let mut agent = spire.agent;
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    let _agent = machine.start("root", "spire-agent run -config /etc/spire/agent.conf");
    healthy(&machine, "spire-agent", "/run/spire/agent.sock");
    assert_eq!(executor.count("retrying in"), 0);
    let agents = machine.shell("spire-server agent count -socketPath /run/spire/server.sock");
    assert!(agents.stdout.starts_with("1 attested agent"), "{agents:?}");
}

// SR-1, ER-10: the SPIFFE part of the troubleshooting guide, for a workload that has no entry yet.
#[test]
fn no_svid_issued_is_found_and_mended_word_for_word() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let spire = Spire::deploy(&machine);
    let executor = machine.start("executor", EXECUTOR);
    executor.wait_for("error: no identity issued");
    spire.agent.wait_for("user:executor");

    let fetch = r"spire-agent api fetch x509 \
    -socketPath /run/spire/agent.sock \
    -write /tmp/svid";
    let mut refused = machine.command_as("executor", ["bash", "-c", fetch]);
    assert!(!refused.output().expect("it runs").status.success());

    machine.shell(ENTRIES);
    let access_point = machine.start("agent-harbor", ACCESS_POINT);
    access_point.wait_for("listening for executors");
    executor.wait_for(" enrolled executor.id=");
    let written = machine.shell_as("executor", fetch).stdout;
    assert!(written.contains("/tmp/svid.0.pem"), "{written}");
    let detailed = machine.shell_as("executor", "openssl x509 -in /tmp/svid.0.pem -noout -text");
    let uri = "URI:spiffe://example.org/ah/agent/executor-1";
    assert!(detailed.stdout.contains(uri), "{detailed:?}");
}

// EN-14, SP-1: the executor's SVID lives for 20 s, and is another every ten.
#[test]
fn rotations_by_the_agent_cost_no_session() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let _spire = Spire::deploy(&machine);
    machine.shell(&ENTRIES.replace(
        "-selector \"unix:user:executor\"",
        "-selector \"unix:user:executor\" -x509SVIDTTL 20",
    ));
    entitled(&machine, "executor");
    let access_point = machine.start("agent-harbor", ACCESS_POINT);
    access_point.wait_for("listening for executors");
    let executor = machine.start("executor", EXECUTOR);
    executor.wait_for_nth("enrollment moved to a new connection", 2);
    assert_eq!(executor.count("retrying in"), 0);
    assert_eq!(access_point.count("executor disconnected"), 0);
}

// Bar 13, SR-6: this agent polls once an hour, so that it can only have been told.
#[test]
fn an_entry_reaches_open_streams_without_a_poll() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let hourly = "    experimental { sync_interval = \"1h\" }\n    insecure_bootstrap";
    let agent = AGENT_CONFIGURATION.replace("    insecure_bootstrap", hourly);
    let spire = Spire::deploy_as(&machine, SERVER_CONFIGURATION, &agent);
    machine.shell(ENTRIES);
    let watch = "spire-agent api watch -socketPath /run/spire/agent.sock";
    let watching = machine.start("executor", watch);
    watching.wait_for("spiffe://example.org/ah/agent/executor-1");

    let with_agent_id = |line: &str| {
        let find = ENTRIES.lines().nth(1).unwrap_or_default();
        machine.shell(&format!("{find}\n{line}"));
    };
    with_agent_id(
        r#"spire-server entry create -socketPath /run/spire/server.sock -parentID "$AGENT_ID" \
    -spiffeID "spiffe://example.org/ah/agent/executor-2" -selector "unix:user:executor""#,
    );
    watching.wait_for("spiffe://example.org/ah/agent/executor-2");

    // A ban is heard, too, and ends what the workload was given.
    with_agent_id(
        r#"spire-server agent ban -socketPath /run/spire/server.sock -spiffeID "$AGENT_ID""#,
    );
    spire.agent.wait_for("the agent was banned on the server");
}

// Inventory section 10: upstream's names, on upstream's paths.
#[test]
fn health_and_metrics_of_both_are_told() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let watched = |health: u16, metrics: u16| {
        format!(
            "\nhealth_checks {{ listener_enabled = true bind_port = \"{health}\" }}\n\
             telemetry {{ Prometheus {{ port = {metrics} }} }}"
        )
    };
    let _spire = Spire::deploy_with(&machine, &watched(8001, 9001), &watched(8002, 9002));
    machine.shell(ENTRIES);
    for (health, part) in [(8001, "\"server\":{}"), (8002, "\"agent\":{}")] {
        for path in ["live", "ready"] {
            let ask = format!("curl -sf http://localhost:{health}/{path}");
            let told = eventually("it is ready", || {
                let answer = machine.command_as("root", ["bash", "-c", &ask]).output();
                let answer = answer.expect("curl runs");
                answer.status.success().then_some(answer.stdout)
            });
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(told.contains(part), "{told}");
        }
    }
    let server = machine
        .shell("curl -sf http://localhost:9001/metrics")
        .stdout;
    for name in [
        "spire_server_rpc_entry_v1_entry_batch_create_entry{",
        "spire_server_datastore_registration_entry_create{",
        "spire_server_started{",
    ] {
        assert!(server.contains(name), "{name} is not in\n{server}");
    }
    let agent = machine
        .shell("curl -sf http://localhost:9002/metrics")
        .stdout;
    assert!(agent.contains("spire_agent_started{"), "{agent}");
}

/// Repeats what is refused while the agent has not acknowledged, as an operator would.
const READY: &str = r#"s="-socketPath /run/spire/server.sock"
id() { spire-server localauthority x509 show $s -output json | grep -oP "\"$1\":\{\"authority_id\":\"\K[^\"]+"; }
ready() {
    until said=$(spire-server localauthority x509 "$@" $s 2>&1); do
        grep -q 'have not acknowledged the trust bundle' <<< "$said" || { echo "$said"; exit 1; }
        sleep 0.1
    done
    echo "$said"
}
"#;

// EN-14, SV-53: forced rotation with the agent's acknowledgements, and without `-force`.
#[test]
fn a_ca_is_replaced_by_hand_and_costs_no_session() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let spire = Spire::deploy(&machine);
    machine.shell(ENTRIES);
    entitled(&machine, "executor");
    let access_point = machine.start("agent-harbor", ACCESS_POINT);
    access_point.wait_for("listening for executors");
    let executor = machine.start("executor", EXECUTOR);
    executor.wait_for(" enrolled executor.id=");

    let told = machine.shell(&format!(
        "{READY}
        id active > /tmp/old
        spire-server localauthority x509 prepare $s
        ready activate -rehearse -authorityID $(id prepared)
        ready taint -authorityID $(cat /tmp/old)"
    ));
    assert!(
        told.stdout.contains("Rehearsed X.509 authority:"),
        "{told:?}"
    );
    // The hour that the SVIDs last has just begun: they are replaced because of the taint alone.
    executor.wait_for("enrollment moved to a new connection");
    spire.agent.wait_for("authorities are tainted or gone");
    assert_eq!(executor.count("retrying in"), 0);
    assert_eq!(access_point.count("executor disconnected"), 0);

    let told = machine.shell(&format!(
        "{READY}
        ready revoke -authorityID $(cat /tmp/old)"
    ));
    assert!(told.stdout.contains("Revoked X.509 authority:"), "{told:?}");
    let left = "spire-server bundle show -socketPath /run/spire/server.sock | grep -c BEGIN";
    assert_eq!(machine.shell(left).stdout.trim(), "1");
    let fetched = machine.shell_as(
        "executor",
        "spire-agent api fetch x509 -socketPath /run/spire/agent.sock -write /tmp
        openssl verify -CAfile /tmp/bundle.0.pem /tmp/svid.0.pem",
    );
    assert!(fetched.stdout.contains("svid.0.pem: OK"), "{fetched:?}");
}
