//! What a check found, and how it is told: a line for people, an object for scripts.

use std::io::{self, Write};

use ah_identity_provider::{Code, Explained};
use serde::Serialize;

use crate::render::{self, Color, Terminal, printable};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Pass,
    /// It works, and somebody should look at it.
    Warn,
    /// It keeps the executor from enrolling, or soon will.
    Fail,
    /// It could not be judged, for the reason given.
    Skip,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    /// The access point concerned, as it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access_point: Option<String>,
    /// What was seen.
    pub(super) evidence: String,
    /// What led to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) causes: Vec<String>,
    /// The row of the error table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<Code>,
    /// What to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, evidence: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            access_point: None,
            evidence: evidence.into(),
            causes: Vec::new(),
            code: None,
            fix: None,
        }
    }

    /// All is well, and this is what was seen.
    pub(super) fn pass(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Pass, evidence)
    }

    /// Not wrong, and not as it should be.
    pub(super) fn warn(name: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, evidence)
    }

    /// Wrong, in the words of the error that enroll would end with.
    pub(super) fn fail(name: &'static str, explained: &Explained) -> Self {
        Self {
            causes: explained.causes.clone(),
            code: Some(explained.code),
            fix: explained.hint.clone(),
            ..Self::new(name, Verdict::Fail, &explained.text)
        }
    }

    /// Not judged.
    pub(super) fn skip(name: &'static str, because: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skip, because)
    }

    /// With what to run.
    #[must_use]
    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// With one more cause.
    #[must_use]
    pub(super) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    fn line(&self, width: usize, with_address: bool, terminal: Terminal) -> String {
        let (word, color) = match self.verdict {
            Verdict::Pass => ("pass", Color::Green),
            Verdict::Warn => ("warn", Color::Yellow),
            Verdict::Fail => ("fail", Color::Red),
            Verdict::Skip => ("skip", Color::Dim),
        };
        let mut told = String::new();
        if let Some(address) = self.access_point.as_ref().filter(|_| with_address) {
            told.push_str(&format!("{address}: "));
        }
        told.push_str(&self.evidence);
        for cause in &self.causes {
            told.push_str("; ");
            told.push_str(cause);
        }
        if let Some(fix) = &self.fix {
            told.push_str("; fix: ");
            told.push_str(fix);
        }
        let word = terminal.paint(color, word);
        format!("{word}  {:<width$}  {}", self.name, printable(&told))
    }
}

/// All checks, in the order in which one thing depends on another: the first that fails is the cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// Whether nothing failed.
    ok: bool,
    /// The first check that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failed: Option<&'static str>,
    checks: Vec<Check>,
}

impl Report {
    /// Nothing checked yet.
    pub(super) fn new() -> Self {
        Self {
            ok: true,
            first_failed: None,
            checks: Vec::new(),
        }
    }

    /// Adds a check.
    pub(super) fn add(&mut self, check: Check) {
        if check.verdict == Verdict::Fail {
            self.ok = false;
            self.first_failed = self.first_failed.or(Some(check.name));
        }
        self.checks.push(check);
    }

    /// Adds a check of one access point.
    pub(super) fn add_of(&mut self, access_point: &str, check: Check) {
        self.add(Check {
            access_point: Some(access_point.to_owned()),
            ..check
        });
    }

    /// A warning of this name becomes a failure.
    pub(super) fn harden(&mut self, name: &'static str) {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if check.name == name && check.verdict == Verdict::Warn {
                check.verdict = Verdict::Fail;
            }
        }
        *self = Self::new();
        checks.into_iter().for_each(|check| self.add(check));
    }

    /// Whether there is a check of this name already.
    pub(super) fn has(&self, name: &str) -> bool {
        self.checks.iter().any(|check| check.name == name)
    }

    /// Whether nothing failed.
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    /// Prints it: one line a check, and the sum.
    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        if json {
            return render::print_json(self);
        }
        let terminal = Terminal::stdout();
        let mut out = io::stdout().lock();
        let names = self.checks.iter().map(|check| check.name.len());
        let width = names.max().unwrap_or_default();
        let mut addresses: Vec<_> = self
            .checks
            .iter()
            .filter_map(|check| check.access_point.as_ref())
            .collect();
        addresses.dedup();
        for check in &self.checks {
            writeln!(out, "{}", check.line(width, addresses.len() > 1, terminal))?;
        }
        let count = |verdict| {
            let of_it = self.checks.iter().filter(|check| check.verdict == verdict);
            of_it.count()
        };
        let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
        match self.first_failed {
            Some(first) => writeln!(
                out,
                "{failed} failed, {warned} warned; begin with `{first}`"
            ),
            None => writeln!(out, "nothing failed, {warned} warned"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // ER-25: one line a check, whatever a peer puts into it.
    #[test]
    fn er_25_a_check_is_one_line() {
        let terminal = Terminal {
            width: None,
            color: false,
        };
        let explained = Explained::new(Code::Other, "no\nluck")
            .cause("a\u{1b}[2J")
            .hint("try this");
        let line = Check::fail("tls", &explained).line(5, false, terminal);
        assert_eq!(line.lines().count(), 1);
        assert!(line.starts_with("fail  tls    no"), "{line}");
        assert!(line.ends_with("; fix: try this"), "{line}");
        assert!(!line.contains('\u{1b}'));
    }

    #[test]
    fn the_first_failure_is_remembered_and_a_warning_is_none() {
        let mut report = Report::new();
        report.add(Check::pass("a", ""));
        report.add(Check::warn("b", ""));
        assert!(report.is_ok());
        let explained = Explained::new(Code::Other, "");
        report.add(Check::fail("c", &explained));
        report.add(Check::skip("d", ""));
        report.add(Check::fail("e", &explained));
        assert_eq!((report.is_ok(), report.first_failed), (false, Some("c")));
    }
}
