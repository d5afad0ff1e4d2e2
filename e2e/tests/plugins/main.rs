//! Plugins built on upstream's SDK, in Go, loaded by `spire-server` and `spire-agent` (docs/plugins/external.md).

mod bundles;
mod rig;

use ah_testkit::process::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use rig::{Rig, children, is_gone};

const WORKLOAD: &str = "spiffe://example.org/workload";

/// The plugin's block of a configuration.
fn block(rig: &Rig, kind: &str, name: &str, role: &str, data: &str) -> String {
    format!(
        "{kind} {name:?} {{\n  plugin_cmd = {:?}\n  plugin_args = [{role:?}]\n  plugin_checksum = {:?}\n  {data}\n}}\n",
        rig.plugin, rig.checksum
    )
}

fn server_plugins(rig: &Rig) -> String {
    let keys = format!(
        "plugin_data {{ path = {:?} }}",
        rig.path("server-keys.json")
    );
    block(
        rig,
        "NodeAttestor",
        "secret",
        "server-node",
        "plugin_data { secret = \"s3cret\" }",
    ) + &block(rig, "KeyManager", "file", "server-keys", &keys)
}

fn agent_plugins(rig: &Rig, secret: &str) -> String {
    let keys = format!("plugin_data {{ path = {:?} }}", rig.path("agent-keys.json"));
    let node = format!("plugin_data {{ secret = {secret:?} node = \"n1\" }}");
    let data = format!("plugin_data_file = {:?}", rig.path("workload.hcl"));
    block(rig, "NodeAttestor", "secret", "agent-node", &node)
        + &block(rig, "KeyManager", "file", "agent-keys", &keys)
        + &block(rig, "WorkloadAttestor", "program", "workload", &data)
}

// Inventory section 9: `spire.plugin.{server,agent}.nodeattestor.v1.NodeAttestor`, `keymanager.v1.KeyManager`,
// `spire.plugin.agent.workloadattestor.v1.WorkloadAttestor`, and what a plugin asks of its host:
// `spire.hostservice.server.agentstore.v1.AgentStore`, `spire.hostservice.server.identityprovider.v1.IdentityProvider`.
#[test]
fn plugins_on_upstreams_sdk_attest_a_node_and_a_workload_and_keep_the_keys() {
    let Some(rig) = Rig::new() else { return };
    rig.write("workload.hcl", "label = \"one\"");
    let mut server = rig.server(&server_plugins(&rig));
    rig.ok(&[
        "spire-server",
        "entry",
        "create",
        "-socketPath",
        &rig.path("server.sock"),
        "-parentID",
        "spiffe://example.org/spire/agent/secret/n1",
        "-spiffeID",
        WORKLOAD,
        "-selector",
        "program:label:one",
        "-selector",
        "program:program:spire-agent",
    ]);
    let mut agent = rig.agent(&agent_plugins(&rig, "s3cret"));
    let socket = rig.path("agent.sock");
    let fetch = [
        "spire-agent",
        "api",
        "fetch",
        "x509",
        "-socketPath",
        &socket,
    ];
    let served = || {
        rig.run(&fetch)
            .filter(|told| told.contains(WORKLOAD))
            .map(|_| ())
    };
    eventually("the workload is served", served);

    // What the plugin did in between: it used every service of the server.
    let line = server.wait_for("got the server's identity");
    assert!(line.contains("level=info"), "{line}");
    assert!(
        line.contains("id=\"spiffe://example.org/spire/server\""),
        "{line}"
    );
    assert!(
        line.contains("plugin_name=secret") && line.contains("external=true"),
        "{line}"
    );
    server.wait_for("answer=NotFound");
    let metrics = rig.metrics();
    assert!(
        metrics.contains("spire_server_secret_attested{"),
        "{metrics}"
    );
    let shown = rig.ok(&[
        "spire-server",
        "agent",
        "show",
        "-socketPath",
        &rig.path("server.sock"),
        "-spiffeID",
        "spiffe://example.org/spire/agent/secret/n1",
    ]);
    assert!(shown.contains("secret:node:n1"), "{shown}");
    assert!(rig.exists("server-keys.json") && rig.exists("agent-keys.json"));

    // SIGUSR1: the plugin is told what is new in its file.
    rig.write("workload.hcl", "label = \"two\"");
    agent.signal(Signal::SIGUSR1);
    eventually("the selectors changed", || {
        rig.run(&fetch).is_none().then_some(())
    });
    rig.write("workload.hcl", "label = \"one\"");
    agent.signal(Signal::SIGUSR1);
    eventually("the selectors are back", served);

    // A plugin that is killed comes back, with its configuration.
    for plugin in children(agent.pid()) {
        kill(Pid::from_raw(plugin), Signal::SIGKILL).unwrap();
    }
    agent.wait_for("The plugin does not run, and will be started again");
    agent.wait_for_nth("The plugin was started again", 3);
    eventually("the workload is served again", served);

    // The agent's own key was in the plugin all the time: it needs no other attestation.
    let plugins = children(agent.pid());
    assert_eq!(plugins.len(), 3);
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success(), "{}", agent.lines().join("\n"));
    assert!(plugins.iter().all(|plugin| is_gone(*plugin)));
    let _agent = rig.agent(&agent_plugins(&rig, "s3cret"));
    eventually("the workload is served by the next agent", served);
    assert_eq!(server.count("Agent attestation request completed"), 1);

    // No plugin outlives its server, however that ends.
    let plugins = children(server.pid());
    assert_eq!(plugins.len(), 2);
    server.kill();
    eventually("the server's plugins are gone", || {
        plugins.iter().all(|plugin| is_gone(*plugin)).then_some(())
    });
}

#[test]
fn what_a_plugin_says_no_to_is_told() {
    let Some(rig) = Rig::new() else { return };
    rig.write("workload.hcl", "label = \"one\"");
    let server = rig.server(&server_plugins(&rig));
    let agent = rig.agent(&agent_plugins(&rig, "wrong"));
    let line = agent.wait_for("the node does not have the secret");
    assert!(line.contains("nodeattestor(secret): "), "{line}");
    server.wait_for("nodeattestor(secret): the node does not have the secret");

    // `validate` asks the plugins, and names what is not there.
    rig.write("workload.hcl", "label = \"refused\"");
    let told = rig.validate("agent", &agent_plugins(&rig, "s3cret"));
    assert!(
        told.contains("WorkloadAttestor \"program\": plugin_data is not valid"),
        "{told}"
    );
    assert!(told.contains("this label is refused"), "{told}");
    rig.write("workload.hcl", "label = \"one\"");
    let told = rig.validate("agent", &agent_plugins(&rig, "s3cret"));
    assert!(
        told.contains("SPIRE agent configuration file is valid."),
        "{told}"
    );
    let more = server_plugins(&rig) + &block(&rig, "DataStore", "sql", "server-keys", "");
    let told = rig.validate("server", &more);
    assert!(told.contains("DataStore"), "{told}");
    // A plugin that needs the server's services gets them here, too.
    let told = rig.validate("server", &server_plugins(&rig));
    assert!(
        told.contains("SPIRE server configuration file is valid."),
        "{told}"
    );
    // One of another type: the plugin itself says that it is none of these.
    let wrong = server_plugins(&rig).replace("server-node", "agent-keys");
    let told = rig.validate("server", &wrong);
    assert!(told.contains("NodeAttestor \"secret\""), "{told}");
    assert!(told.contains("This binary is a plugin"), "{told}");
}
