//! Texts of several lines: `<<EOF … EOF` and, with the indentation of the last line taken off, `<<-EOF … EOF`.

use zeroize::Zeroizing;

use super::HclError;
use super::scanner::{Cursor, is_digit, is_letter};

/// The cursor stands before the first `<`.
pub(super) fn scan(cursor: &mut Cursor<'_>) -> Result<Zeroizing<String>, HclError> {
    let start = cursor.position();
    cursor.next();
    if !cursor.take('<') {
        return cursor.error("expected a second \"<\" for a heredoc");
    }
    let indented = cursor.take('-');
    let mut anchor = String::new();
    cursor.take_while(&mut anchor, |c| is_letter(c) || is_digit(c));
    if anchor.is_empty() {
        return cursor.error("expected a word after \"<<\" that ends the heredoc");
    }
    if !cursor.take('\n') {
        return cursor.error("expected the end of the line after the word that opens a heredoc");
    }

    let mut lines = Zeroizing::new(String::new());
    loop {
        let mut line = Zeroizing::new(String::new());
        cursor.take_while(&mut line, |c| c != '\n');
        let ended = cursor.take('\n');
        let unspaced = line.trim_start_matches([' ', '\t', '\u{b}', '\u{c}', '\r']);
        if unspaced.trim_end_matches('\r') == anchor {
            let indentation = line.strip_suffix(unspaced).unwrap_or_default();
            return Ok(if indented {
                unindented(lines, indentation)
            } else {
                // Upstream cuts off the anchor alone and keeps what stands before it.
                lines.push_str(indentation);
                lines
            });
        }
        if !ended {
            return Err(HclError::new(
                start,
                format!("the heredoc is not closed; expected a line with {anchor} alone"),
            ));
        }
        lines.push_str(&line);
        lines.push('\n');
    }
}

/// Takes the last line's indentation off, unless a line, an empty one included, has less.
fn unindented(lines: Zeroizing<String>, indentation: &str) -> Zeroizing<String> {
    if !lines.lines().all(|line| line.starts_with(indentation)) {
        return lines;
    }
    let mut text = Zeroizing::new(String::with_capacity(lines.len()));
    for line in lines.lines() {
        text.push_str(line.strip_prefix(indentation).unwrap_or(line));
        text.push('\n');
    }
    text
}
