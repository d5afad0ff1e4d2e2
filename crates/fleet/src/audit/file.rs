//! The log as a file: locked, appended to, repaired, rotated.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ah_identity_provider::{Code, Explained};

use super::chain::Chain;

/// How much is read at a time when looking for the last line from the end.
const BLOCK: u64 = 65_536;

/// Longest line that is still believed to be one of ours, in bytes.
const LINE_LIMIT: u64 = 4 << 20;

/// How much of a torn line is kept in the event that reports it, in bytes. The longest line an event
/// makes is well below; what is above is a file system's padding.
const TORN_LIMIT: usize = 65_536;

/// An open log file with its lock.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
}

/// What opening a file found at its end.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) log: LogFile,
    /// Where its chain stands; `None` for a file without a line.
    pub(super) chain: Option<Chain>,
    /// What was cut from its end (AU-2).
    pub(super) torn: Option<String>,
}

impl LogFile {
    /// Opens `path`, makes it when there is none, takes its lock and cuts a torn last line.
    pub(super) fn open(path: &Path) -> Result<Opened, Explained> {
        let explain = |e: io::Error| explain(path, &e);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(explain)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(cannot_open(path)
                    .cause("another process writes to it")
                    .hint(
                        "two access points need an audit log each: give --audit-log another path",
                    ));
            }
            Err(TryLockError::Error(e)) => return Err(explain(e)),
        }
        let meta = file.metadata().map_err(explain)?;
        if !meta.is_file() {
            return Err(cannot_open(path)
                .cause("it is not a regular file")
                .hint("give --audit-log a file, `-` for standard output, or journald"));
        }
        let whole = line_end_before(&mut file, meta.len()).map_err(explain)?;
        let chain = last_line(&mut file, whole)
            .map_err(explain)?
            .map(|line| Chain::after(&line).ok_or_else(|| not_a_log(path)))
            .transpose()?;
        let torn = if whole < meta.len() {
            if chain.is_none() && !starts_like_a_line(&mut file).map_err(explain)? {
                return Err(not_a_log(path));
            }
            let torn = torn_text(&mut file, whole, meta.len()).map_err(explain)?;
            file.set_len(whole).map_err(explain)?;
            file.sync_data().map_err(explain)?;
            Some(torn)
        } else {
            None
        };
        let path = path.to_owned();
        Ok(Opened {
            log: Self { path, file },
            chain,
            torn,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path leads to this file no more: it was rotated away or removed.
    pub(super) fn moved(&self) -> bool {
        let here = self.file.metadata().map(|m| (m.dev(), m.ino()));
        let there = std::fs::metadata(&self.path).map(|m| (m.dev(), m.ino()));
        match (here, there) {
            (Ok(here), Ok(there)) => here != there,
            (_, Err(e)) => e.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }

    /// Appends whole lines and makes them durable, or leaves the file as it was.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        let Err(failure) = written else {
            return Ok(());
        };
        // Half a line on a full disk must not stay: the next one would be glued to it. Shortening a file
        // takes no space. Never longer: someone may have emptied it meanwhile.
        if self.file.metadata()?.len() > before {
            self.file.set_len(before)?;
        }
        Err(failure)
    }
}

/// Place after the last line end below `len`; 0 without one.
fn line_end_before(file: &mut File, len: u64) -> io::Result<u64> {
    let mut end = len;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        read_range(file, start, end, &mut block)?;
        if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The line that ends at `whole`, without its line end. A line above [`LINE_LIMIT`] comes cut, and is then
/// no audit line.
fn last_line(file: &mut File, whole: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(end) = whole.checked_sub(1) else {
        return Ok(None);
    };
    let start = line_end_before(file, end)?;
    let mut line = Vec::new();
    read_range(file, start, end.min(start + LINE_LIMIT), &mut line)?;
    Ok(Some(line))
}

fn torn_text(file: &mut File, whole: u64, len: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let end = len.min(whole + TORN_LIMIT as u64);
    read_range(file, whole, end, &mut bytes)?;
    let text = bytes.escape_ascii().to_string();
    let total = len - whole;
    Ok(if total > TORN_LIMIT as u64 {
        format!("{total} bytes of a line without an end, which begin: {text}")
    } else {
        format!("{total} bytes of a line without an end: {text}")
    })
}

/// A file of one torn line is ours when it begins like one, or with the zeros that a crash leaves.
fn starts_like_a_line(file: &mut File) -> io::Result<bool> {
    let mut start = Vec::new();
    read_range(file, 0, 8, &mut start)?;
    let line = b"{\"time\":";
    Ok(line.starts_with(&start) || start.iter().all(|&byte| byte == 0))
}

fn read_range(file: &mut File, start: u64, end: u64, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    file.seek(SeekFrom::Start(start))?;
    file.take(end.saturating_sub(start)).read_to_end(into)?;
    Ok(())
}

fn cannot_open(path: &Path) -> Explained {
    Explained::new(
        Code::Other,
        format!("cannot open the audit log {}", path.display()),
    )
}

fn not_a_log(path: &Path) -> Explained {
    cannot_open(path)
        .cause("its last line is not an audit line, so the chain of hashes cannot go on")
        .hint("see `ah agent audit verify` for the first bad line, then move the file away or give --audit-log another path")
}

fn explain(path: &Path, error: &io::Error) -> Explained {
    match error.kind() {
        // Making the file is what failed: an existing one needs no folder to be looked up.
        io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path).display();
            cannot_open(path)
                .cause(format!("no such folder: {folder}"))
                .hint(format!("make it: mkdir -p {folder}"))
        }
        io::ErrorKind::PermissionDenied => cannot_open(path).cause("permission denied").hint(
            "let the user of the access point read and write it, or give --audit-log another path",
        ),
        _ => cannot_open(path)
            .cause(error)
            .hint("check the path in --audit-log (AH_AUDIT_LOG) and the file system it is on"),
    }
}
