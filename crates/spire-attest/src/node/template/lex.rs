//! The words of an action, from after its `{{` to its `}}`.

/// A word.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A quoted text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A name after a dot, or several, with their dots.
    Value(String),
    /// A name without a dot: a function or a keyword.
    Word(String),
    /// `|`
    Pipe,
    /// `}}`
    End,
}

pub(super) struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(action: &'a str) -> Self {
        Self { rest: action }
    }

    /// What follows the words that were taken.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Takes `-` and a space, which ask for the white space before the action to go.
    pub(super) fn trims_before(&mut self) -> bool {
        let trims = self.rest.strip_prefix('-');
        match trims.filter(|rest| rest.starts_with(char::is_whitespace)) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a comment to the end of its action. In Go one fills its action alone.
    pub(super) fn comment(&mut self) -> Result<bool, String> {
        let Some(comment) = self.rest.trim_start().strip_prefix("/*") else {
            return Ok(false);
        };
        let (_, after) = comment.split_once("*/").ok_or("the comment has no end")?;
        self.rest = after;
        match self.next()? {
            Token::End => Ok(true),
            _ => Err("the comment does not end its action".to_owned()),
        }
    }

    pub(super) fn next(&mut self) -> Result<Token, String> {
        let rest = self.rest.trim_start();
        let spaced = rest.len() < self.rest.len();
        if let Some(after) = rest.strip_prefix("}}") {
            self.rest = after;
            return Ok(Token::End);
        }
        if spaced && let Some(after) = rest.strip_prefix("-}}") {
            self.rest = after.trim_start();
            return Ok(Token::End);
        }
        let Some(first) = rest.chars().next() else {
            return Err("the action has no }}".to_owned());
        };
        match first {
            '|' => {
                self.rest = rest.strip_prefix('|').unwrap_or_default();
                Ok(Token::Pipe)
            }
            '`' => self.raw_text(rest),
            '"' => self.quoted_text(rest),
            '.' => {
                let name = self.take(rest, |c| c == '.' || is_name(c));
                Ok(Token::Value(name.to_owned()))
            }
            '-' | '+' | '0'..='9' => {
                let number = self.take(rest, |c| c == '-' || c == '+' || is_name(c));
                let parsed = number.parse();
                parsed
                    .map(Token::Number)
                    .map_err(|_| format!("{number} is no number"))
            }
            c if is_name(c) => Ok(Token::Word(self.take(rest, is_name).to_owned())),
            other => Err(format!("{:?} is not served", other.to_string())),
        }
    }

    fn take(&mut self, rest: &'a str, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let (taken, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        self.rest = after;
        taken
    }

    fn raw_text(&mut self, rest: &'a str) -> Result<Token, String> {
        let text = rest.strip_prefix('`').unwrap_or_default();
        let (text, after) = text.split_once('`').ok_or("the string has no end")?;
        self.rest = after;
        Ok(Token::Text(text.to_owned()))
    }

    /// A string with the escapes that Go and JSON share.
    fn quoted_text(&mut self, rest: &'a str) -> Result<Token, String> {
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        match strings.next() {
            Some(Ok(text)) => {
                self.rest = rest.get(strings.byte_offset()..).unwrap_or_default();
                Ok(Token::Text(text))
            }
            _ => Err("the string has no end, or an escape that is not served".to_owned()),
        }
    }
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}
