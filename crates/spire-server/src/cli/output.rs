//! What a command prints: gathered, and written at its end.

use std::io::Write as _;

use ah_spire_plugin::goflag::FlagSet;
use serde_json::Value;

use super::json;

pub(super) fn flags() -> FlagSet {
    FlagSet::new("").choice(
        "output",
        &["pretty", "json", "prettyprint"],
        "pretty",
        "Desired output format (pretty, json); default: pretty.",
    )
}

/// Standard output and error.
#[derive(Default)]
pub(super) struct Output {
    json: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Whether `-output json` was asked for.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A JSON document as one line.
    pub(super) fn json(&mut self, value: &Value) {
        self.line(&json::escaped(&value.to_string()));
    }

    /// One line.
    pub(super) fn line(&mut self, text: &str) {
        self.text(text);
        self.text("\n");
    }

    /// As it is.
    pub(super) fn text(&mut self, text: &str) {
        self.stdout.extend_from_slice(text.as_bytes());
    }

    /// One line on standard error.
    pub(super) fn error_line(&mut self, text: &str) {
        self.error_text(text);
        self.error_text("\n");
    }

    /// As it is, on standard error.
    pub(super) fn error_text(&mut self, text: &str) {
        self.stderr.extend_from_slice(text.as_bytes());
    }

    /// Writes what was gathered. Whoever closed the pipe does not want it.
    pub(super) fn flush(self) {
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&self.stdout).and_then(|()| stdout.flush());
        to_stderr(&self.stderr);
    }
}

pub(super) fn to_stdout(text: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text).and_then(|()| stdout.flush());
}

pub(super) fn to_stderr(text: &[u8]) {
    let _ = std::io::stderr().lock().write_all(text);
}
