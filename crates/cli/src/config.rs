//! Settings files for people and for editors, made from the definition that flags are parsed by (AP-17).

mod schema;
mod template;

use std::io::Write;
use std::process::ExitCode;

use ah_daemon::layer::{Kind, Layers, Parsed, Setting};
use ah_identity_provider::Explained;

use crate::args::PrintArgs;
use crate::errors;
use crate::settings::value::DbUrl;
use crate::settings::{file_fault, usage};

/// One of the two commands that take a settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The words after `ah`.
    pub command: &'static str,
    /// Where its file is read from when nobody names one.
    pub file: &'static str,
}

/// `ah agent access-point`
pub const ACCESS_POINT: Subject = Subject {
    command: "agent access-point",
    file: "/etc/ah/access-point.toml",
};

/// `ah agent enroll`
pub const ENROLL: Subject = Subject {
    command: "agent enroll",
    file: "/etc/ah/executor.toml",
};

/// Prints what `args` ask for: the settings file, or its schema. `None` when they ask for neither.
pub fn print(
    subject: Subject,
    args: &PrintArgs,
    layers: &Layers,
    parsed: &Parsed,
) -> Option<ExitCode> {
    if !args.print_config && !args.print_config_schema {
        return None;
    }
    let faults: Vec<Explained> = parsed.faults.iter().map(file_fault).collect();
    if !faults.is_empty() {
        return Some(errors::fail(&faults));
    }
    let settings = match layers.settings(parsed) {
        Ok(settings) => settings,
        Err(not_text) => {
            let hint =
                "a settings file is UTF-8: leave this flag out, and give it on the command line";
            return Some(errors::fail(&[usage(not_text.to_string()).hint(hint)]));
        }
    };
    let text = if args.print_config {
        template::of(subject, &settings)
    } else {
        schema::of(subject, &settings)
    };
    // A closed pipe means that the reader has seen enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Some(ExitCode::SUCCESS)
}

/// The default where the definition knows it, or what the help says of one that depends on the machine.
enum DefaultValue<'a> {
    None,
    Known(&'a [String]),
    Told(&'a str),
}

/// The help without its word on the default, and the default.
fn explained(setting: &Setting) -> (&str, DefaultValue<'_>) {
    let told = setting
        .help
        .strip_suffix(']')
        .and_then(|help| help.rsplit_once(" [default: "));
    match told {
        Some((help, default)) => (help, DefaultValue::Told(default)),
        None if setting.default.is_empty() => (setting.help.as_str(), DefaultValue::None),
        None => (setting.help.as_str(), DefaultValue::Known(&setting.default)),
    }
}

/// What may be written, in words: its unit, its form, its bounds.
fn form(setting: &Setting) -> String {
    let one = match (setting.kind, setting.value_name.as_str()) {
        (Kind::Switch, _) => "true or false".to_owned(),
        _ if !setting.choices.is_empty() => setting.choices.join(", "),
        (Kind::Integer { min, max: u32::MAX }, _) => format!("whole number, at least {min}"),
        (Kind::Integer { min, max }, _) => format!("whole number from {min} to {max}"),
        (Kind::Number, _) => "number or fraction, such as 0.5 or \"2/3\"".to_owned(),
        (Kind::Text, "DURATION") => {
            "time with its unit, such as 500ms, 10s, 1m 30s or 24h".to_owned()
        }
        (Kind::Text, "ADDR:PORT") => {
            "IP address and port, such as 127.0.0.1:4433 or [::]:4433".to_owned()
        }
        (Kind::Text, "PATH") => "path".to_owned(),
        (Kind::Text, name) => name.to_owned(),
    };
    match (setting.many, setting.table) {
        (true, true) => format!("list of {one}, or a table"),
        (true, false) => format!("list of {one}"),
        _ => one,
    }
}

/// Whether a value may be shown: a secret may not, and a database URL only when it holds no password.
fn is_shown(setting: &Setting, values: &[String]) -> bool {
    let open = |text: &String| {
        let parsed = text.parse::<DbUrl>();
        setting.id == "db" && parsed.is_ok_and(|url| url.to_string() == *text)
    };
    !setting.secret || values.iter().all(open)
}
