//! Settings in layers on a clap definition: flag > environment > file > default (AP-17).
//!
//! The definition is the only list of settings. A TOML file sets the same ids: each value becomes the
//! default of its argument in a copy of the definition, which is then parsed as usual, so that one value
//! parser judges flags, environment and file alike.
//!
//! A value from a file counts as a default for clap, so that relations between arguments (`requires`,
//! `conflicts_with`) do not see it: state such rules on the resolved settings.

mod describe;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::builder::{OsStr, Resettable};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

pub use describe::{Kind, NotText, Setting};

/// A subcommand whose settings may come from a file.
#[derive(Clone, Debug)]
pub struct Layered {
    /// The names that lead to it from the root, for example `["agent", "enroll"]`.
    pub path: &'static [&'static str],
    /// The file read when neither flag nor environment names one. It may be missing.
    pub default_file: PathBuf,
    /// The id of the argument that names the file.
    pub file_arg: &'static str,
    /// Arguments that a file cannot set, the file's own included.
    pub not_in_file: &'static [&'static str],
    /// Arguments of the form `KEY=VALUE` that a file may also set as a table.
    pub tables: &'static [&'static str],
    /// Flags that ask for the settings to be described ([`Layers::settings`]) and not to be used. With one of
    /// them nothing is required, and neither the environment's settings nor the default file are looked at.
    pub describing: &'static [&'static str],
    /// Flags that lift what is required: with one of them nothing is.
    pub lifting: &'static [&'static str],
}

/// Everything needed to parse, and to parse again after a reload.
#[derive(Clone, Debug)]
pub struct Layers {
    command: Command,
    arguments: Vec<OsString>,
    layered: Vec<Layered>,
}

/// What was understood.
#[derive(Debug)]
pub struct Parsed {
    /// The root's matches, with the file's values in place.
    pub matches: ArgMatches,
    /// Where each setting of the layered subcommand comes from, by id. Empty for other subcommands.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What is wrong with the file. The keys concerned were left out.
    pub faults: Vec<FileFault>,
}

/// The arguments cannot be understood.
#[derive(Debug)]
pub struct LayerError {
    /// clap's say. Help and version arrive this way too.
    pub error: clap::Error,
    /// What is wrong with the file besides.
    pub faults: Vec<FileFault>,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// This line of the file, from 1.
    File(PathBuf, usize),
    /// Nobody said anything.
    Default,
}

/// Something wrong in a settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 when the whole file is concerned.
    pub line: usize,
    /// The key, when one is concerned.
    pub key: Option<String>,
    /// What is wrong, without file and line.
    pub text: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::File(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.text)
    }
}

impl Layers {
    /// `command` parsed from `arguments` (the program's name first), with files for `layered`.
    pub fn new(command: Command, arguments: Vec<OsString>, layered: Vec<Layered>) -> Self {
        Self {
            command,
            arguments,
            layered,
        }
    }

    /// Parses, reading the file anew. The arguments and the environment stay what they were.
    pub fn parse(&self) -> Result<Parsed, LayerError> {
        // A first pass finds the file; what is wrong with the arguments is told by the second.
        let lenient = self
            .command
            .clone()
            .ignore_errors(true)
            .try_get_matches_from(&self.arguments)
            .map_err(|error| LayerError {
                error,
                faults: Vec::new(),
            })?;
        let Some((layered, matches)) = self
            .layered
            .iter()
            .find_map(|layered| Some((layered, descend(&lenient, layered.path)?)))
        else {
            return self.parse_plain();
        };

        let named = matches
            .try_get_one::<PathBuf>(layered.file_arg)
            .ok()
            .flatten();
        let path = named.unwrap_or(&layered.default_file);
        let is_set = |id: &&str| matches!(matches.try_get_one::<bool>(id), Ok(Some(true)));
        let describing = layered.describing.iter().any(is_set);
        let mut command = self.command.clone();
        if describing || layered.lifting.iter().any(is_set) {
            command = each(command, layered.path, &|arg| arg.required(false));
        }
        if describing {
            command = each(command, layered.path, &|arg| {
                arg.env(Resettable::<OsStr>::Reset)
            });
        }
        let mut built = command.clone();
        // Builds propagated arguments, so that global ones are known below.
        built.build();
        let Some(target) = find(&built, layered.path) else {
            return self.parse_plain();
        };
        // Only a file that nobody asked for may be missing.
        let absent = || {
            parse_with(
                &command,
                &self.arguments,
                layered,
                None,
                file::Contents::default(),
            )
        };
        if describing && named.is_none() {
            return absent();
        }
        let mut contents = match std::fs::read_to_string(path) {
            Ok(text) => file::read(path, &text, target, layered),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                return absent();
            }
            Err(e) => file::Contents::unreadable(path, &e),
        };
        contents
            .values
            .retain(|id, _| !contents.rejected.contains(id));
        let path = Some(path.clone());
        parse_with(&command, &self.arguments, layered, path, contents)
    }

    fn parse_plain(&self) -> Result<Parsed, LayerError> {
        match self.command.clone().try_get_matches_from(&self.arguments) {
            Ok(matches) => Ok(Parsed {
                matches,
                origins: BTreeMap::new(),
                file: None,
                faults: Vec::new(),
            }),
            Err(error) => Err(LayerError {
                error,
                faults: Vec::new(),
            }),
        }
    }
}

fn parse_with(
    command: &Command,
    arguments: &[OsString],
    layered: &Layered,
    path: Option<PathBuf>,
    contents: file::Contents,
) -> Result<Parsed, LayerError> {
    let file::Contents {
        values,
        rejected,
        faults,
    } = contents;
    let command = amend(command.clone(), layered.path, &values, &rejected);
    let matches = match command.clone().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return Err(LayerError { error, faults }),
    };
    let mut origins = BTreeMap::new();
    if let (Some(target), Some(found)) = (
        find(&command, layered.path),
        descend(&matches, layered.path),
    ) {
        for arg in target.get_arguments() {
            let id = arg.get_id().as_str();
            let origin = match found.try_contains_id(id).ok().and(found.value_source(id)) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Environment(
                    arg.get_env()
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                ),
                _ => match (values.get(id), &path) {
                    (Some(value), Some(path)) => Origin::File(path.clone(), value.line),
                    _ => Origin::Default,
                },
            };
            origins.insert(id.to_owned(), origin);
        }
    }
    Ok(Parsed {
        matches,
        origins,
        file: path,
        faults,
    })
}

/// `command` with the file's values as defaults. What the file sets, or tried to set, is no longer
/// required of the command line.
fn amend(
    command: Command,
    path: &[&str],
    values: &BTreeMap<String, file::Value>,
    rejected: &BTreeSet<String>,
) -> Command {
    each(command, path, &|arg| {
        let id = arg.get_id().as_str().to_owned();
        if let Some(value) = values.get(&id) {
            arg.required(false).default_values(value.texts.clone())
        } else if rejected.contains(&id) {
            arg.required(false)
        } else {
            arg
        }
    })
}

/// `command` with `change` made to each argument of the subcommand at `path`.
fn each(command: Command, path: &[&str], change: &dyn Fn(Arg) -> Arg) -> Command {
    match path.split_first() {
        Some((first, rest)) => command.mut_subcommand(first, |sub| each(sub, rest, change)),
        None => command.mut_args(change),
    }
}

fn descend<'a>(matches: &'a ArgMatches, path: &[&str]) -> Option<&'a ArgMatches> {
    path.iter()
        .try_fold(matches, |matches, name| matches.subcommand_matches(name))
}

fn find<'a>(command: &'a Command, path: &[&str]) -> Option<&'a Command> {
    path.iter()
        .try_fold(command, |command, name| command.find_subcommand(name))
}

#[cfg(test)]
mod tests;
