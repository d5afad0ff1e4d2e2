//! What a running server is asked for by signals.

use std::path::Path;
use std::process::Command;

use ah_spire_attest::node::x509pop::{X509PopAgent, X509PopAgentConfig};
use ah_spire_attest::node::{AgentHalf, Conversation};
use ah_spire_wire::Channel;
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{
    AttestAgentRequest, attest_agent_request, attest_agent_response,
};
use ah_testkit::ca::{LeafFiles, TestCa};
use ah_testkit::process::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::server::{PROGRAM, Server, here, params, place};

const CONF: &str = r#"server { bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" } plugins { DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" } } NodeAttestor "x509pop" { plugin_data_file = "/etc/spire/x509pop.conf" } KeyManager "memory" { plugin_data_file = "/etc/spire/keys.conf" } }"#;

/// An attestation by x509pop, over the wire.
async fn attest(socket: &Path, files: &LeafFiles) -> Result<(), Status> {
    let config = X509PopAgentConfig {
        private_key_path: files.key.clone(),
        certificate_path: files.cert.clone(),
        ..X509PopAgentConfig::default()
    };
    let agent = X509PopAgent::configure(config).await.unwrap();
    let (payload, mut talk) = agent.begin().await.unwrap();
    let channel = Channel::unix(socket).await.unwrap();
    let mut client = AgentClient::with_origin(channel, Channel::origin());
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let first = params("x509pop", payload.expose());
    requests.send(first).await.unwrap();
    let answers = client.attest_agent(ReceiverStream::new(stream)).await?;
    let mut answers = answers.into_inner();
    loop {
        let answer = answers.message().await?.unwrap();
        let attest_agent_response::Step::Challenge(challenge) = answer.step.unwrap() else {
            return Ok(());
        };
        let answer = talk.answer(&challenge).await.unwrap();
        let step = attest_agent_request::Step::ChallengeResponse(answer);
        let request = AttestAgentRequest { step: Some(step) };
        requests.send(request).await.unwrap();
    }
}

fn signal(server: &Server, signal: Signal) {
    let id = Pid::from_raw(server.child.id().try_into().unwrap());
    kill(id, signal).unwrap();
}

// Inventory section 12: SIGUSR1 (POSIX). SIGHUP does the same, as with our other programs; upstream's end by it.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_told_what_their_files_say_now() {
    let folder = place(CONF);
    let root = folder.path().to_owned();
    let etc = root.join("etc");
    let (old, new) = (TestCa::new("old.test"), TestCa::new("new.test"));
    let leaf = |ca: &TestCa, name: &str| ca.leaf().subject(name).issue().write(&etc, name);
    let (old_leaf, new_leaf) = (leaf(&old, "old-node"), leaf(&new, "new-node"));
    old.write(&etc, "old");
    new.write(&etc, "new");
    let tell = |text: &str| {
        let text = here(text, &root);
        std::fs::write(etc.join("x509pop.conf"), text).unwrap();
    };
    tell(r#"ca_bundle_path = "/etc/spire/old.pem""#);
    std::fs::write(etc.join("keys.conf"), "").unwrap();
    let server = Server::start_in(folder, Command::new(PROGRAM));
    let socket = root.join("run/server.sock");
    let told = |what: &str, times: usize| {
        eventually(what, || {
            (server.log().matches(what).count() == times).then_some(())
        });
    };
    attest(&socket, &old_leaf).await.unwrap();
    let refused = attest(&socket, &new_leaf).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    // What cannot be used is told, and nothing changes.
    tell(r#"ca_bundle_path = "/etc/spire/none.pem""#);
    signal(&server, Signal::SIGUSR1);
    told("it goes on as it was", 1);
    assert!(server.log().contains("none.pem"), "{}", server.log());
    assert!(attest(&socket, &new_leaf).await.is_err());
    attest(&socket, &old_leaf).await.unwrap();

    tell(r#"ca_bundle_path = "/etc/spire/new.pem""#);
    signal(&server, Signal::SIGUSR1);
    told("the plugin was configured anew", 1);
    attest(&socket, &new_leaf).await.unwrap();
    assert!(attest(&socket, &old_leaf).await.is_err());

    tell(r#"ca_bundle_paths = ["/etc/spire/new.pem", "/etc/spire/old.pem"]"#);
    std::fs::write(etc.join("keys.conf"), "# another").unwrap();
    signal(&server, Signal::SIGHUP);
    told("the plugin was configured anew", 2);
    attest(&socket, &old_leaf).await.unwrap();
    attest(&socket, &new_leaf).await.unwrap();
    told("a KeyManager keeps what it was started with", 1);
}
