//! A TOML file judged by a clap definition.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{FileFault, Layered};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Good values by argument id.
    pub(super) values: BTreeMap<String, Value>,
    /// Arguments that the file tried to set.
    pub(super) rejected: BTreeSet<String>,
    /// What is wrong.
    pub(super) faults: Vec<FileFault>,
}

/// One setting.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// As it would be typed, one element for each occurrence.
    pub(super) texts: Vec<String>,
    /// Its line, from 1.
    pub(super) line: usize,
}

impl Contents {
    /// A file that was asked for and cannot be read.
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let (text, hint) = match error.kind() {
            io::ErrorKind::NotFound => {
                ("no such file", "check the path given for the settings file")
            }
            io::ErrorKind::PermissionDenied => (
                "permission denied",
                "make the settings file readable for the user of this process",
            ),
            _ => ("cannot be read", "check the settings file"),
        };
        let mut contents = Self::default();
        contents.faults.push(FileFault {
            file: path.to_owned(),
            line: 0,
            key: None,
            text: if text == "cannot be read" {
                format!("{text}: {error}")
            } else {
                text.to_owned()
            },
            hint: Some(hint.to_owned()),
        });
        contents
    }
}

/// Reads `text` as settings of `command`.
pub(super) fn read(path: &Path, text: &str, command: &Command, layered: &Layered) -> Contents {
    let mut reader = Reader {
        path,
        text,
        command,
        layered,
        contents: Contents::default(),
    };
    match DeTable::parse(text) {
        Ok(table) => {
            let mut entries: Vec<_> = table.get_ref().iter().collect();
            // In the order of the file, so that of two keys for one setting the second is the fault.
            entries.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in entries {
                reader.entry(key, value);
            }
        }
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            let line = reader.line(at);
            // The whole message of the parser repeats the file; its first line does not.
            reader.fault(line, None, format!("not TOML: {}", error.message()), None);
        }
    }
    reader.contents
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    command: &'a Command,
    layered: &'a Layered,
    contents: Contents,
}

impl Reader<'_> {
    fn entry(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>) {
        let line = self.line(key.span().start);
        let written = key.get_ref().as_ref();
        let Some(arg) = self.find(written) else {
            let hint = self.nearest(written, value.get_ref().is_table());
            let text = if value.get_ref().is_table() {
                format!("unknown table [{written}]")
            } else {
                format!("unknown key '{written}'")
            };
            self.fault(line, Some(written), text, hint);
            return;
        };
        let id = arg.get_id().as_str().to_owned();
        let again = self.contents.values.contains_key(&id);
        if again || self.contents.rejected.contains(&id) {
            let text = format!("key '{written}' is set a second time");
            self.fault(line, Some(written), text, None);
            self.contents.rejected.insert(id);
            return;
        }
        match self.texts(&arg, value.get_ref()).and_then(|texts| {
            judge(&arg, &texts)?;
            Ok(texts)
        }) {
            Ok(texts) => {
                self.contents.values.insert(id, Value { texts, line });
            }
            Err((what, hint)) => {
                self.fault(line, Some(written), format!("{written}: {what}"), hint);
                self.contents.rejected.insert(id);
            }
        }
    }

    /// The argument of a key; `-` and `_` are one.
    fn find(&self, key: &str) -> Option<Arg> {
        self.settable()
            .find(|arg| key_of(arg) == key || arg.get_id().as_str() == key)
            .cloned()
    }

    fn settable(&self) -> impl Iterator<Item = &Arg> {
        settable(self.command, self.layered)
    }

    /// What may have been meant.
    fn nearest(&self, key: &str, table: bool) -> Option<String> {
        let snake = snake_case(key);
        let flag = snake.replace('_', "-");
        let Layered {
            not_in_file,
            describing,
            ..
        } = self.layered;
        if not_in_file.contains(&flag.as_str()) || describing.contains(&flag.as_str()) {
            return Some("this can be given on the command line only".to_owned());
        }
        let keys: Vec<String> = self.settable().map(key_of).collect();
        if table {
            let prefix = format!("{snake}_");
            let below = keys.iter().find(|key| key.starts_with(&prefix));
            let example = below.or_else(|| best(&keys, &snake));
            return Some(match example {
                Some(key) => {
                    format!("settings are not grouped in tables: write {key} = … at the top level")
                }
                None => "settings are not grouped in tables".to_owned(),
            });
        }
        best(&keys, &snake).map(|key| format!("did you mean '{key}'?"))
    }

    /// A value as it would be typed.
    fn texts(
        &self,
        arg: &Arg,
        value: &DeValue<'_>,
    ) -> Result<Vec<String>, (String, Option<String>)> {
        let many = matches!(arg.get_action(), ArgAction::Append);
        match value {
            DeValue::Array(_) if !many => Err((
                "takes one value, not a list".to_owned(),
                Some(format!("write {} = \"…\"", key_of(arg))),
            )),
            DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
            DeValue::Table(table) if self.layered.tables.contains(&arg.get_id().as_str()) => table
                .iter()
                .map(|(key, value)| Ok(format!("{}={}", key.get_ref(), scalar(value.get_ref())?)))
                .collect(),
            value => Ok(vec![scalar(value)?]),
        }
    }

    fn fault(&mut self, line: usize, key: Option<&str>, text: String, hint: Option<String>) {
        self.contents.faults.push(FileFault {
            file: self.path.to_owned(),
            line,
            key: key.map(str::to_owned),
            text,
            hint,
        });
    }

    /// The line, from 1, of a byte offset.
    fn line(&self, at: usize) -> usize {
        let before = self.text.bytes().take(at);
        before.filter(|byte| *byte == b'\n').count() + 1
    }
}

/// The arguments of `command` that a file may set, in the order of their definition.
pub(super) fn settable<'a>(
    command: &'a Command,
    layered: &'a Layered,
) -> impl Iterator<Item = &'a Arg> {
    command.get_arguments().filter(|arg| {
        let id = arg.get_id().as_str();
        arg.get_long().is_some()
            && !layered.not_in_file.contains(&id)
            && !layered.describing.contains(&id)
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            )
    })
}

fn scalar(value: &DeValue<'_>) -> Result<String, (String, Option<String>)> {
    match value {
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(e) => Err((format!("{number}: {e}"), None)),
        },
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        other => Err((
            format!(
                "takes a string, a number or a boolean, not {}",
                article(other)
            ),
            None,
        )),
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
        DeValue::Datetime(_) => "a date",
        _ => "this",
    }
}

/// Lets the argument's own value parser judge, alone: neither the environment nor other arguments have a
/// say here. (A wrong default is a programming error to clap, so it is not given any.)
pub(super) fn judge(arg: &Arg, texts: &[String]) -> Result<(), (String, Option<String>)> {
    let long = arg.get_long().unwrap_or_default();
    if !arg.get_action().takes_values() {
        return match texts {
            [text] if text == "true" || text == "false" => Ok(()),
            _ => Err(("takes true or false".to_owned(), None)),
        };
    }
    let alone = arg
        .clone()
        .required(false)
        .env(Resettable::<OsStr>::Reset)
        .default_values(Vec::<OsStr>::new());
    let arguments = std::iter::once("file".to_owned())
        .chain(texts.iter().map(|text| format!("--{long}={text}")));
    let outcome = Command::new("file")
        .arg(alone)
        .disable_help_flag(true)
        .try_get_matches_from(arguments);
    // A value that must not be shown from the environment must not be shown from a file either.
    outcome
        .map(drop)
        .map_err(|error| told(&error, arg.is_hide_env_values_set()))
}

/// clap's error without its talk of flags.
fn told(error: &clap::Error, secret: bool) -> (String, Option<String>) {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) if !texts.is_empty() => Some(texts.join(", ")),
        _ => None,
    };
    let value = match context(ContextKind::InvalidValue) {
        Some(value) if !value.is_empty() && !secret => format!(" '{value}'"),
        _ => String::new(),
    };
    let why = std::error::Error::source(error).map(ToString::to_string);
    let text = match (error.kind(), why) {
        (_, Some(why)) => format!("invalid value{value}: {why}"),
        (ErrorKind::InvalidValue, None) if value.is_empty() => "a value is missing".to_owned(),
        (_, None) => format!("invalid value{value}"),
    };
    let near = context(ContextKind::SuggestedValue).map(|v| format!("did you mean '{v}'?"));
    let all = context(ContextKind::ValidValue).map(|v| format!("possible values: {v}"));
    let hint = match (near, all) {
        (Some(near), Some(all)) => Some(format!("{near} {all}")),
        (near, all) => near.or(all),
    };
    (text, hint)
}

/// The key of an argument: its long flag with `_`.
pub(super) fn key_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

/// `fleetListen` and `fleet-listen` as `fleet_listen`.
fn snake_case(key: &str) -> String {
    let mut out = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        if c.is_uppercase() {
            if !out.is_empty() && !out.ends_with('_') {
                out.push('_');
            }
            out.extend(c.to_lowercase());
        } else {
            out.push(if c == '-' { '_' } else { c });
        }
    }
    out
}

/// The key most like `wanted`, when any is like it at all.
fn best<'k>(keys: &'k [String], wanted: &str) -> Option<&'k String> {
    keys.iter()
        .map(|key| (strsim::jaro_winkler(key, wanted), key))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| key)
}
