//! `ah agent audit verify` (AU-2).

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::process::ExitCode;

use ah_fleet::audit::{BrokenAt, Start, Verified, verify as verify_log};
use ah_identity_provider::{Code, Explained};
use serde_json::json;

use crate::{errors, render, settings};

/// Verifies `file`, or standard input for `-`, and tells the outcome.
///
/// Exit code: 0 unbroken, 1 broken or unreadable.
pub fn verify(file: &Path, as_json: bool) -> ExitCode {
    let outcome = if file == Path::new("-") {
        verify_log(io::stdin().lock())
    } else {
        if let Some(fault) = settings::unreadable(file) {
            return errors::fail(&[fault]);
        }
        match File::open(file) {
            Ok(opened) => verify_log(BufReader::new(opened)),
            Err(error) => return errors::fail(&[settings::read_fault(file, &error)]),
        }
    };
    if as_json && let Err(error) = render::print_json(&outcome_json(&outcome)) {
        return errors::fail(&[
            Explained::new(Code::Other, "cannot print the outcome").cause(error)
        ]);
    }
    match outcome {
        Ok(verified) => {
            if !as_json {
                println!("{}", summary(file, &verified));
            }
            ExitCode::SUCCESS
        }
        Err(broken) => errors::fail(&[Explained::new(
            Code::Other,
            format!("audit log broken at {}:{}", file.display(), broken.line),
        )
        .cause(broken.what)
        .hint("lines before it are proved; compare the rest with a copy kept elsewhere")]),
    }
}

fn outcome_json(outcome: &Result<Verified, BrokenAt>) -> serde_json::Value {
    match outcome {
        Ok(verified) => json!({
            "lines": verified.lines,
            "first_sequence": verified.first_sequence,
            "last_sequence": verified.last_sequence,
            "last_hash": verified.last_hash,
            "starts_from": earlier(verified),
        }),
        Err(broken) => json!({
            "broken_at": { "line": broken.line, "what": broken.what.to_string() },
        }),
    }
}

/// Note the last hash elsewhere, to notice later that lines were cut from the end.
fn summary(file: &Path, verified: &Verified) -> String {
    let mut text = format!("{}: unbroken, {} lines", file.display(), verified.lines);
    if let (Some(first), Some(last)) = (verified.first_sequence, verified.last_sequence) {
        text.push_str(&format!(", sequence {first} to {last}"));
    }
    if let Some(hash) = &verified.last_hash {
        text.push_str(&format!(", last hash {hash}"));
    }
    if let Some(hash) = earlier(verified) {
        text.push_str(&format!(", goes on from {hash}"));
    }
    text
}

fn earlier(verified: &Verified) -> Option<&str> {
    match &verified.starts_from {
        Start::Earlier(hash) => Some(hash),
        Start::Beginning => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_to_note_elsewhere() {
        let verified = Verified {
            lines: 2,
            first_sequence: Some(1),
            last_sequence: Some(2),
            last_hash: Some("ab".into()),
            starts_from: Start::Beginning,
        };
        assert_eq!(
            summary(Path::new("audit.jsonl"), &verified),
            "audit.jsonl: unbroken, 2 lines, sequence 1 to 2, last hash ab"
        );
    }
}
