//! `-output`, and messages as JSON.

use std::collections::HashMap;
use std::io::Write;

use ah_spire_plugin::goflag::{FlagSet, Flags};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::failure::Failure;

const FORMATS: &[&str] = &["pretty", "json", "prettyprint"];

/// `-output`
pub(super) fn with_flag(flags: FlagSet) -> FlagSet {
    flags.choice(
        "output",
        FORMATS,
        "pretty",
        "Desired output format (pretty, json); default: pretty.",
    )
}

/// Whether JSON is asked for; `-format` is the old name of `-output` where a command has it.
pub(super) fn is_json(flags: &Flags, name: &str) -> bool {
    flags.string(name).eq_ignore_ascii_case("json")
}

/// Prints all of it at once.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Bytes as JSON holds them.
pub(super) fn bytes(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

/// A map of bytes, sorted by key.
pub(super) fn map_of_bytes(map: &HashMap<String, Vec<u8>>) -> Value {
    let mut sorted: Vec<_> = map.iter().collect();
    sorted.sort_unstable();
    let entries = sorted
        .into_iter()
        .map(|(key, value)| (key.clone(), bytes(value)));
    Value::Object(entries.collect::<Map<_, _>>())
}
