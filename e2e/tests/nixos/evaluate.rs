//! Configurations in, units and files out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The root of the project.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the project has a root")
}

/// A file of `nix/`.
pub fn text(path: &str) -> String {
    let path = root().join("nix").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Evaluates an expression to JSON, or to what nix says against it.
pub fn nix(expression: &str) -> Result<Value, String> {
    let ran = Command::new("nix-instantiate")
        .args(["--store", "dummy://", "--eval", "--strict", "--json"])
        .args(["--expr", expression])
        .output()
        .expect("nix-instantiate runs");
    if ran.status.success() {
        Ok(serde_json::from_slice(&ran.stdout).expect("it prints JSON"))
    } else {
        Err(String::from_utf8_lossy(&ran.stderr).into_owned())
    }
}

/// What becomes of a machine.
pub struct Evaluated(Value);

/// A file below `/etc`.
pub struct File {
    pub path: String,
    pub store: String,
    pub text: String,
}

/// Evaluates modules, each the text of one, besides ours.
pub fn modules(texts: &[&str]) -> Result<Evaluated, String> {
    let directory = TempDir::new().expect("a temporary directory");
    let root = root();
    let mut imports = format!("{}/nix/nixos-modules", root.display());
    for (number, text) in texts.iter().enumerate() {
        let path = directory.path().join(format!("{number}.nix"));
        fs::write(&path, text).expect("it can be written");
        write!(imports, " {}", path.display()).expect("a String takes it");
    }
    nix(&format!(
        "import {}/nix/tests/evaluate.nix {{ configuration.imports = [ {imports} ]; }}",
        root.display()
    ))
    .map(Evaluated)
}

impl Evaluated {
    fn map(&self, name: &str) -> BTreeMap<String, Value> {
        serde_json::from_value(self.0[name].clone()).expect("it is a map")
    }

    pub fn warnings(&self) -> Vec<String> {
        serde_json::from_value(self.0["warnings"].clone()).expect("they are texts")
    }

    pub fn files(&self) -> Vec<File> {
        let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
        let files = self.map("files").into_iter();
        files
            .map(|(path, it)| File {
                path: format!("/etc/{path}"),
                store: text(&it["store"]),
                text: text(&it["text"]),
            })
            .collect()
    }

    pub fn file(&self, path: &str) -> String {
        let mut files = self.files().into_iter();
        let found = files.find(|file| file.path == path);
        found.unwrap_or_else(|| panic!("no {path}")).text
    }

    /// Name and text of each unit.
    pub fn units(&self) -> Vec<(String, String)> {
        let units = self.map("units").into_iter();
        units
            .map(|(name, text)| (name, text.as_str().expect("it is a text").to_owned()))
            .collect()
    }

    pub fn unit(&self, name: &str) -> String {
        let mut units = self.units().into_iter();
        let found = units.find(|(unit, _)| unit == name);
        found.unwrap_or_else(|| panic!("no unit {name}")).1
    }

    /// All of it, to be compared with what is expected.
    pub fn shown(&self) -> String {
        let mut shown = String::new();
        for name in ["users", "groups", "directories", "ports", "warnings"] {
            writeln!(shown, "{name}: {}", self.0[name]).expect("a String takes it");
        }
        let files = self.files().into_iter().map(|file| (file.path, file.text));
        let units = self.units().into_iter();
        let units = units.map(|(name, text)| (format!("{name}.service"), text));
        for (name, text) in files.chain(units) {
            write!(shown, "\n=== {name}\n{text}").expect("a String takes it");
            if !shown.ends_with('\n') {
                shown.push('\n');
            }
        }
        shown
    }
}

/// The values of a key of a unit.
pub fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let lines = unit.lines();
    lines
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}
