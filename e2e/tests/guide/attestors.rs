//! Node attestors beside the guide's, from the files of both programs to an agent that is known.

use ah_e2e::Machine;
use ah_testkit::process::{Process, eventually};

const FILES: &str = r#"
mkdir -p /etc/spire /run/spire /var/lib/spire/server /var/lib/spire/agent
cat > /etc/spire/server.conf << EOF
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "/run/spire/server.sock"
    trust_domain = "example.org"
    data_dir = "/var/lib/spire/server"
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "/var/lib/spire/server/datastore.sqlite3"
        }
    }
    KeyManager "memory" {
        plugin_data {}
    }
    NodeAttestor "http_challenge" {
        plugin_data {
            allowed_dns_patterns = ["[.]example[.]org$"]
        }
    }
    NodeAttestor "k8s_psat" {
        plugin_data {
            clusters = {
                "here" = {
                    service_account_allow_list = ["spire:spire-agent"]
                    kube_config_file = "/etc/spire/kubeconfig"
                }
            }
        }
    }
    NodeAttestor "k8s_sat" {
        plugin_data {
            clusters = {
                "here" = {
                    service_account_allow_list = ["spire:spire-agent"]
                    use_token_review_api_validation = true
                }
            }
        }
    }
    NodeAttestor "gcp_iit" {
        plugin_data {
            projectid_allow_list = ["project-1"]
        }
    }
}
EOF
agent() {
    cat << EOF
agent {
    server_address = "127.0.0.1"
    server_port = "8081"
    socket_path = "/run/spire/agent.sock"
    trust_domain = "example.org"
    data_dir = "/var/lib/spire/agent"
    insecure_bootstrap = true
}
plugins {
    KeyManager "disk" {
        plugin_data {
            directory = "/var/lib/spire/agent"
        }
    }
    WorkloadAttestor "unix" {
        plugin_data {}
    }
    NodeAttestor "$1" {
        plugin_data {
            $2
        }
    }
}
EOF
}
agent http_challenge 'hostname = "access-point.example.org"' > /etc/spire/agent.conf
agent k8s_psat 'cluster = "here"
            token_path = "/etc/spire/token"' > /etc/spire/pod.conf
echo of-a-pod > /etc/spire/token
"#;

const AGENT: &str = "spire-agent run -config /etc/spire/agent.conf";
const ID: &str = "spiffe://example.org/spire/agent/http_challenge/access-point.example.org";

fn server_command(machine: &Machine, command: &str) -> String {
    let line = format!("spire-server {command} -socketPath /run/spire/server.sock");
    machine.shell(&line).stdout
}

fn healthy(machine: &Machine, what: &str, process: &mut Process) {
    let check = format!(
        "{what} healthcheck -socketPath /run/spire/{}.sock",
        &what[6..]
    );
    eventually(&check, || {
        assert!(process.is_running(), "{}", process.lines().join("\n"));
        let asked = machine.command_as("root", check.split(' ')).output();
        asked.expect("it runs").status.success().then_some(())
    });
}

// Inventory, NodeAttestor http_challenge: a host that answers at its name comes in once; another one in its place is refused until it is evicted.
#[test]
fn http_challenge_lets_a_host_in_once() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.shell(FILES);
    let mut server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
    healthy(&machine, "spire-server", &mut server);
    let mut agent = machine.start("root", AGENT);
    healthy(&machine, "spire-agent", &mut agent);
    let shown = server_command(&machine, &format!("agent show -spiffeID {ID}"));
    assert!(
        shown.contains("http_challenge:hostname:access-point.example.org"),
        "{shown}"
    );
    agent.kill();

    machine.shell("rm -r /var/lib/spire/agent && mkdir /var/lib/spire/agent");
    let mut again = machine.start("root", AGENT);
    again.wait_for("attestation data has already been used to attest an agent");
    again.kill();
    let evicted = server_command(&machine, &format!("agent evict -spiffeID {ID}"));
    assert!(evicted.contains("Agent evicted"), "{evicted}");
    let mut again = machine.start("root", AGENT);
    healthy(&machine, "spire-agent", &mut again);
}

// Inventory, NodeAttestor k8s_psat: what is missing on the server is told where it is missed, and no token is told at all.
#[test]
fn a_cluster_that_cannot_be_asked_is_named() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.shell(FILES);
    let mut server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
    healthy(&machine, "spire-server", &mut server);
    let pod = machine.start("root", "spire-agent run -config /etc/spire/pod.conf");
    let told = server.wait_for("Node attestation failed");
    let expected = "unable to validate token with TokenReview API for cluster";
    assert!(
        told.contains(expected) && told.contains("/etc/spire/kubeconfig"),
        "{told}"
    );
    pod.wait_for(expected);
    for line in server.lines().iter().chain(&pod.lines()) {
        assert!(!line.contains("of-a-pod"), "{line}");
    }
}

/// A host key of a CA that the server trusts, and the agent's file that names it.
const SSH: &str = r#"
mkdir /etc/spire/ssh && cd /etc/spire/ssh
ssh-keygen -q -t ed25519 -N '' -f ca
ssh-keygen -q -t rsa -b 2048 -N '' -f host
ssh-keygen -q -s ca -I node-7 -h -n node-7.example.org -V 20200101:21000101 host.pub
cat >> /etc/spire/server.conf << EOF
plugins {
    NodeAttestor "sshpop" {
        plugin_data {
            cert_authorities_path = "/etc/spire/ssh/ca.pub"
            canonical_domain = "example.org"
            agent_path_template = "/{{ .PluginName }}/{{ .Hostname }}"
        }
    }
}
EOF
agent sshpop 'host_key_path = "/etc/spire/ssh/host"
            host_cert_path = "/etc/spire/ssh/host-cert.pub"' > /etc/spire/agent.conf
"#;

// Inventory, NodeAttestor sshpop: a host whose SSH certificate is of a trusted CA comes in, again and again; one whose key is another's does not.
#[test]
fn sshpop_lets_a_certified_host_in() {
    if !ah_testkit::need("ssh-keygen") {
        return;
    }
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.shell(&format!("{FILES}{SSH}"));
    let mut server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
    healthy(&machine, "spire-server", &mut server);
    for _ in 0..2 {
        let mut agent = machine.start("root", AGENT);
        healthy(&machine, "spire-agent", &mut agent);
        let id = "spiffe://example.org/spire/agent/sshpop/node-7";
        let shown = server_command(&machine, &format!("agent show -spiffeID {id}"));
        assert!(shown.contains("Attestation type  : sshpop"), "{shown}");
        agent.kill();
        machine.shell("rm -r /var/lib/spire/agent && mkdir /var/lib/spire/agent");
    }
    machine.shell("cd /etc/spire/ssh && ssh-keygen -q -t ed25519 -N '' -f ca <<< y");
    machine.shell(
        "cd /etc/spire/ssh && ssh-keygen -q -s ca -I node-7 -h -n node-7.example.org host.pub",
    );
    let refused = machine.start("root", AGENT);
    refused.wait_for("no authorities for hostname: node-7.example.org");
}
