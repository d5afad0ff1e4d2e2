//! Lines and the chain of hashes through them.

use std::time::SystemTime;

use ah_identity_provider::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::Entry;

/// `previous` of a log's first line.
pub(super) const NO_PREVIOUS: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";

/// One line as it is read, and as it is written of a borrowed entry. Members unknown to this version are tolerated:
/// the hash covers them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line<E = Entry> {
    /// RFC 3339, UTC, milliseconds.
    pub(super) time: String,
    pub(super) sequence: u64,
    #[serde(flatten)]
    pub(super) entry: E,
    pub(super) previous: String,
}

/// Where a chain stands: what the next line has to carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Number of the last line; 0 before the first.
    pub(super) sequence: u64,
    /// Hash of the last line.
    pub(super) hash: String,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            sequence: 0,
            hash: NO_PREVIOUS.to_owned(),
        }
    }
}

impl Chain {
    /// The chain after `line`, given without its line end. `None` when that is not an audit line.
    pub(super) fn after(line: &[u8]) -> Option<Self> {
        let parsed: Line = serde_json::from_slice(line).ok()?;
        Some(Self {
            sequence: parsed.sequence,
            hash: hash(line),
        })
    }

    /// Appends the next line to `lines`, without its line end.
    pub(super) fn extend(&mut self, at: SystemTime, entry: &Entry, lines: &mut Vec<u8>) {
        let start = lines.len();
        let line = Line {
            time: timestamp(at),
            sequence: self.sequence + 1,
            entry,
            previous: std::mem::take(&mut self.hash),
        };
        // Strings and numbers alone, in memory: there is nothing that could fail.
        let _ = serde_json::to_writer(&mut *lines, &line);
        self.sequence = line.sequence;
        self.hash = hash(lines.get(start..).unwrap_or_default());
    }
}

/// Lower-case hex SHA-256 of a line without its line end.
pub(super) fn hash(line: &[u8]) -> String {
    hex(&Sha256::digest(line))
}

fn timestamp(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(&format).unwrap_or_default()
}
