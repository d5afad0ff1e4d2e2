//! Proof that a log is whole (AU-2).

use std::fmt;
use std::io::{self, BufRead, Read};

use super::chain::{Line, NO_PREVIOUS, hash};

/// Longest line that is read, in bytes; no event makes a longer one.
const LINE_LIMIT: u64 = 16 << 20;

/// A log whose every line carries the hash of the line before it.
///
/// That the last lines were not cut off, or the very last changed, a file cannot prove of itself: compare
/// `last_hash` with one that was kept elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many lines.
    pub lines: u64,
    /// `sequence` of the first line; `None` in an empty file.
    pub first_sequence: Option<u64>,
    /// `sequence` of the last line; `None` in an empty file.
    pub last_sequence: Option<u64>,
    /// SHA-256 of the last line, lower-case hex; `None` in an empty file.
    pub last_hash: Option<String>,
    /// What the first line follows.
    pub starts_from: Start,
}

/// What the first line of a file follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing: the log begins here.
    Beginning,
    /// The last line of an earlier file, which has this hash.
    Earlier(String),
}

/// Where a log is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BrokenAt {
    /// Number of the first bad line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its content is not what the line after it has the hash of.
    Changed,
    /// Its number does not follow from the line before: lines were removed, added or moved.
    Sequence {
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// It is not an audit line.
    NotALine(String),
    /// It has no line end: its writer was stopped in the middle.
    Torn,
    /// The file could not be read further.
    Read(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str(
                "its content does not have the hash that the next line carries: one of the two was changed",
            ),
            Self::Sequence { expected, found } if found > expected => write!(
                f,
                "sequence {found} where {expected} is expected: lines missing before it: {}",
                found - expected
            ),
            Self::Sequence { expected, found } => write!(
                f,
                "sequence {found} where {expected} is expected: lines were added or moved"
            ),
            Self::NotALine(why) => write!(f, "not an audit line: {why}"),
            Self::Torn => f.write_str("has no line end: a crash left it half written"),
            Self::Read(why) => write!(f, "cannot be read: {why}"),
        }
    }
}

/// Reads a log to its end and checks every line's number and hash. Holds one line at a time.
///
/// A file may begin anywhere in the chain, as it does after a rotation; [`Verified::starts_from`] says so.
/// Times are not compared: clocks are set back.
///
/// # Errors
/// Names the first bad line and what is wrong with it.
pub fn verify(mut log: impl BufRead) -> Result<Verified, BrokenAt> {
    let mut verified = Verified {
        lines: 0,
        first_sequence: None,
        last_sequence: None,
        last_hash: None,
        starts_from: Start::Beginning,
    };
    let mut text = Vec::new();
    loop {
        let number = verified.lines + 1;
        let broken = |what| BrokenAt { line: number, what };
        if !next_line(&mut log, &mut text).map_err(|e| broken(Fault::Read(e.to_string())))? {
            return Ok(verified);
        }
        if text.pop() != Some(b'\n') {
            return Err(broken(Fault::Torn));
        }
        let line: Line =
            serde_json::from_slice(&text).map_err(|e| broken(Fault::NotALine(e.to_string())))?;
        if let (Some(last), Some(hash)) = (verified.last_sequence, &verified.last_hash) {
            let expected = last.saturating_add(1);
            if line.sequence != expected {
                return Err(broken(Fault::Sequence {
                    expected,
                    found: line.sequence,
                }));
            }
            if line.previous != *hash {
                return Err(BrokenAt {
                    line: verified.lines,
                    what: Fault::Changed,
                });
            }
        } else {
            verified.first_sequence = Some(line.sequence);
            if line.previous != NO_PREVIOUS {
                verified.starts_from = Start::Earlier(line.previous);
            } else if line.sequence != 1 {
                return Err(broken(Fault::Sequence {
                    expected: 1,
                    found: line.sequence,
                }));
            }
        }
        verified.lines = number;
        verified.last_sequence = Some(line.sequence);
        verified.last_hash = Some(hash(&text));
    }
}

/// Reads one line with its line end. `false` at the end of the file.
fn next_line(log: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<bool> {
    into.clear();
    log.take(LINE_LIMIT).read_until(b'\n', into)?;
    if into.len() as u64 == LINE_LIMIT {
        return Err(io::Error::other("the line is longer than any audit line"));
    }
    Ok(!into.is_empty())
}
