//! The settings file's JSON schema (draft 7, which editors for TOML read).

use ah_daemon::layer::{Kind, Setting};
use serde_json::{Map, Value, json};

use super::{DefaultValue, Subject, explained, form};

/// The schema. It takes what a file may hold, key by key; what depends on two keys is for `--validate`.
pub(super) fn of(subject: Subject, settings: &[Setting]) -> String {
    let properties: Map<String, Value> = settings
        .iter()
        .map(|setting| (setting.key.clone(), property(setting)))
        .collect();
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": format!("Settings of `ah {}`", subject.command),
        "description": format!("{}, or the file of --config", subject.file),
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

fn property(setting: &Setting) -> Value {
    let (help, default) = explained(setting);
    let mut description = format!("{help}\n\nValue: {}.", form(setting));
    if let DefaultValue::Told(told) = &default {
        description += &format!(" Default: {told}.");
    }
    if let Some(name) = &setting.environment {
        description += &format!(" Environment: {name}.");
    }
    let mut property = if setting.many {
        list(setting)
    } else {
        one(setting)
    };
    property.insert("description".to_owned(), description.into());
    if let DefaultValue::Known(values) = default {
        property.insert("default".to_owned(), default_of(setting, values));
    }
    property.into()
}

fn one(setting: &Setting) -> Map<String, Value> {
    let value = match setting.kind {
        Kind::Switch => json!({"type": "boolean"}),
        Kind::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Number => json!({"type": ["number", "string"]}),
        Kind::Text if !setting.choices.is_empty() => {
            json!({"type": "string", "enum": setting.choices})
        }
        Kind::Text if setting.value_name == "DURATION" => {
            json!({"type": "string", "pattern": "^\\s*([0-9]+\\s*[A-Za-zµ]+\\s*)+$"})
        }
        Kind::Text => json!({"type": "string"}),
    };
    match value {
        Value::Object(value) => value,
        _ => Map::new(),
    }
}

/// A list may be written as one value too, which may hold several with commas between.
fn list(setting: &Setting) -> Map<String, Value> {
    let mut property = Map::new();
    let mut kinds = vec!["array", "string"];
    property.insert("items".to_owned(), one(setting).into());
    if setting.table {
        kinds.push("object");
        let value = json!({"type": ["string", "number", "boolean"]});
        property.insert("additionalProperties".to_owned(), value);
    }
    property.insert("type".to_owned(), kinds.into());
    property
}

fn default_of(setting: &Setting, values: &[String]) -> Value {
    let one = |text: &String| match setting.kind {
        Kind::Switch => Value::from(text == "true"),
        Kind::Integer { .. } => text.parse::<u32>().map_or(Value::Null, Value::from),
        Kind::Number | Kind::Text => Value::from(text.as_str()),
    };
    if setting.many {
        values.iter().map(one).collect()
    } else {
        values.first().map_or(Value::Null, one)
    }
}
