//! The settings file with everything in it: each setting with its meaning, form and default.

use std::fmt::Write;

use ah_daemon::layer::{Kind, Setting};

use super::{DefaultValue, Subject, explained, form, is_shown};

/// The file. What was given is set; all else is a comment that shows the default, or where there is none the kind of
/// value. `#KEY = …` needs only its `#` taken away.
pub(super) fn of(subject: Subject, settings: &[Setting]) -> String {
    let Subject { command, file } = subject;
    let mut text = format!(
        "# Settings of `ah {command}`: {file}, or the file of --config.\n\
         #\n\
         # A flag wins over the environment, that over this file, that over the default. A key is the long flag with `_`.\n\
         # What is not set is a comment that shows the default, or the kind of value where there is none.\n\
         # Is it right?  ah {command} --config {file} --validate\n\
         # Made by:      ah {command} --print-config\n"
    );
    let mut heading = None;
    for setting in settings {
        // What help passes over is for the environment alone, or refused.
        if setting.hidden && setting.given.is_none() {
            continue;
        }
        if heading != setting.heading.as_ref() {
            heading = setting.heading.as_ref();
            let title = heading.map_or("Further", String::as_str);
            // Writing to a String cannot fail.
            let _ = write!(text, "\n\n# ---- {title} ----\n");
        }
        let _ = write!(text, "\n{}", entry(setting));
    }
    text
}

fn entry(setting: &Setting) -> String {
    let (help, default) = explained(setting);
    let key = &setting.key;
    let mut notes = vec![format!("Value: {}.", form(setting))];
    notes.push(match &default {
        DefaultValue::None if setting.required => "Required.".to_owned(),
        DefaultValue::None if setting.kind == Kind::Switch => "Default: false.".to_owned(),
        DefaultValue::None => "Default: none.".to_owned(),
        DefaultValue::Known(values) => format!("Default: {}.", values.join(", ")),
        DefaultValue::Told(told) => format!("Default: {told}."),
    });
    if let Some(name) = &setting.environment {
        notes.push(format!("Environment: {name}."));
    }
    let lines = format!("# {help}\n# {}\n", notes.join(" "));
    match &setting.given {
        Some(values) if is_shown(setting, values) => {
            format!("{lines}{key} = {}\n", value(setting, values))
        }
        Some(_) => format!(
            "{lines}# It was given, and is not printed: it may hold a secret.\n#{key} = {}\n",
            value(setting, &example(setting))
        ),
        None => match default {
            DefaultValue::Known(values) => format!("{lines}#{key} = {}\n", value(setting, values)),
            _ => format!("{lines}#{key} = {}\n", value(setting, &example(setting))),
        },
    }
}

/// What stands in the place of a default that there is not.
fn example(setting: &Setting) -> Vec<String> {
    vec![match (setting.kind, setting.choices.first()) {
        (Kind::Switch, _) => "false".to_owned(),
        (Kind::Integer { max, .. }, _) => max.to_string(),
        (_, Some(first)) => first.clone(),
        _ if setting.value_name == "DURATION" => "1h".to_owned(),
        _ => setting.value_name.clone(),
    }]
}

/// Values as TOML has them.
fn value(setting: &Setting, values: &[String]) -> String {
    let one = |text: &String| match setting.kind {
        Kind::Switch | Kind::Integer { .. } => text.clone(),
        Kind::Number | Kind::Text => quoted(text),
    };
    let all: Vec<_> = values.iter().map(one).collect();
    if setting.many {
        format!("[{}]", all.join(", "))
    } else {
        all.join("")
    }
}

/// A basic string of TOML: JSON's escapes are among its own, which want one control character more escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_quoted_as_toml_reads_it() {
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
        assert_eq!(quoted("a\u{7f}\n\u{1}é"), "\"a\\u007f\\n\\u0001é\"");
    }
}
