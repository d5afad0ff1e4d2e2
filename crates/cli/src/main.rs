//! The `ah` command.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives memory back to the system after a flood; glibc's kept three quarters of it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    ah_cli::run(std::env::args_os().collect())
}
