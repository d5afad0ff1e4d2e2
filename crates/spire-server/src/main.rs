//! The command `spire-server`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives back what reading a hundred thousand entries took; glibc's keeps it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    if let Some(ended) = ah_spire_plugin_host::launch::dispatch(std::env::args_os()) {
        return ended;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(spire_server::cli::main(&arguments))),
        Err(error) => {
            eprintln!("Error: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
