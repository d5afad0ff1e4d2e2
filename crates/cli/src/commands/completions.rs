//! `ah agent completions` and `ah agent man`.

use std::io;
use std::process::ExitCode;

use ah_identity_provider::{Code, Explained};

use crate::args::{CompletionsArgs, ManArgs};
use crate::{completions, errors};

/// Prints the completion script of a shell.
pub fn print(args: &CompletionsArgs) -> ExitCode {
    match completions::write_completions(args.shell, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has what it wanted, as in `… | head`.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => errors::fail(&[Explained::new(Code::Other, "cannot print completions").cause(e)]),
    }
}

/// Writes the man pages.
pub fn man(args: &ManArgs) -> ExitCode {
    match completions::write_man_pages(&args.dir) {
        Ok(written) => {
            eprintln!("{} pages written to {}", written.len(), args.dir.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            let text = format!("cannot write man pages to {}", args.dir.display());
            errors::fail(&[Explained::new(Code::Other, text)
                .cause(e)
                .hint("name a directory that this user may write to")])
        }
    }
}
