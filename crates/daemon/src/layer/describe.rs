//! The settings that a file may hold, as their definition has them: for a file to begin with, and for editors.

use clap::{Arg, ArgAction};

use super::{Layers, Origin, Parsed, descend, file, find};

/// One setting, from the definition that flags and files are judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The id of its argument: the long flag.
    pub id: String,
    /// Its key in a file.
    pub key: String,
    /// The group that its help stands in.
    pub heading: Option<String>,
    /// One line.
    pub help: String,
    /// What its value is called in the help, such as `DURATION`. Empty for [`Kind::Switch`].
    pub value_name: String,
    /// What may be written.
    pub kind: Kind,
    /// Whether it takes a list.
    pub many: bool,
    /// Whether a table of keys and values may be written for the list.
    pub table: bool,
    /// The words that it takes, where it takes no others.
    pub choices: Vec<String>,
    /// The default, one element for each value. Empty when there is none.
    pub default: Vec<String>,
    /// The variable that sets it too.
    pub environment: Option<String>,
    /// Whether it has to be set somewhere.
    pub required: bool,
    /// Whether its value is nobody's to read.
    pub secret: bool,
    /// Whether help passes over it.
    pub hidden: bool,
    /// What a flag or the file sets it to.
    pub given: Option<Vec<String>>,
}

/// What a value looks like in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number, in these bounds.
    Integer {
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// A number, or what a text writes for it (`2/3`).
    Number,
    /// A text.
    Text,
}

/// The value of this flag is not UTF-8, and has no place in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value of --{0} is not UTF-8")]
pub struct NotText(pub String);

impl Layers {
    /// The settings of the layered subcommand that `parsed` is about, in the order of their definition. None for
    /// other subcommands.
    ///
    /// # Errors
    /// A value that was given cannot be written to a file.
    pub fn settings(&self, parsed: &Parsed) -> Result<Vec<Setting>, NotText> {
        let mut command = self.command.clone();
        command.build();
        let asked = self
            .layered
            .iter()
            .find_map(|layered| Some((layered, descend(&parsed.matches, layered.path)?)));
        let Some((layered, matches)) = asked else {
            return Ok(Vec::new());
        };
        let Some(target) = find(&command, layered.path) else {
            return Ok(Vec::new());
        };
        let described = file::settable(target, layered).map(|arg| {
            let id = arg.get_id().as_str();
            let is_given = matches!(
                parsed.origins.get(id),
                Some(Origin::Flag | Origin::File(..))
            );
            let given = match matches.try_get_raw(id) {
                Ok(Some(values)) if is_given => Some(
                    values
                        .map(|value| value.to_str().map(str::to_owned))
                        .collect::<Option<Vec<_>>>()
                        .ok_or_else(|| NotText(id.to_owned()))?,
                ),
                _ => None,
            };
            Ok(Setting {
                table: layered.tables.contains(&id),
                given,
                ..describe(arg)
            })
        });
        described.collect()
    }
}

fn describe(arg: &Arg) -> Setting {
    // Those that help passes over too: they may be meant for a file.
    let possible = arg.get_possible_values();
    let is_switch = !arg.get_action().takes_values();
    let names = arg.get_value_names().unwrap_or_default();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults = arg.get_default_values().iter();
    Setting {
        id: arg.get_id().to_string(),
        key: file::key_of(arg),
        heading: arg.get_help_heading().map(str::to_owned),
        help: help.split_whitespace().collect::<Vec<_>>().join(" "),
        value_name: match names.first() {
            Some(name) if !is_switch => name.to_string(),
            _ => String::new(),
        },
        kind: kind(arg),
        many: matches!(arg.get_action(), ArgAction::Append),
        table: false,
        choices: if is_switch {
            Vec::new()
        } else {
            let names = possible.iter().map(|value| value.get_name().to_owned());
            names.collect()
        },
        default: defaults
            .map(|value| value.to_string_lossy().into_owned())
            .collect(),
        environment: arg
            .get_env()
            .map(|name| name.to_string_lossy().into_owned()),
        required: arg.is_required_set(),
        secret: arg.is_hide_env_values_set(),
        hidden: arg.is_hide_set(),
        given: None,
    }
}

/// What the argument's own value parser takes: there is no other list of it.
fn kind(arg: &Arg) -> Kind {
    if !arg.get_action().takes_values() {
        return Kind::Switch;
    }
    let takes = |text: &str| file::judge(arg, &[text.to_owned()]).is_ok();
    if takes("words") {
        return Kind::Text;
    }
    match (takes("1"), takes("0.5")) {
        (true, false) => Kind::Integer {
            min: u32::from(!takes("0")),
            max: largest(|number| takes(&number.to_string())),
        },
        (_, true) => Kind::Number,
        _ => Kind::Text,
    }
}

/// The largest number that `takes` takes, where it takes 1 and all below the largest.
fn largest(takes: impl Fn(u32) -> bool) -> u32 {
    let (mut least, mut most) = (1, u32::MAX);
    while least < most {
        let middle = most - (most - least) / 2;
        if takes(middle) {
            least = middle;
        } else {
            most = middle - 1;
        }
    }
    least
}
