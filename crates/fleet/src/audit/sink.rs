//! Where lines go, and the chain that moves with them.

use std::io::{self, Write};
use std::time::SystemTime;

use ah_identity_provider::Explained;
use libsystemd::errors::SdError;
use libsystemd::logging::{Priority, journal_send};

use super::chain::Chain;
use super::file::{LogFile, Opened};
use super::{AuditTarget, Entry, Event, Outcome};

/// Chain and sink, which move together: the chain goes on only when its lines are written.
#[derive(Debug)]
pub(super) struct Writer {
    sink: Sink,
    chain: Chain,
    /// What a repair cut, until the line that tells of it is written.
    repair: Option<(SystemTime, Entry)>,
    /// Lines of the batch at hand that are out and cannot be taken back.
    sent: usize,
}

#[derive(Debug)]
enum Sink {
    File(LogFile),
    Stdout,
    Journald,
}

impl Writer {
    pub(super) fn open(target: AuditTarget, now: SystemTime) -> Result<Self, Explained> {
        let mut writer = Self {
            sink: Sink::Stdout,
            chain: Chain::default(),
            repair: None,
            sent: 0,
        };
        match target {
            AuditTarget::File(path) => writer.adopt(LogFile::open(&path)?, now),
            AuditTarget::Stdout => {}
            AuditTarget::Journald => writer.sink = Sink::Journald,
        }
        Ok(writer)
    }

    /// Whether there is a line to write that nobody handed in.
    pub(super) fn has_repair(&self) -> bool {
        self.repair.is_some()
    }

    /// Writes all of `batch` and returns how many lines that made. After an error the same batch has to
    /// be given again.
    pub(super) fn write(
        &mut self,
        batch: &[(SystemTime, Entry)],
        now: SystemTime,
    ) -> Result<u64, String> {
        self.follow_path(now)?;
        let lines = match &mut self.sink {
            Sink::File(file) => {
                let mut chain = self.chain.clone();
                let mut lines = Vec::new();
                for (at, entry) in self.repair.iter().chain(batch) {
                    chain.extend(*at, entry, &mut lines);
                    lines.push(b'\n');
                }
                if !lines.is_empty() {
                    file.append(&lines).map_err(|e| e.to_string())?;
                }
                self.chain = chain;
                batch.len() + usize::from(self.repair.take().is_some())
            }
            Sink::Stdout => {
                self.send_each(batch, |line, _| {
                    let mut out = io::stdout().lock();
                    writeln!(out, "{line}").and_then(|()| out.flush())
                })
                .map_err(|e| e.to_string())?;
                batch.len()
            }
            Sink::Journald => {
                self.send_each(batch, to_journal)
                    .map_err(|e| e.to_string())?;
                batch.len()
            }
        };
        Ok(lines as u64)
    }

    /// Goes on in the file that the path leads to, when that is another one by now.
    ///
    /// A file that was moved without a word is left alone too: its reader thinks it complete.
    fn follow_path(&mut self, now: SystemTime) -> Result<(), String> {
        let path = match &self.sink {
            Sink::File(file) if file.moved() => file.path().to_owned(),
            _ => return Ok(()),
        };
        let opened =
            LogFile::open(&path).map_err(|e| format!("{}: {}", e.text, e.causes.join(": ")))?;
        tracing::info!(audit.path = %path.display(), "audit log reopened");
        self.adopt(opened, now);
        Ok(())
    }

    /// A file with lines continues its own chain; a new one continues the chain so far.
    fn adopt(&mut self, opened: Opened, now: SystemTime) {
        if let Some(torn) = opened.torn {
            tracing::warn!(
                audit.path = %opened.log.path().display(),
                "the last line of the audit log was half written; it is cut and kept in an event `repaired`"
            );
            let mut entry = Entry::new(Event::Repaired, Outcome::Success);
            entry.reason = Some(torn);
            self.repair = Some((now, entry));
        }
        if let Some(chain) = opened.chain {
            self.chain = chain;
        }
        self.sink = Sink::File(opened.log);
    }

    /// One by one: a line that is out stays out, so after a failure only the others are due.
    fn send_each<E>(
        &mut self,
        batch: &[(SystemTime, Entry)],
        send: impl Fn(&str, &Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        for (at, entry) in batch.iter().skip(self.sent) {
            let mut chain = self.chain.clone();
            let mut line = Vec::new();
            chain.extend(*at, entry, &mut line);
            send(&String::from_utf8_lossy(&line), entry)?;
            self.chain = chain;
            self.sent += 1;
        }
        self.sent = 0;
        Ok(())
    }
}

fn to_journal(line: &str, entry: &Entry) -> Result<(), SdError> {
    let priority = match entry.outcome {
        Outcome::Success => Priority::Info,
        Outcome::Failure => Priority::Warning,
    };
    let certificate = entry.certificate.as_ref();
    let fields = [
        ("AH_EVENT", Some(entry.event.as_str().to_owned())),
        (
            "AH_EXECUTOR_ID",
            entry.executor_id.as_ref().map(ToString::to_string),
        ),
        ("AH_PEER", entry.peer.map(|peer| peer.to_string())),
        (
            "AH_CERTIFICATE_SERIAL",
            certificate.map(|c| c.serial.clone()),
        ),
        (
            "AH_CERTIFICATE_SHA256",
            certificate.map(|c| c.sha256.clone()),
        ),
    ];
    let fields = fields.into_iter().filter_map(|(k, v)| Some((k, v?)));
    journal_send(priority, line, fields)
}
