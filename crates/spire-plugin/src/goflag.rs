//! Command lines as Go's `flag` package and SPIRE's command tree read them.
//!
//! One or two dashes, `-flag value` or `-flag=value`, truth values without a value, the last of repeated flags
//! counts unless the flag is a list, the first argument that is no flag or `--` ends the flags. What is wrong, and
//! `-h`, is told on stderr with the flags in Go's layout; the exit codes are those of the originals.
//!
//! ```
//! use ah_spire_plugin::goflag::{Cli, FlagSet, Invocation};
//!
//! #[derive(Clone, Copy)]
//! enum Command { EntryCreate }
//!
//! let cli = Cli::new("spire-server", "1.14.1").command(
//!     Command::EntryCreate,
//!     "entry create",
//!     "Creates registration entries",
//!     FlagSet::new("entry create")
//!         .string("parentID", "", "The SPIFFE ID of this record's parent")
//!         .list("selector", "A colon-delimited type:value selector. Can be used more than once")
//!         .bool("node", false, "If set, this entry will be applied to matching nodes"),
//! );
//! let line = ["entry", "create", "--selector=unix:uid:0", "-selector", "unix:gid:0"].map(String::from);
//! match cli.parse(&line) {
//!     Invocation::Run { command: Command::EntryCreate, flags } => {
//!         assert_eq!(flags.list("selector"), ["unix:uid:0", "unix:gid:0"]);
//!         assert!(!flags.bool("node"));
//!     }
//!     Invocation::Exit(exit) => unreachable!("{}", exit.text),
//! }
//! ```

mod cli;
mod man;
mod usage;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

pub use self::cli::{Cli, Exit, Invocation};
pub use self::value::Tristate;
use self::value::{Kind, Value};
use crate::gonum::quote;

/// The flags that one command takes.
#[derive(Clone, Debug)]
pub struct FlagSet {
    name: String,
    flags: BTreeMap<String, Flag>,
}

#[derive(Clone, Debug)]
struct Flag {
    default: Value,
    kind: Kind,
    usage: String,
}

impl FlagSet {
    /// An empty set; `name` stands in `Usage of <name>:`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            flags: BTreeMap::new(),
        }
    }

    /// A text.
    #[must_use]
    pub fn string(self, name: &str, default: &str, usage: &str) -> Self {
        self.with(name, Kind::Text, Value::Text(default.to_owned()), usage)
    }

    /// A truth value; it needs no value of its own on the command line.
    #[must_use]
    pub fn bool(self, name: &str, default: bool, usage: &str) -> Self {
        self.with(name, Kind::Bool, Value::Bool(default), usage)
    }

    /// A whole number.
    #[must_use]
    pub fn int(self, name: &str, default: i64, usage: &str) -> Self {
        self.with(name, Kind::Int, Value::Int(default), usage)
    }

    /// A Go duration, shown as `duration` in the usage.
    #[must_use]
    pub fn duration(self, name: &str, default: Duration, usage: &str) -> Self {
        self.with(name, Kind::Duration, Value::Duration(default), usage)
    }

    /// A Go duration that the usage shows as `value`: SPIRE's own type of flag.
    #[must_use]
    pub fn duration_value(self, name: &str, default: Duration, usage: &str) -> Self {
        self.with(name, Kind::DurationValue, Value::Duration(default), usage)
    }

    /// A list that grows with each use of the flag.
    #[must_use]
    pub fn list(self, name: &str, usage: &str) -> Self {
        self.with(name, Kind::List, Value::List(Vec::new()), usage)
    }

    /// A comma separated list; a second use of the flag replaces the first.
    #[must_use]
    pub fn comma_list(self, name: &str, usage: &str) -> Self {
        self.with(name, Kind::CommaList, Value::List(Vec::new()), usage)
    }

    /// One of a few words. Anything else is an error that names them; matching does not look at case.
    /// The usage shows no default, as with SPIRE's `-output`.
    #[must_use]
    pub fn choice(
        self,
        name: &str,
        choices: &'static [&'static str],
        default: &str,
        usage: &str,
    ) -> Self {
        self.with(
            name,
            Kind::Choice(choices),
            Value::Text(default.to_owned()),
            usage,
        )
    }

    /// `true`, `false`, or anything else for "does not matter".
    #[must_use]
    pub fn tristate(self, name: &str, usage: &str) -> Self {
        self.with(name, Kind::Tristate, Value::Tristate(Tristate::Any), usage)
    }

    /// All flags of another set too, as for options that many commands share.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.flags.extend(other.flags);
        self
    }

    /// Reads the arguments that follow the command's name.
    pub fn parse(&self, arguments: &[String]) -> Result<Flags, FlagError> {
        let mut values: BTreeMap<String, Value> = self
            .flags
            .iter()
            .map(|(name, flag)| (name.clone(), flag.default.clone()))
            .collect();
        let mut given = Vec::new();
        let mut rest = arguments.iter();
        let mut positional = Vec::new();
        while let Some(argument) = rest.next() {
            let Some(dashed) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                positional.push(argument.clone());
                break;
            };
            if dashed == "-" {
                break;
            }
            let word = dashed.strip_prefix('-').unwrap_or(dashed);
            if word.starts_with(['-', '=']) {
                return Err(self.wrong(format!("bad flag syntax: {argument}")));
            }
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let Some(flag) = self.flags.get(name) else {
                if matches!(name, "h" | "help") {
                    return Err(FlagError::Help {
                        usage: self.usage(),
                    });
                }
                return Err(self.wrong(format!("flag provided but not defined: -{name}")));
            };
            let text = match (inline, &flag.kind) {
                (Some(text), _) => text,
                (None, Kind::Bool) => "true",
                (None, _) => rest
                    .next()
                    .ok_or_else(|| self.wrong(format!("flag needs an argument: -{name}")))?,
            };
            let value = values
                .entry(name.to_owned())
                .or_insert_with(|| flag.default.clone());
            value.set(&flag.kind, text).map_err(|why| {
                let what = if matches!(flag.kind, Kind::Bool) {
                    format!("invalid boolean value {} for -{name}", quote(text))
                } else {
                    format!("invalid value {} for flag -{name}", quote(text))
                };
                self.wrong(format!("{what}: {why}"))
            })?;
            given.push(name.to_owned());
        }
        positional.extend(rest.cloned());
        Ok(Flags {
            values,
            given,
            positional,
        })
    }

    /// The flags with types, usages and defaults, in Go's layout.
    #[must_use]
    pub fn usage(&self) -> String {
        usage::of(&self.name, &self.flags)
    }

    /// What the command `man` takes.
    #[must_use]
    pub fn manual() -> Self {
        let usage = "`DIRECTORY` for the pages; made when missing";
        Self::new("man").string("dir", ".", usage)
    }

    /// Runs the command `man`, with its own `flags`, of a program that has this set and no commands. Tells on stderr what
    /// became of it, and returns whether it went well.
    pub fn write_manual(&self, version: &str, synopsis: &str, flags: &Flags) -> bool {
        let page = cli::Page {
            words: self.name.clone(),
            version,
            synopsis,
            flags: Some(self),
            below: Vec::new(),
        };
        let directory = flags.string("dir");
        man::told(directory, man::write(&[page], Path::new(directory)))
    }

    fn with(mut self, name: &str, kind: Kind, default: Value, usage: &str) -> Self {
        let flag = Flag {
            default,
            kind,
            usage: usage.to_owned(),
        };
        self.flags.insert(name.to_owned(), flag);
        self
    }

    fn wrong(&self, message: String) -> FlagError {
        FlagError::Wrong {
            message,
            usage: self.usage(),
        }
    }
}

/// Why there is nothing to run. `Display` is what the original prints, the usage included.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `-h` or `-help` was given.
    #[error("{usage}")]
    Help {
        /// [`FlagSet::usage`].
        usage: String,
    },
    /// A flag is unknown, lacks its value or has a bad one.
    #[error("{message}\n{usage}")]
    Wrong {
        /// What is wrong, in Go's words.
        message: String,
        /// [`FlagSet::usage`].
        usage: String,
    },
}

/// What a command line said. A name that the [`FlagSet`] does not define is a fault of the program: debug builds
/// stop, others answer with the empty value. `Debug` shows no values, as a join token is one.
#[derive(Clone, PartialEq)]
pub struct Flags {
    values: BTreeMap<String, Value>,
    given: Vec<String>,
    positional: Vec<String>,
}

impl Flags {
    /// The text of a [`FlagSet::string`] or [`FlagSet::choice`].
    #[must_use]
    pub fn string(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(Value::Text(text)) => text,
            _ => undefined(name, ""),
        }
    }

    /// The text of a [`FlagSet::string`], `None` when empty: SPIRE takes an empty flag for an absent one.
    #[must_use]
    pub fn nonempty(&self, name: &str) -> Option<&str> {
        Some(self.string(name)).filter(|text| !text.is_empty())
    }

    /// The value of a [`FlagSet::bool`].
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        match self.values.get(name) {
            Some(Value::Bool(value)) => *value,
            _ => undefined(name, false),
        }
    }

    /// The value of a [`FlagSet::int`].
    #[must_use]
    pub fn int(&self, name: &str) -> i64 {
        match self.values.get(name) {
            Some(Value::Int(value)) => *value,
            _ => undefined(name, 0),
        }
    }

    /// The value of a [`FlagSet::duration`] or [`FlagSet::duration_value`].
    #[must_use]
    pub fn duration(&self, name: &str) -> Duration {
        match self.values.get(name) {
            Some(Value::Duration(value)) => *value,
            _ => undefined(name, Duration::ZERO),
        }
    }

    /// The values of a [`FlagSet::list`] or [`FlagSet::comma_list`].
    #[must_use]
    pub fn list(&self, name: &str) -> &[String] {
        match self.values.get(name) {
            Some(Value::List(values)) => values,
            _ => undefined(name, &[]),
        }
    }

    /// The value of a [`FlagSet::tristate`].
    #[must_use]
    pub fn tristate(&self, name: &str) -> Tristate {
        match self.values.get(name) {
            Some(Value::Tristate(value)) => *value,
            _ => undefined(name, Tristate::Any),
        }
    }

    /// Whether the flag stood on the command line at all.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|given| given == name)
    }

    /// What came after the flags.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.positional
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags")
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

fn undefined<T>(name: &str, empty: T) -> T {
    debug_assert!(false, "flag {name} is not defined with this type");
    empty
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> FlagSet {
        FlagSet::new("run")
            .string(
                "config",
                "conf/agent/agent.conf",
                "Path to a SPIRE config file",
            )
            .bool("expandEnv", false, "Expand environment variables")
            .int("serverPort", 0, "Port number of the SPIRE server")
            .duration_value(
                "timeout",
                Duration::from_secs(1),
                "Time to wait for a response",
            )
            .list("selector", "A selector. Can be used more than once")
            .comma_list("audience", "comma separated list of audience values")
            .choice(
                "output",
                &["pretty", "json"],
                "pretty",
                "Desired output format (pretty, json); default: pretty.",
            )
            .tristate("banned", "Filter")
    }

    fn parse(line: &[&str]) -> Result<Flags, FlagError> {
        set().parse(
            &line
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    fn message(line: &[&str]) -> String {
        match parse(line) {
            Err(FlagError::Wrong { message, .. }) => message,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_or_two_and_equals_or_space() {
        for line in [
            &["-config", "x"][..],
            &["--config", "x"],
            &["-config=x"],
            &["--config=x"],
        ] {
            assert_eq!(parse(line).unwrap().string("config"), "x");
        }
        assert_eq!(parse(&["-config=a=b"]).unwrap().string("config"), "a=b");
        assert_eq!(parse(&["-config", "-x"]).unwrap().string("config"), "-x");
        assert_eq!(parse(&["-config="]).unwrap().nonempty("config"), None);
    }

    #[test]
    fn bools_take_no_next_word() {
        let flags = parse(&["-expandEnv", "false"]).unwrap();
        assert!(flags.bool("expandEnv"));
        assert_eq!(flags.arguments(), ["false"]);
        assert!(!parse(&["-expandEnv=F"]).unwrap().bool("expandEnv"));
        assert_eq!(
            message(&["-expandEnv=maybe"]),
            "invalid boolean value \"maybe\" for -expandEnv: parse error"
        );
    }

    #[test]
    fn the_last_one_counts_unless_it_is_a_list() {
        let flags = parse(&[
            "-config",
            "a",
            "-config",
            "b",
            "-selector",
            "x",
            "-selector",
            "y,z",
            "-audience",
            "p",
            "-audience",
            "q,r",
        ])
        .unwrap();
        assert_eq!(flags.string("config"), "b");
        assert_eq!(flags.list("selector"), ["x", "y,z"]);
        assert_eq!(flags.list("audience"), ["q", "r"]);
        assert!(flags.is_given("config") && !flags.is_given("serverPort"));
    }

    #[test]
    fn flags_end_at_the_first_word_or_two_dashes() {
        let flags = parse(&["-serverPort", "0x1F91", "word", "-config", "x"]).unwrap();
        assert_eq!(flags.int("serverPort"), 8081);
        assert_eq!(flags.arguments(), ["word", "-config", "x"]);
        assert_eq!(parse(&["--", "-config"]).unwrap().arguments(), ["-config"]);
        assert_eq!(parse(&["-"]).unwrap().arguments(), ["-"]);
    }

    #[test]
    fn tristates_have_a_third_state() {
        assert_eq!(parse(&[]).unwrap().tristate("banned"), Tristate::Any);
        assert_eq!(
            parse(&["-banned", "true"]).unwrap().tristate("banned"),
            Tristate::Yes
        );
        assert_eq!(
            parse(&["-banned", "false"]).unwrap().tristate("banned"),
            Tristate::No
        );
        assert_eq!(
            parse(&["-banned", "1"]).unwrap().tristate("banned"),
            Tristate::Any
        );
    }

    #[test]
    fn faults_are_told_in_go_words() {
        assert_eq!(message(&["-x"]), "flag provided but not defined: -x");
        assert_eq!(message(&["--x=1"]), "flag provided but not defined: -x");
        assert_eq!(message(&["---x"]), "bad flag syntax: ---x");
        assert_eq!(message(&["-=x"]), "bad flag syntax: -=x");
        assert_eq!(message(&["-config"]), "flag needs an argument: -config");
        assert_eq!(
            message(&["-serverPort", "abc"]),
            "invalid value \"abc\" for flag -serverPort: parse error"
        );
        assert_eq!(
            message(&["-serverPort", "9223372036854775808"]),
            "invalid value \"9223372036854775808\" for flag -serverPort: value out of range"
        );
        assert!(message(&["-timeout", "5"]).starts_with("invalid value \"5\" for flag -timeout: "));
        assert!(message(&["-output", "xml"]).contains("pretty, json"));
    }

    #[test]
    fn values_are_not_shown_by_debug() {
        let shown = format!("{:?}", parse(&["-config", "secret"]).unwrap());
        assert!(
            shown.contains("config") && !shown.contains("secret"),
            "{shown}"
        );
    }

    #[test]
    fn usage_has_go_layout() {
        assert_eq!(
            set().usage(),
            "Usage of run:\n  \
             -audience value\n    \tcomma separated list of audience values\n  \
             -banned value\n    \tFilter\n  \
             -config string\n    \tPath to a SPIRE config file (default \"conf/agent/agent.conf\")\n  \
             -expandEnv\n    \tExpand environment variables\n  \
             -output value\n    \tDesired output format (pretty, json); default: pretty.\n  \
             -selector value\n    \tA selector. Can be used more than once\n  \
             -serverPort int\n    \tPort number of the SPIRE server\n  \
             -timeout value\n    \tTime to wait for a response (default 1s)\n"
        );
        assert_eq!(
            parse(&["-h"]),
            Err(FlagError::Help {
                usage: set().usage()
            })
        );
        assert_eq!(
            parse(&["--help"]),
            Err(FlagError::Help {
                usage: set().usage()
            })
        );
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec("[-=a-zA-Z0-9]{0,12}", 0..6)) {
            let _ = set().parse(&line);
        }
    }
}
