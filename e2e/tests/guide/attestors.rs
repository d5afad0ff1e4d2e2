//! Node attestors beside the guide's, from the files of both programs to an agent that is known.

use std::path::Path;

use ah_e2e::Machine;
use ah_testkit::ca::TestCa;
use ah_testkit::process::{Process, eventually};
use ah_testkit::swtpm::{DevIdKind, Hierarchies, Maker};

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
cat > /etc/spire/sshpop.conf << EOF
    NodeAttestor "sshpop" {
        plugin_data {
            cert_authorities_path = "/etc/spire/ssh/ca.pub"
            canonical_domain = "example.org"
            agent_path_template = "/{{ .PluginName }}/{{ .Hostname }}"
        }
    }
EOF
sed -i '/^plugins {/r /etc/spire/sshpop.conf' /etc/spire/server.conf
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

// Inventory, NodeAttestor tpm_devid: a node whose TPM holds the certified key comes in, again and again; another key of the same TPM does not.
#[test]
fn tpm_devid_lets_a_tpm_in() {
    // The machine has its own /tmp, and sees this one.
    let place = Path::new("/var/tmp");
    let Some(maker) = Maker::below(place) else {
        return;
    };
    let Some(machine) = Machine::new() else {
        return;
    };
    let none = Hierarchies::default();
    let tpm = maker.make(none);
    let folder = tempfile::tempdir_in(place).expect("a temporary directory");
    let at = folder.path().display();
    let ca = TestCa::new("devices");
    for name in ["node", "other"] {
        let key = tpm.devid(DevIdKind::Ecdsa, "of-the-key", none);
        key.write(folder.path(), name, true);
        let leaf = ca.leaf().subject(name).issue_for(&key);
        std::fs::write(folder.path().join(format!("{name}.pem")), leaf).expect("it can be written");
    }
    let devid = ca.write(folder.path(), "devid").display().to_string();
    std::fs::write(folder.path().join("makers.pem"), maker.authorities())
        .expect("it can be written");
    let socket = tpm.socket().display().to_string();
    machine.shell(&format!(
        r#"{FILES}
cat > /etc/spire/tpm_devid.conf << EOF
    NodeAttestor "tpm_devid" {{
        plugin_data {{
            devid_ca_path = "{devid}"
            endorsement_ca_path = "{at}/makers.pem"
        }}
    }}
EOF
sed -i '/^plugins {{/r /etc/spire/tpm_devid.conf' /etc/spire/server.conf
agent tpm_devid 'tpm_device_path = "{socket}"
            devid_cert_path = "{at}/node.pem"
            devid_priv_path = "{at}/node.priv"
            devid_pub_path = "{at}/node.pub"
            devid_password = "of-the-key"' > /etc/spire/agent.conf
"#
    ));
    let mut server = machine.start("root", "spire-server run -config /etc/spire/server.conf");
    healthy(&machine, "spire-server", &mut server);
    for _ in 0..2 {
        let mut agent = machine.start("root", AGENT);
        healthy(&machine, "spire-agent", &mut agent);
        let shown = server_command(&machine, "agent list -attestationType tpm_devid");
        assert!(shown.contains("Found 1 attested agent"), "{shown}");
        assert!(shown.contains("/spire/agent/tpm_devid/"), "{shown}");
        agent.kill();
        machine.shell("rm -r /var/lib/spire/agent && mkdir /var/lib/spire/agent");
    }
    machine.shell("sed -i 's/node.pem/other.pem/' /etc/spire/agent.conf");
    let refused = machine.start("root", AGENT);
    refused.wait_for("it is not the key in the certificate of devid_cert_path");
    for line in server.lines().iter().chain(&refused.lines()) {
        assert!(!line.contains("of-the-key"), "{line}");
    }
}
