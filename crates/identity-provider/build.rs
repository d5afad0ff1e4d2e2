//! Compiles the Workload API's client without any tool on PATH.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/workload.proto";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        // Messages hold private keys: none can be printed.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
