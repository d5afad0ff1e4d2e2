//! The `ah` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ah_cli::run(std::env::args_os().collect())
}
