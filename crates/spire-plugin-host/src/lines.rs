//! What a plugin writes on its stderr, as lines of our log: those of hclog with their level and fields, others as they
//! are.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The longest line; what is longer comes in parts.
const MAX_LINE: usize = 64 * 1024;

/// How many of the last lines are kept for the message about a plugin that did not start.
const KEPT: usize = 4;

/// The longest part of a line that such a message has, in characters.
const SHOWN: usize = 200;

/// Lines of bounded length.
pub(crate) struct Lines<R>(BufReader<R>);

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn of(pipe: R) -> Self {
        Self(BufReader::new(pipe))
    }

    /// The next one without its end; `None` at the end of the pipe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        loop {
            let available = self.0.fill_buf().await?;
            if available.is_empty() {
                break;
            }
            let room = MAX_LINE.saturating_sub(line.len());
            let newline = available.iter().position(|byte| *byte == b'\n');
            let length = newline.unwrap_or(available.len()).min(room);
            line.extend_from_slice(available.get(..length).unwrap_or_default());
            // The newline itself goes, too.
            let whole = newline == Some(length);
            self.0.consume(length + usize::from(whole));
            if whole || line.len() >= MAX_LINE {
                return Ok(Some(text(&line)));
            }
        }
        Ok((!line.is_empty()).then(|| text(&line)))
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

/// Who writes, for the fields of each line.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    /// The plugin's name and the program's.
    pub(crate) subsystem: String,
}

/// The last lines that were no structured log.
#[derive(Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(SHOWN).collect());
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

/// Tells the log what comes from `pipe` until it ends.
pub(crate) async fn follow(pipe: impl AsyncRead + Unpin, writer: Writer, tail: Tail) {
    let mut lines = Lines::of(pipe);
    let mut in_panic = false;
    while let Ok(Some(line)) = lines.next().await {
        if line.trim().is_empty() {
            continue;
        }
        if let Some(entry) = hclog(&line) {
            writer.tell(entry.level, &entry.message, entry.fields);
            continue;
        }
        tail.push(&line);
        in_panic = in_panic || line.starts_with("panic: ") || line.starts_with("fatal error: ");
        let level = if in_panic {
            Level::Error
        } else {
            prefixed(&line)
        };
        writer.tell(level, &line, Map::new());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// A line of hclog in JSON.
struct Entry {
    level: Level,
    message: String,
    fields: Map<String, Value>,
}

/// `None` for what is not of hclog.
fn hclog(line: &str) -> Option<Entry> {
    if !line.starts_with('{') {
        return None;
    }
    let mut fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    let level = match fields.remove("@level")?.as_str()? {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warn" => Level::Warn,
        "error" => Level::Error,
        _ => return None,
    };
    let message = match fields.remove("@message") {
        Some(Value::String(message)) => message,
        _ => String::new(),
    };
    if let Some(time) = fields.remove("@timestamp") {
        fields.insert("timestamp".to_owned(), time);
    }
    Some(Entry {
        level,
        message,
        fields,
    })
}

/// By what other plain text begins with, as go-plugin takes it.
fn prefixed(line: &str) -> Level {
    let known = [
        ("[TRACE]", Level::Trace),
        ("[DEBUG]", Level::Debug),
        ("[INFO]", Level::Info),
        ("[WARN]", Level::Warn),
        ("[ERROR]", Level::Error),
    ];
    let found = known.iter().find(|(prefix, _)| line.starts_with(prefix));
    found.map_or(Level::Debug, |(_, level)| *level)
}

impl Writer {
    fn tell(&self, level: Level, message: &str, mut fields: Map<String, Value>) {
        fields.insert("plugin_name".to_owned(), self.name.clone().into());
        fields.insert("plugin_type".to_owned(), self.kind.into());
        fields.insert("external".to_owned(), true.into());
        fields.insert("subsystem_name".to_owned(), self.subsystem.clone().into());
        let fields = Value::Object(fields);
        match level {
            Level::Trace => tracing::trace!(%fields, "{message}"),
            Level::Debug => tracing::debug!(%fields, "{message}"),
            Level::Info => tracing::info!(%fields, "{message}"),
            Level::Warn => tracing::warn!(%fields, "{message}"),
            Level::Error => tracing::error!(%fields, "{message}"),
        }
    }
}

/// Reads `lines` to their end, so that the plugin is never held up by them.
pub(crate) async fn drain<R: AsyncRead + Unpin>(mut lines: Lines<R>, writer: Writer) {
    while let Ok(Some(line)) = lines.next().await {
        writer.tell(Level::Debug, &line, Map::new());
    }
}

/// What came over go-plugin's own stream of the plugin's output.
pub(crate) fn printed(writer: &Writer, bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        writer.tell(Level::Debug, line, Map::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_told_apart_and_bounded() {
        let long = "x".repeat(MAX_LINE + 10);
        let text = format!("a\r\n\n{long}\nend");
        let mut lines = Lines::of(text.as_bytes());
        assert_eq!(lines.next().await.unwrap().unwrap(), "a");
        assert_eq!(lines.next().await.unwrap().unwrap(), "");
        assert_eq!(lines.next().await.unwrap().unwrap().len(), MAX_LINE);
        assert_eq!(lines.next().await.unwrap().unwrap(), "x".repeat(10));
        assert_eq!(lines.next().await.unwrap().unwrap(), "end");
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[test]
    fn lines_of_hclog_have_levels_and_fields() {
        let line = r#"{"@level":"warn","@message":"slow","@timestamp":"2026-11-22T10:00:00.000000Z","took":3}"#;
        let entry = hclog(line).unwrap();
        assert_eq!((entry.level, entry.message.as_str()), (Level::Warn, "slow"));
        assert_eq!(entry.fields["took"], 3);
        assert_eq!(entry.fields["timestamp"], "2026-11-22T10:00:00.000000Z");
        // What only looks like it is told as it is.
        for other in [
            "{",
            "{}",
            r#"{"@level":5}"#,
            r#"{"@level":"loud"}"#,
            "[1]",
            "text",
        ] {
            assert!(hclog(other).is_none(), "{other}");
        }
        assert_eq!(prefixed("[ERROR] no"), Level::Error);
        assert_eq!(prefixed("no"), Level::Debug);
    }
}
