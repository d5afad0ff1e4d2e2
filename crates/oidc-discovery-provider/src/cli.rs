//! The command line: upstream's flags and exit codes, and `man`, which packages are made with.

use std::process::ExitCode;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::goflag::{FlagError, FlagSet, Flags};
use ah_spire_plugin::oidc::{OidcConfig, flags};

/// What `-version` says: the upstream release whose interfaces this program has.
const VERSION: &str = "1.14.1";

const SYNOPSIS: &str = "Serves the JWT keys of a trust domain to clients of OpenID Connect";

/// Runs the command line `arguments` (without the program's name) to its exit code.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    match arguments.split_first() {
        Some((first, rest)) if first == "man" => parsed(&FlagSet::manual(), rest, |flags| {
            match self::flags().write_manual(VERSION, SYNOPSIS, flags) {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }),
        _ => parsed(&flags(), arguments, serve),
    }
}

fn parsed(set: &FlagSet, arguments: &[String], then: impl FnOnce(&Flags) -> ExitCode) -> ExitCode {
    match set.parse(arguments) {
        Ok(flags) if flags.arguments().is_empty() => then(&flags),
        Ok(flags) => {
            let unexpected = flags.arguments().join(" ");
            eprint!(
                "Error: unexpected arguments: [{unexpected}]\n{}",
                set.usage()
            );
            ExitCode::FAILURE
        }
        Err(FlagError::Help { usage }) => {
            eprint!("{usage}");
            ExitCode::SUCCESS
        }
        Err(error @ FlagError::Wrong { .. }) => {
            eprint!("{error}");
            ExitCode::from(2)
        }
    }
}

fn serve(flags: &Flags) -> ExitCode {
    if flags.bool("version") {
        println!("{VERSION}");
        return ExitCode::SUCCESS;
    }
    let config = OidcConfig::load(flags, &|name| std::env::var(name).ok());
    let ended = config
        .map_err(|error| Explained::new(Code::Usage, error.to_string()))
        .and_then(crate::run::run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}
