//! Output for people and for scripts.

use std::io::{self, IsTerminal, Write};

pub use ah_fleet::moment::{brief, relative};
use serde::Serialize;

/// What standard output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns, when it is a terminal.
    pub width: Option<usize>,
    /// Whether colour is wanted.
    pub color: bool,
}

/// Colours, used for a state and never as its only sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// As it should be.
    Green,
    /// Soon not.
    Yellow,
    /// Not.
    Red,
    /// Of less interest.
    Dim,
}

impl Terminal {
    /// Standard output of this process. `NO_COLOR` and `TERM=dumb` are respected.
    pub fn stdout() -> Self {
        let tty = io::stdout().is_terminal();
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        let columns = set("COLUMNS").and_then(|c| c.to_str()?.parse().ok());
        Self {
            width: tty.then(|| columns.or_else(terminal_width).unwrap_or(80)),
            color: tty && !dumb && set("NO_COLOR").is_none(),
        }
    }

    /// `text` in `color`, where colour is wanted.
    pub fn paint(self, color: Color, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match color {
            Color::Green => 32,
            Color::Yellow => 33,
            Color::Red => 31,
            Color::Dim => 2,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Asks `stty`, which the system has wherever it has terminals: the call itself would need `unsafe`.
fn terminal_width() -> Option<usize> {
    let tty = std::fs::File::open("/dev/tty").ok()?;
    let out = std::process::Command::new("stty")
        .arg("size")
        .stdin(tty)
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// Columns with a heading.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    heading: [String; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(heading: [&str; N]) -> Self {
        Self {
            heading: heading.map(str::to_owned),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Aligned, never cut.
    pub fn plain(&self) -> String {
        self.to_text(None)
    }

    /// Aligned, each line cut to the terminal's width when there is one.
    pub fn fitted(&self, terminal: Terminal) -> String {
        self.to_text(terminal.width)
    }

    fn to_text(&self, width: Option<usize>) -> String {
        let lines: Vec<[String; N]> = std::iter::once(&self.heading)
            .chain(&self.rows)
            .map(|cells| cells.each_ref().map(|cell| printable(cell)))
            .collect();
        let mut widths = [0; N];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(columns(cell));
            }
        }
        let mut out = String::new();
        for line in &lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(widths) {
                text.push_str(cell);
                let pad = width - columns(cell) + 2;
                text.extend(std::iter::repeat_n(' ', pad));
            }
            let text = text.trim_end();
            out.push_str(&match width {
                Some(width) => cut(text, width),
                None => text.to_owned(),
            });
            out.push('\n');
        }
        out
    }
}

/// Lines of a label and a value, the values under each other.
pub fn aligned(rows: &[(&str, String)]) -> String {
    let width = rows
        .iter()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or_default();
    rows.iter()
        .map(|(label, value)| format!("{label:<width$}  {value}\n"))
        .collect()
}

/// Text from a peer without what steers a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Columns that `text` takes: two for wide characters of East Asia and emoji, none for combining marks.
fn columns(text: &str) -> usize {
    text.chars().map(column).sum()
}

fn column(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// `text` in at most `width` columns, with `…` where it was cut.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += column(c);
        if used + 1 > width {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

/// Prints `value` as JSON for scripts: one object, indented, with a final newline.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_script() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["worker-1".into(), "online".into()]);
        table.row(["東京".into(), "offline".into()]);
        table.row(["cafe\u{301}".into(), "x".into()]);
        let text = table.plain();
        let at: Vec<_> = text
            .lines()
            .map(|line| columns(line.trim_end().rsplit_once(' ').unwrap().0))
            .collect();
        assert_eq!(at, [9, 9, 9, 9], "{text}");
    }

    #[test]
    fn a_line_is_cut_on_a_terminal_and_whole_in_a_pipe() {
        let mut table = Table::new(["A", "B"]);
        table.row(["x".repeat(30), "東".repeat(30)]);
        let fitted = table.fitted(Terminal {
            width: Some(40),
            color: false,
        });
        assert!(fitted.lines().all(|line| columns(line) <= 40), "{fitted}");
        assert!(fitted.contains('…'));
        let piped = table.fitted(Terminal {
            width: None,
            color: false,
        });
        assert_eq!(piped, table.plain());
        assert!(!piped.contains('…'));
    }

    #[test]
    fn text_of_a_peer_cannot_steer_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\u{1b}[2Jb\nc".into()]);
        assert_eq!(table.plain().lines().count(), 2);
        assert!(!table.plain().contains('\u{1b}'));
    }

    #[test]
    fn colour_is_left_out_where_it_is_not_wanted() {
        let terminal = |color| Terminal { width: None, color };
        assert_eq!(terminal(false).paint(Color::Red, "x"), "x");
        assert_eq!(
            terminal(true).paint(Color::Red, "x"),
            "\u{1b}[31mx\u{1b}[0m"
        );
    }
}
