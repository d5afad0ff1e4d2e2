//! From characters to tokens.

use std::str::Chars;

use zeroize::Zeroizing;

use super::{HclError, Position, heredoc, number, quoted};

/// Characters with their place.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    rest: Chars<'a>,
    position: Position,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars(),
            position: Position::START,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.position.line += 1;
            self.position.column = 1;
        } else {
            self.position.column += 1;
        }
        Some(c)
    }

    /// Takes the next character if it is this one.
    pub(super) fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    /// Appends characters to `text` as long as they are wanted.
    pub(super) fn take_while(&mut self, text: &mut String, wanted: impl Fn(char) -> bool) {
        while let Some(c) = self.peek().filter(|c| wanted(*c)) {
            text.push(c);
            self.next();
        }
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, HclError> {
        Err(HclError::new(self.position, message))
    }
}

pub(super) enum Token {
    Bare(String),
    Number(Zeroizing<String>),
    Float(String),
    Bool(bool),
    Text(Zeroizing<String>),
    Heredoc(Zeroizing<String>),
    OpenBracket,
    CloseBracket,
    OpenBrace,
    CloseBrace,
    Comma,
    Assign,
    End,
}

impl Token {
    /// The token as errors name it. Texts are not shown.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Bare(name) => format!("{name:?}"),
            Self::Number(_) | Self::Float(_) => "a number".to_owned(),
            Self::Bool(value) => format!("\"{value}\""),
            Self::Text(_) => "a quoted text".to_owned(),
            Self::Heredoc(_) => "a heredoc".to_owned(),
            Self::OpenBracket => "\"[\"".to_owned(),
            Self::CloseBracket => "\"]\"".to_owned(),
            Self::OpenBrace => "\"{\"".to_owned(),
            Self::CloseBrace => "\"}\"".to_owned(),
            Self::Comma => "\",\"".to_owned(),
            Self::Assign => "\"=\"".to_owned(),
            Self::End => "the end of the text".to_owned(),
        }
    }
}

/// The next token and where it begins; white space and comments are passed over.
pub(super) fn scan(cursor: &mut Cursor<'_>) -> Result<(Token, Position), HclError> {
    skip_blank(cursor)?;
    let position = cursor.position();
    let Some(c) = cursor.peek() else {
        return Ok((Token::End, position));
    };
    let token = match c {
        '"' => {
            cursor.next();
            Token::Text(quoted::scan(cursor, position)?)
        }
        '<' => Token::Heredoc(heredoc::scan(cursor)?),
        '-' | '.' | '0'..='9' => number::scan(cursor)?,
        '[' | ']' | '{' | '}' | ',' | '=' => {
            cursor.next();
            match c {
                '[' => Token::OpenBracket,
                ']' => Token::CloseBracket,
                '{' => Token::OpenBrace,
                '}' => Token::CloseBrace,
                ',' => Token::Comma,
                _ => Token::Assign,
            }
        }
        c if is_letter(c) => {
            let mut name = String::new();
            cursor.take_while(&mut name, |c| {
                is_letter(c) || is_digit(c) || c == '-' || c == '.'
            });
            match name.as_str() {
                "true" => Token::Bool(true),
                "false" => Token::Bool(false),
                _ => Token::Bare(name),
            }
        }
        c => {
            return cursor.error(format!(
                "unexpected character {c:?}; texts need double quotes"
            ));
        }
    };
    Ok((token, position))
}

fn skip_blank(cursor: &mut Cursor<'_>) -> Result<(), HclError> {
    loop {
        let start = cursor.position();
        match cursor.peek() {
            Some(' ' | '\t' | '\n' | '\r') => {
                cursor.next();
            }
            Some('#') => skip_line(cursor),
            Some('/') => {
                cursor.next();
                match cursor.next() {
                    Some('/') => skip_line(cursor),
                    Some('*') => skip_block(cursor, start)?,
                    _ => {
                        return Err(HclError::new(
                            start,
                            "expected a comment, \"//\" or \"/*\", after \"/\"",
                        ));
                    }
                }
            }
            _ => return Ok(()),
        }
    }
}

fn skip_line(cursor: &mut Cursor<'_>) {
    while cursor.next().is_some_and(|c| c != '\n') {}
}

fn skip_block(cursor: &mut Cursor<'_>, start: Position) -> Result<(), HclError> {
    loop {
        match cursor.next() {
            Some('*') if cursor.take('/') => return Ok(()),
            Some(_) => {}
            None => {
                return Err(HclError::new(
                    start,
                    "the comment is not closed; expected \"*/\"",
                ));
            }
        }
    }
}

pub(super) fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

pub(super) fn is_digit(c: char) -> bool {
    c.is_numeric()
}
