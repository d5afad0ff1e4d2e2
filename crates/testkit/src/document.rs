//! A document whose commands are run as tests, and whose shown output is compared with what they print.
//!
//! A fenced block that begins with `sh` is run; further words after it say how. A `text` block right below it is
//! what it prints. In there a word that ends in `...` is a placeholder: it stands for any word, and for that same word
//! wherever else the document has the placeholder. A line of `...` alone stands for any number of lines.

use std::collections::BTreeMap;

/// What ends a placeholder.
const OPEN: &str = "...";

/// A command block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The headings above it.
    pub headings: usize,
    /// The `##` heading that it stands below.
    pub section: String,
    /// The words of its fence, `sh` first.
    pub kind: Vec<String>,
    /// Its lines.
    pub script: String,
    /// What the document shows as its output.
    pub shown: Option<String>,
}

/// The command blocks of a document in Markdown, in their order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut headings, mut adjacent) = (0, false);
    let mut section = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else {
            headings += usize::from(line.starts_with('#'));
            section = line.strip_prefix("## ").unwrap_or(section);
            adjacent &= line.is_empty();
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        let script = block.join("\n");
        let kind: Vec<_> = fence.split_whitespace().map(str::to_owned).collect();
        let runs = kind.first().is_some_and(|language| language == "sh");
        match blocks.last_mut() {
            _ if runs => blocks.push(Block {
                headings,
                section: section.to_owned(),
                kind,
                script,
                shown: None,
            }),
            Some(above) if adjacent && fence == "text" => above.shown = Some(script),
            _ => {}
        }
        adjacent = runs;
    }
    blocks
}

/// What the placeholders of a document stand for, as far as it has been run.
#[derive(Debug, Default)]
pub struct Placeholders(BTreeMap<String, String>);

impl Placeholders {
    /// Has `name` stand for `value`, which nothing on the page prints.
    pub fn insert(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// `text` with all that is known put in.
    pub fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
    }

    /// Compares the output that a document shows with what was printed, and learns from it. `Err` says where they
    /// part.
    pub fn compare(&mut self, shown: &str, printed: &str) -> Result<(), String> {
        let mut printed = printed.trim_end().lines();
        let mut shown = shown.lines().peekable();
        while let Some(line) = shown.next() {
            if line.trim() == OPEN {
                let Some(next) = shown.peek() else {
                    return Ok(());
                };
                let mut rest = printed.clone();
                while rest
                    .next()
                    .is_some_and(|line| self.line(next, line).is_none())
                {
                    printed.next();
                }
                continue;
            }
            let Some(got) = printed.next() else {
                return Err(format!("shown, but not printed: {line}"));
            };
            match self.line(line, got) {
                Some(learnt) => self.0.extend(learnt),
                None => return Err(format!("shown:   {line}\nprinted: {got}")),
            }
        }
        match printed.next() {
            None => Ok(()),
            Some(line) => Err(format!("printed, but not shown: {line}")),
        }
    }

    /// Whether a shown line and a printed one are the same, and what its placeholders then stand for.
    fn line(&self, shown: &str, printed: &str) -> Option<BTreeMap<String, String>> {
        let shown = self.fill(shown);
        let mut learnt = BTreeMap::new();
        let mut words = printed.split_whitespace();
        for word in shown.split_whitespace() {
            let got = words.next()?;
            if word.ends_with(OPEN) && word != OPEN {
                if learnt.get(word).is_some_and(|before| before != got) {
                    return None;
                }
                learnt.insert(word.to_owned(), got.to_owned());
            } else if word != got {
                return None;
            }
        }
        words.next().is_none().then_some(learnt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_and_what_is_shown() {
        let page = "# A\n\n```sh\na\n```\n\n```text\nb\n```\n\n## B\n```sh server ann\nc\n```\nand\n```text\nd\n```\n```shell\ne\n```\n";
        let found = blocks(page);
        let [first, second] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!((first.headings, first.script.as_str()), (1, "a"));
        assert_eq!(first.shown.as_deref(), Some("b"));
        assert_eq!((first.section.as_str(), second.section.as_str()), ("", "B"));
        assert_eq!((second.headings, second.kind.len()), (2, 3));
        assert_eq!(second.shown, None);
    }

    #[test]
    fn a_placeholder_is_one_word_and_stays_it() {
        let mut known = Placeholders::default();
        known
            .compare("Token: abc...\nDone", "Token: 17\nDone\n")
            .unwrap();
        assert_eq!(known.fill("t = \"abc...\""), "t = \"17\"");
        known.compare("/node/abc...", "/node/17").unwrap();
        known.compare("abc...", "18").unwrap_err();
        known.compare("x... y...", "1").unwrap_err();
        known.compare("z... z...", "1 2").unwrap_err();
    }

    #[test]
    fn what_drifts_is_told() {
        let drift = |shown, printed| {
            let mut known = Placeholders::default();
            known.compare(shown, printed).unwrap_err()
        };
        assert_eq!(drift("a", "b"), "shown:   a\nprinted: b");
        assert_eq!(drift("a\nb", "a"), "shown, but not printed: b");
        assert_eq!(drift("a", "a\nb"), "printed, but not shown: b");
        assert_eq!(drift("a\n...\nd", "a\nb\nc"), "shown, but not printed: d");
        let mut known = Placeholders::default();
        known.compare("a\n...\nd", "a\nb\nc\nd").unwrap();
        known.compare("a\n...", "a\nb").unwrap();
    }
}
