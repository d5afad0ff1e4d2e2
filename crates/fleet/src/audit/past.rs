//! What happened before this process, read back from a log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Entry;
use super::chain::Line;

/// How much of the end of a log is read: some ten thousand lines.
const TAIL_BYTES: u64 = 8 << 20;

/// An entry of a log, and when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// When.
    pub at: OffsetDateTime,
    /// What.
    pub entry: Entry,
}

/// The `most` newest entries that are `wanted` among the last 8 MiB of the log `path`, newest first.
///
/// Lines that are no audit lines are passed over: proving the log whole is [`super::verify`]'s work. Blocks.
pub fn past(
    path: &Path,
    most: usize,
    wanted: impl Fn(OffsetDateTime, &Entry) -> bool,
) -> io::Result<Vec<Past>> {
    tail(path, TAIL_BYTES, most, |_| true, wanted)
}

/// As [`past`], of the last `bytes` of the log, 8 MiB at most. `plausible` looks at a line before it is parsed.
pub(crate) fn tail(
    path: &Path,
    bytes: u64,
    most: usize,
    plausible: impl Fn(&str) -> bool,
    wanted: impl Fn(OffsetDateTime, &Entry) -> bool,
) -> io::Result<Vec<Past>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(bytes.min(TAIL_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut found = std::collections::VecDeque::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        let Ok(line) = str::from_utf8(&line) else {
            continue;
        };
        if !plausible(line) {
            continue;
        }
        let Ok(line) = serde_json::from_str::<Line>(line) else {
            continue;
        };
        let Ok(at) = OffsetDateTime::parse(&line.time, &Rfc3339) else {
            continue;
        };
        if wanted(at, &line.entry) {
            if found.len() >= most {
                found.pop_front();
            }
            found.push_back(Past {
                at,
                entry: line.entry,
            });
        }
    }
    Ok(found.into_iter().rev().collect())
}
