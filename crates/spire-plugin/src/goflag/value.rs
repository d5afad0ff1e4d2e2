//! Values of flags and how a word becomes one.

use std::time::Duration;

use crate::gonum::{NumberError, parse_bool, parse_int};

/// A filter that may not care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tristate {
    /// Everything passes.
    #[default]
    Any,
    /// Only what is so passes.
    Yes,
    /// Only what is not so passes.
    No,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Text,
    Bool,
    Int,
    Duration,
    DurationValue,
    List,
    CommaList,
    Choice(&'static [&'static str]),
    Tristate,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Int(i64),
    Duration(Duration),
    List(Vec<String>),
    Tristate(Tristate),
}

impl Value {
    /// Takes the word for a value of the kind, in the words of Go's `flag` when it is none.
    pub(super) fn set(&mut self, kind: &Kind, word: &str) -> Result<(), String> {
        *self = match kind {
            Kind::Text => Self::Text(word.to_owned()),
            Kind::Bool => Self::Bool(parse_bool(word).ok_or("parse error")?),
            Kind::Int => Self::Int(parse_int(word).map_err(number_error)?),
            Kind::Duration | Kind::DurationValue => {
                Self::Duration(crate::duration::parse(word).map_err(|why| why.to_string())?)
            }
            Kind::List => {
                if let Self::List(values) = self {
                    values.push(word.to_owned());
                }
                return Ok(());
            }
            Kind::CommaList => Self::List(word.split(',').map(str::to_owned).collect()),
            Kind::Choice(choices) => {
                let chosen = choices
                    .iter()
                    .find(|choice| choice.eq_ignore_ascii_case(word));
                let chosen =
                    chosen.ok_or_else(|| format!("must be one of {}", choices.join(", ")))?;
                Self::Text((*chosen).to_owned())
            }
            Kind::Tristate => Self::Tristate(match word {
                "true" => Tristate::Yes,
                "false" => Tristate::No,
                _ => Tristate::Any,
            }),
        };
        Ok(())
    }
}

fn number_error(error: NumberError) -> String {
    match error {
        NumberError::Syntax => "parse error".to_owned(),
        NumberError::Range => "value out of range".to_owned(),
    }
}
