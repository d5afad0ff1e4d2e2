//! Compiles the protobufs of SPIFFE and SPIRE without any tool on PATH.

const FILES: [&str; 20] = [
    "agent.proto",
    "agent_debug.proto",
    "agent_logger.proto",
    "broker.proto",
    "bundle.proto",
    "changes.proto",
    "common.proto",
    "debug.proto",
    "delegatedidentity.proto",
    "entry.proto",
    "envoy_secret.proto",
    "envoy_tls.proto",
    "health.proto",
    "journal.proto",
    "localauthority.proto",
    "logger.proto",
    "rotation.proto",
    "svid.proto",
    "trustdomain.proto",
    "workload.proto",
];

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // For clients that ask what is served: without the comments.
    let mut told = descriptors.clone();
    for file in &mut told.file {
        file.source_code_info = None;
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), told.encode_to_vec())?;
    serve_encoded()?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".spire.api.types")
        // Messages of these hold private keys and tokens: none can be printed.
        .skip_debug([
            ".envoy.config.core.v3.DataSource",
            ".envoy.extensions.transport_sockets.tls.v3",
            ".envoy.service.discovery.v3.DiscoveryResponse",
            ".spiffe.broker.FetchJWTSVIDResponse",
            ".spiffe.broker.JWTSVID",
            ".spiffe.broker.SubscribeToX509SVIDResponse",
            ".spiffe.broker.X509SVID",
            ".spire.api.agent.delegatedidentity.v1",
            ".spire.api.server.agent.v1",
            ".spire.api.server.svid.v1",
            ".spire.api.types.AttestationData",
            ".spire.api.types.JWTSVID",
            ".spire.api.types.JoinToken",
            ".spire.api.types.WITSVID",
            ".JWTSVID",
            ".JWTSVIDResponse",
            ".ValidateJWTSVIDRequest",
            ".WITSVID",
            ".WITSVIDResponse",
            ".X509SVID",
            ".X509SVIDResponse",
        ])
        .include_file("packages.rs")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The service of entries once more, for a server whose answers are made of entries that it holds encoded.
fn serve_encoded() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["entry.proto"], ["proto"])?;
    let package = ".spire.api.server.entry.v1";
    let folder =
        std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("encoded");
    std::fs::create_dir_all(&folder)?;
    let mut service = tonic_prost_build::configure()
        .out_dir(folder)
        .build_transport(false)
        .build_client(false)
        .extern_path(".spire.api.types", "crate::types")
        .extern_path(package, "crate::server::entry");
    for answer in [
        "GetAuthorizedEntriesResponse",
        "SyncAuthorizedEntriesResponse",
    ] {
        service = service.extern_path(
            format!("{package}.{answer}"),
            format!("crate::encoded::{answer}"),
        );
    }
    Ok(service.compile_fds(descriptors)?)
}
