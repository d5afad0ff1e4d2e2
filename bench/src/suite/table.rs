//! Figures, verdicts, and how they are printed.

use std::fmt::Write;

use serde::Serialize;

/// Median and range of several runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) runs: usize,
}

impl Sample {
    /// `None` without any run.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(*values.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            least: *values.first()?,
            most: *values.last()?,
            runs: values.len(),
        })
    }

    /// `median (least–most)` in `unit`.
    pub(crate) fn show(&self, unit: &str) -> String {
        format!(
            "{} {unit} ({}–{})",
            figure(self.median),
            figure(self.least),
            figure(self.most)
        )
    }
}

/// Three significant digits are what these measurements carry.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middling if middling >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What became of a bar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Pass,
    Miss,
    /// Not measured, and why.
    Skipped(String),
}

impl From<bool> for Verdict {
    fn from(met: bool) -> Self {
        if met { Self::Pass } else { Self::Miss }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bar: String,
    pub(crate) what: String,
    pub(crate) wanted: String,
    pub(crate) measured: String,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

impl Row {
    pub(crate) fn new(
        bar: &str,
        what: &str,
        wanted: &str,
        measured: String,
        verdict: impl Into<Verdict>,
    ) -> Self {
        Self {
            bar: bar.to_owned(),
            what: what.to_owned(),
            wanted: wanted.to_owned(),
            measured,
            verdict: verdict.into(),
        }
    }

    pub(crate) fn skipped(bar: &str, what: &str, reason: impl ToString) -> Self {
        let reason = Verdict::Skipped(reason.to_string());
        Self::new(bar, what, "", String::new(), reason)
    }
}

/// The table in Markdown, readable as plain text too.
pub(crate) fn markdown(rows: &[Row], notes: &[String]) -> String {
    let mut text = String::from("| bar | what | wanted | measured | |\n|---|---|---|---|---|\n");
    for row in rows {
        let (measured, verdict) = match &row.verdict {
            Verdict::Pass => (row.measured.as_str(), "pass"),
            Verdict::Miss => (row.measured.as_str(), "**miss**"),
            Verdict::Skipped(reason) => (reason.as_str(), "skipped"),
        };
        let measured = measured.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {measured} | {verdict} |",
            row.bar, row.what, row.wanted
        );
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        let _ = writeln!(text, "- {note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_range_do_not_depend_on_order() {
        let odd = Sample::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
        let even = Sample::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(even.median, 2.5);
        assert!(Sample::of(Vec::new()).is_none());
    }

    #[test]
    fn a_reason_cannot_break_the_table() {
        let text = markdown(&[Row::skipped("1", "x", "a | b\nc")], &[]);
        assert_eq!(text.lines().count(), 3);
    }
}
