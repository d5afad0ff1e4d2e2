//! The command `oidc-discovery-provider`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    oidc_discovery_provider::cli::run(&arguments)
}
