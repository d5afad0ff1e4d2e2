//! Compiles the fleet protocol without any tool on PATH.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/ah/fleet/v1/fleet.proto";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .boxed("ah.fleet.v1.ExecutorMessage.kind.hello")
        .codec_path("crate::codec::FleetCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
