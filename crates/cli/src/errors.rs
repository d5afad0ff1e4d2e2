//! Errors in the shape of contract §8, and exit codes.

use std::error::Error as _;
use std::io::Write;
use std::process::ExitCode;

use ah_identity_provider::{Code, Explained};
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::settings::value::Wrong;

/// Prints errors on stderr, and says with what code to exit: 2 when all are a matter of usage, else 1.
pub fn fail(errors: &[Explained]) -> ExitCode {
    print(errors);
    ExitCode::from(if errors.iter().all(|e| e.code == Code::Usage) {
        2
    } else {
        1
    })
}

/// Prints errors on stderr.
pub fn print(errors: &[Explained]) {
    let mut stderr = std::io::stderr().lock();
    for error in errors {
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(stderr, "{}", error.report());
    }
}

/// clap's error in the words and shape of contract §8, its suggestions and usage as the hint.
pub fn explain(error: &clap::Error) -> Explained {
    let context = Context(error);
    let arg = context.text(ContextKind::InvalidArg);
    let arg = arg.as_deref().unwrap_or("an argument");
    let value = context.text(ContextKind::InvalidValue).unwrap_or_default();
    let mut hints = Vec::new();
    let near = suggested(&context);
    let text = match error.kind() {
        ErrorKind::UnknownArgument => {
            format!("unexpected argument '{arg}'")
        }
        ErrorKind::InvalidSubcommand => {
            let name = context.text(ContextKind::InvalidSubcommand);
            format!("unknown command '{}'", name.unwrap_or_default())
        }
        ErrorKind::MissingRequiredArgument => format!("missing {arg}"),
        ErrorKind::MissingSubcommand => "a command is missing".to_owned(),
        ErrorKind::InvalidValue if value.is_empty() => format!("{arg} needs a value"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            if is_secret(arg) {
                format!("invalid value for {arg}")
            } else {
                format!("invalid value '{value}' for {arg}")
            }
        }
        ErrorKind::ArgumentConflict => {
            let other = context.text(ContextKind::PriorArg).unwrap_or_default();
            if other.is_empty() || other == arg {
                format!("{arg} is given twice")
            } else {
                format!("{arg} cannot be used with {other}")
            }
        }
        ErrorKind::NoEquals => format!("{arg} takes its value after '='"),
        ErrorKind::TooManyValues => format!("too many values for {arg}: '{value}'"),
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        kind => match kind.as_str() {
            Some(text) => format!("{text}: {arg}"),
            None => "the arguments cannot be understood".to_owned(),
        },
    };
    let mut explained = Explained::new(Code::Usage, text);
    if let Some(source) = error.source() {
        match source.downcast_ref::<Wrong>() {
            Some(wrong) => {
                explained = explained.cause(&wrong.what);
                hints.extend(wrong.hint.clone());
            }
            None => explained = explained.cause(source),
        }
    }
    let all = context.text(ContextKind::ValidValue);
    hints.extend(match (near, all) {
        (Some(near), Some(all)) => Some(format!("did you mean '{near}'? possible values: {all}")),
        (Some(near), None) => Some(format!("did you mean '{near}'?")),
        (None, Some(all)) => Some(format!("possible values: {all}")),
        (None, None) => None,
    });
    if hints.is_empty() {
        if let Some(usage) = context.text(ContextKind::Usage) {
            // It comes with its own heading and may span lines; a hint is one line.
            let words: Vec<_> = usage.split_whitespace().collect();
            let usage = words.join(" ");
            let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
            hints.push(format!("usage: {usage}"));
        }
        hints.push("--help tells more".to_owned());
    }
    explained.hint(hints.join("; "))
}

/// What may have been meant.
fn suggested(context: &Context<'_>) -> Option<String> {
    [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
        ContextKind::SuggestedSubcommand,
    ]
    .into_iter()
    .find_map(|kind| context.text(kind))
}

/// A reader of clap's context by kind.
struct Context<'a>(&'a clap::Error);

impl Context<'_> {
    fn text(&self, kind: ContextKind) -> Option<String> {
        match self.0.get(kind)? {
            ContextValue::String(text) => Some(text.clone()),
            ContextValue::Strings(texts) if !texts.is_empty() => Some(texts.join(", ")),
            ContextValue::StyledStr(text) => Some(text.to_string()),
            ContextValue::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// Whether values of this argument may hold a secret and are not repeated.
fn is_secret(arg: &str) -> bool {
    fn any(command: &clap::Command, arg: &str) -> bool {
        command.get_arguments().any(|a| {
            a.is_hide_env_values_set() && a.get_long().is_some_and(|long| names(arg, long))
        }) || command.get_subcommands().any(|sub| any(sub, arg))
    }
    /// `arg` is written like `--db <URL>`.
    fn names(arg: &str, long: &str) -> bool {
        let mut words = arg.split([' ', '=']);
        words.next().and_then(|word| word.strip_prefix("--")) == Some(long)
    }
    any(&crate::args::definition(), arg)
}
