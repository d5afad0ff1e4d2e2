//! The list of flags as Go's `flag.PrintDefaults` lays it out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Flag;
use super::value::{Kind, Value};
use crate::gonum::quote;

pub(super) fn of(name: &str, flags: &BTreeMap<String, Flag>) -> String {
    let mut text = if name.is_empty() {
        "Usage:\n".to_owned()
    } else {
        format!("Usage of {name}:\n")
    };
    for shown in shown(flags) {
        let mut line = format!("  -{}", shown.name);
        if !shown.value.is_empty() {
            let _ = write!(line, " {}", shown.value);
        }
        // Go puts the usage of a one-letter bool on its own line.
        line.push_str(if line.len() <= 4 { "\t" } else { "\n    \t" });
        line.push_str(&shown.usage.replace('\n', "\n    \t"));
        if let Some(default) = shown.default {
            let _ = write!(line, " (default {default})");
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is told of one flag.
pub(super) struct Shown<'a> {
    pub(super) name: &'a str,
    /// What its value is called; empty for a flag without one.
    pub(super) value: String,
    pub(super) usage: String,
    pub(super) default: Option<String>,
}

pub(super) fn shown(flags: &BTreeMap<String, Flag>) -> impl Iterator<Item = Shown<'_>> {
    flags.iter().map(|(name, flag)| {
        let (value, usage) = type_and_usage(flag);
        Shown {
            name,
            value,
            usage,
            default: shown_default(flag),
        }
    })
}

/// A name in back quotes in the usage is the name of the value.
fn type_and_usage(flag: &Flag) -> (String, String) {
    let mut parts = flag.usage.splitn(3, '`');
    if let (Some(before), Some(name), Some(after)) = (parts.next(), parts.next(), parts.next()) {
        return (name.to_owned(), format!("{before}{name}{after}"));
    }
    let name = match flag.kind {
        Kind::Text => "string",
        Kind::Bool => "",
        Kind::Int => "int",
        Kind::Duration => "duration",
        Kind::DurationValue | Kind::List | Kind::CommaList | Kind::Choice(_) | Kind::Tristate => {
            "value"
        }
    };
    (name.to_owned(), flag.usage.clone())
}

fn shown_default(flag: &Flag) -> Option<String> {
    match (&flag.kind, &flag.default) {
        (Kind::Choice(_), _) => None,
        (_, Value::Text(text)) => (!text.is_empty()).then(|| quote(text)),
        (_, Value::Bool(value)) => value.then(|| "true".to_owned()),
        (_, Value::Int(value)) => (*value != 0).then(|| value.to_string()),
        (_, Value::Duration(value)) => (!value.is_zero()).then(|| crate::duration::format(*value)),
        (_, Value::List(_) | Value::Tristate(_)) => None,
    }
}
