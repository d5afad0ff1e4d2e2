//! Compiles the protobufs that host and plugin speak, without any tool on PATH.

const FILES: [&str; 16] = [
    "agent_keymanager.proto",
    "agent_nodeattestor.proto",
    "agent_svidstore.proto",
    "agentstore.proto",
    "config.proto",
    "goplugin.proto",
    "identityprovider.proto",
    "init.proto",
    "metrics.proto",
    "server_bundlepublisher.proto",
    "server_credentialcomposer.proto",
    "server_keymanager.proto",
    "server_nodeattestor.proto",
    "server_notifier.proto",
    "server_upstreamauthority.proto",
    "workloadattestor.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Messages of these hold private keys, passwords and proofs: none can be printed.
        .skip_debug([
            ".spire.hostservice.server.identityprovider.v1",
            ".spire.plugin.agent.nodeattestor.v1",
            ".spire.plugin.agent.svidstore.v1",
            ".spire.plugin.server.nodeattestor.v1",
            ".spire.service.common.config.v1",
        ])
        .include_file("packages.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
