//! From tokens to a tree.

use super::scanner::{Cursor, Token, scan};
use super::{
    HclError, Item, Key, KeyStyle, List, Literal, Object, Position, Scalar, Value, deeper,
};

pub(super) fn parse(text: &str) -> Result<Object, HclError> {
    let mut parser = Parser {
        cursor: Cursor::new(text),
        pending: None,
    };
    let items = parser.items(false, 0)?;
    Ok(Object {
        position: Position::START,
        items,
    })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    pending: Option<(Token, Position)>,
}

impl Parser<'_> {
    fn next(&mut self) -> Result<(Token, Position), HclError> {
        match self.pending.take() {
            Some(token) => Ok(token),
            None => scan(&mut self.cursor),
        }
    }

    fn put_back(&mut self, token: Token, position: Position) {
        self.pending = Some((token, position));
    }

    /// Items up to the closing brace, which is consumed, or up to the end of the text.
    fn items(&mut self, braced: bool, depth: usize) -> Result<Vec<Item>, HclError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Token::CloseBrace, _) if braced => return Ok(items),
                (Token::End, _) if !braced => return Ok(items),
                (token, position) => self.put_back(token, position),
            }
            items.push(self.item(braced, depth)?);
            match self.next()? {
                (Token::Comma, _) => {}
                (token, position) => self.put_back(token, position),
            }
        }
    }

    fn item(&mut self, braced: bool, depth: usize) -> Result<Item, HclError> {
        let mut keys: Vec<Key> = Vec::new();
        loop {
            let (token, position) = self.next()?;
            let (name, style) = match token {
                Token::Bare(name) => (name, KeyStyle::Bare),
                Token::Text(name) => ((*name).clone(), KeyStyle::Quoted),
                Token::Assign if keys.len() == 1 => {
                    let value = self.value(depth)?;
                    return Ok(Item { keys, value });
                }
                Token::OpenBrace if !keys.is_empty() => {
                    let value = Value::Object(self.object(position, depth)?);
                    return Ok(Item { keys, value });
                }
                token => {
                    return Err(HclError::new(
                        position,
                        unexpected_in_keys(&keys, &token, braced),
                    ));
                }
            };
            keys.push(Key {
                position,
                name,
                style,
            });
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        let (token, position) = self.next()?;
        match literal(token, position) {
            Ok(literal) => Ok(Value::Literal(literal)),
            Err(Token::OpenBrace) => Ok(Value::Object(self.object(position, depth)?)),
            Err(Token::OpenBracket) => Ok(Value::List(self.list(position, depth)?)),
            Err(token) => {
                let hint = if matches!(token, Token::Bare(_)) {
                    "; texts need double quotes"
                } else {
                    ""
                };
                let message = format!(
                    "expected a value after \"=\", found {}{hint}",
                    token.describe()
                );
                Err(HclError::new(position, message))
            }
        }
    }

    /// The opening brace is consumed.
    fn object(&mut self, position: Position, depth: usize) -> Result<Object, HclError> {
        let depth = deeper(depth, position)?;
        let items = self.items(true, depth)?;
        Ok(Object { position, items })
    }

    /// The opening bracket is consumed. Commas may come in any number, but one is needed after a value, though not
    /// after a list: upstream's grammar.
    fn list(&mut self, position: Position, depth: usize) -> Result<List, HclError> {
        let depth = deeper(depth, position)?;
        let mut values = Vec::new();
        let mut separated = true;
        loop {
            let (token, at) = self.next()?;
            match token {
                Token::CloseBracket => return Ok(List { position, values }),
                Token::Comma => {
                    separated = true;
                    continue;
                }
                token if !separated => {
                    let message = format!(
                        "expected \",\" or \"]\" in a list, found {}",
                        token.describe()
                    );
                    return Err(HclError::new(at, message));
                }
                Token::OpenBrace => values.push(Value::Object(self.object(at, depth)?)),
                Token::OpenBracket => {
                    values.push(Value::List(self.list(at, depth)?));
                    continue;
                }
                token => match literal(token, at) {
                    Ok(literal) => values.push(Value::Literal(literal)),
                    Err(token) => {
                        let message = format!(
                            "expected a value or \"]\" in a list, found {}",
                            token.describe()
                        );
                        return Err(HclError::new(at, message));
                    }
                },
            }
            separated = false;
        }
    }
}

fn literal(token: Token, position: Position) -> Result<Literal, Token> {
    let scalar = match token {
        Token::Number(text) => Scalar::Number(text),
        Token::Float(text) => Scalar::Float(text),
        Token::Bool(value) => Scalar::Bool(value),
        Token::Text(text) | Token::Heredoc(text) => Scalar::Text(text),
        other => return Err(other),
    };
    Ok(Literal { position, scalar })
}

fn unexpected_in_keys(keys: &[Key], token: &Token, braced: bool) -> String {
    let found = token.describe();
    let Some(first) = keys.first() else {
        let wanted = if braced { "a key or \"}\"" } else { "a key" };
        return format!("expected {wanted}, found {found}");
    };
    let name = &first.name;
    if matches!(token, Token::Assign) {
        return format!("expected \"{{\" after {name:?} and its label, found \"=\"");
    }
    format!("expected \"=\" or \"{{\" after the key {name:?}, found {found}")
}
