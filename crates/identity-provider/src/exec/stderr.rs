//! The last lines of what a command said on stderr, fit to be shown (EX-4).

/// How much of the end is kept, in bytes.
const KEEP: usize = 2048;

/// How many lines are shown.
const LINES: usize = 5;

/// How much of a line is shown, in characters.
const WIDTH: usize = 200;

/// The end of a stream that may never end.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    /// Whether something came before.
    cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(KEEP);
        if excess > 0 {
            self.bytes.drain(..excess);
            self.cut = true;
        }
    }

    /// The last lines, without what could steer a terminal, and without anything that looks like key material.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        // A first line that was cut says little, unless it is all there is.
        let whole = match text.split_once('\n') {
            Some((_, rest)) if self.cut && !rest.trim().is_empty() => rest,
            _ => &text,
        };
        let mut shown: Vec<_> = whole
            .split(['\n', '\r'])
            .map(plain)
            .filter(|line| !line.is_empty())
            .collect();
        shown.split_off(shown.len().saturating_sub(LINES))
    }
}

/// A line of stderr as it may be printed anywhere.
fn plain(line: &str) -> String {
    let printable: String = without_escapes(line)
        .chars()
        .filter(|c| !c.is_control() && !is_invisible(*c))
        .collect();
    let line = printable.trim();
    if looks_like_base64(line) {
        return "(a line of base64, not shown)".to_owned();
    }
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

/// Without the sequences that colour and move (ECMA-48 §5.4, and strings up to BEL or ST).
fn without_escapes(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            kept.push(c);
            continue;
        }
        match rest.next() {
            Some('[') => while rest.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            Some(']' | 'P' | '^' | '_' | 'X') => {
                while rest.next().is_some_and(|c| c != '\u{7}' && c != '\\') {}
            }
            _ => {}
        }
    }
    kept
}

/// What changes the order or the look of text without being seen.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// A key that a script prints by mistake comes in such lines (RFC 7468 §2). Paths and words are shorter or have
/// other characters.
fn looks_like_base64(line: &str) -> bool {
    line.len() >= 40
        && line
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut tail = Tail::default();
        tail.push(text.as_bytes());
        tail.lines()
    }

    // EX-4: the last lines, bounded.
    #[test]
    fn ex_4_the_last_lines_are_kept_and_bounded() {
        assert_eq!(lines("a\nb\nc\nd\ne\nf\ng\n"), ["c", "d", "e", "f", "g"]);
        assert_eq!(lines(""), [""; 0]);
        let long = lines(&"é".repeat(900));
        assert_eq!(long.first().unwrap().chars().count(), WIDTH + 1);
        let mut tail = Tail::default();
        for number in 0..10_000 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        assert!(tail.bytes.len() <= KEEP);
        assert_eq!(tail.lines().last().unwrap(), "line 9999");
        tail.push(&[b'x'; KEEP * 2]);
        assert_eq!(tail.lines().len(), 1, "one line without an end is shown");
    }

    // EX-4: nothing that steers a terminal or a log.
    #[test]
    fn ex_4_control_characters_and_escapes_are_stripped() {
        assert_eq!(lines("\u{1b}[31mred\u{1b}[0m\u{7}\0 x"), ["red x"]);
        assert_eq!(lines("\u{1b}]0;title\u{7}after\u{1b}"), ["after"]);
        assert_eq!(lines("one\rtwo"), ["one", "two"]);
        assert_eq!(lines("a\u{202e}b"), ["ab"]);
        let mut tail = Tail::default();
        tail.push(b"\xff\xfe broken");
        assert_eq!(tail.lines(), ["\u{fffd}\u{fffd} broken"]);
    }

    // EX-4: a key printed by mistake stays out.
    #[test]
    fn ex_4_base64_is_not_shown() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let shown = lines(&key).join("\n");
        for line in key.lines().filter(|line| !line.starts_with('-')).take(2) {
            assert!(!shown.contains(line), "{shown}");
        }
        assert!(shown.contains("not shown"));
        assert_eq!(lines("cannot open /etc/x"), ["cannot open /etc/x"]);
    }
}
