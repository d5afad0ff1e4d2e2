//! The `spire-agent` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(ended) = ah_spire_plugin_host::launch::dispatch(std::env::args_os()) {
        return ended;
    }
    let arguments = std::env::args_os().skip(1);
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    spire_agent::cli::run(&arguments)
}
