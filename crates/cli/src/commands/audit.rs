//! `ah agent audit verify` (AU-2).

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use ah_identity_provider::{Code, Explained};
use serde::Serialize;

use crate::{errors, render, settings};

/// An audit log whose chain is unbroken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Whole {
    /// How many lines it has.
    pub lines: u64,
    /// Sequence of the first line; `None` for an empty log.
    pub first_sequence: Option<u64>,
    /// Sequence of the last line.
    pub last_sequence: Option<u64>,
    /// Hash of the last line: note it elsewhere, to notice later that lines were cut from the end.
    pub last_hash: Option<String>,
    /// Hash of the line before the first, when the log goes on from an earlier file.
    pub starts_from: Option<String>,
}

/// The first bad line of an audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

/// Verifies `file`, or standard input for `-`, with `verify`, and tells the outcome.
///
/// Exit code: 0 unbroken, 1 broken or unreadable.
pub fn verify(
    file: &Path,
    json: bool,
    verify: impl FnOnce(&mut dyn BufRead) -> Result<Whole, Broken>,
) -> ExitCode {
    let outcome = if file == Path::new("-") {
        verify(&mut io::stdin().lock())
    } else {
        if let Some(fault) = settings::unreadable(file) {
            return errors::fail(&[fault]);
        }
        match File::open(file) {
            Ok(opened) => verify(&mut BufReader::new(opened)),
            Err(error) => return errors::fail(&[settings::read_fault(file, &error)]),
        }
    };
    tell(file, json, &outcome)
}

fn tell(file: &Path, json: bool, outcome: &Result<Whole, Broken>) -> ExitCode {
    let shown = file.display();
    if json {
        let printed = match outcome {
            Ok(whole) => render::print_json(whole),
            Err(broken) => render::print_json(&serde_json::json!({ "broken_at": broken })),
        };
        if let Err(error) = printed {
            let fault = Explained::new(Code::Other, "cannot print the outcome").cause(error);
            return errors::fail(&[fault]);
        }
    }
    match outcome {
        Ok(whole) => {
            if !json {
                println!("{}", summary(file, whole));
            }
            ExitCode::SUCCESS
        }
        Err(broken) => errors::fail(&[Explained::new(
            Code::Other,
            format!("audit log broken at {shown}:{}", broken.line),
        )
        .cause(&broken.what)
        .hint("lines before it are proved; compare the rest with a copy kept elsewhere")]),
    }
}

fn summary(file: &Path, whole: &Whole) -> String {
    let mut text = format!("{}: unbroken, {} lines", file.display(), whole.lines);
    if let (Some(first), Some(last)) = (whole.first_sequence, whole.last_sequence) {
        text.push_str(&format!(", sequence {first} to {last}"));
    }
    if let Some(hash) = &whole.last_hash {
        text.push_str(&format!(", last hash {hash}"));
    }
    if let Some(hash) = &whole.starts_from {
        text.push_str(&format!(", goes on from {hash}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_to_note_elsewhere() {
        let whole = Whole {
            lines: 2,
            first_sequence: Some(1),
            last_sequence: Some(2),
            last_hash: Some("ab".into()),
            starts_from: None,
        };
        assert_eq!(
            summary(Path::new("audit.jsonl"), &whole),
            "audit.jsonl: unbroken, 2 lines, sequence 1 to 2, last hash ab"
        );
    }

    // AU-2
    #[test]
    fn a_broken_log_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let second_is_bad = |reader: &mut dyn BufRead| {
            let lines = reader.lines().count();
            Err(Broken {
                line: lines as u64,
                what: "the hash does not fit".into(),
            })
        };
        let code = verify(&path, false, second_is_bad);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(1)));
    }
}
