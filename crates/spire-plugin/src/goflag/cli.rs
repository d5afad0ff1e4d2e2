//! A tree of commands: `entry create`, `api fetch jwt`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::{FlagError, FlagSet, Flags, man};

/// A program with its commands. `C` is what the program calls them.
#[derive(Clone, Debug)]
pub struct Cli<C> {
    name: String,
    version: String,
    commands: BTreeMap<String, Command<C>>,
}

#[derive(Clone, Debug)]
struct Command<C> {
    id: C,
    synopsis: String,
    flags: FlagSet,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation<C> {
    /// A command with its flags.
    Run {
        /// The program's own name of it.
        command: C,
        /// Its flags, defaults included.
        flags: Flags,
    },
    /// Nothing to run: a help text, the version or a fault.
    Exit(Exit),
}

/// What is left to do when no command runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// To be printed on stderr as it is, which is where the originals print help and version too.
    pub text: String,
    /// 0 after help and version, 1 after a bad flag or a group without command, 127 without a known command.
    pub code: u8,
}

impl<C: Clone> Cli<C> {
    /// A program without commands.
    #[must_use]
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            commands: BTreeMap::new(),
        }
    }

    /// Adds a command; the words of `path` have one space between them.
    #[must_use]
    pub fn command(mut self, id: C, path: &str, synopsis: &str, flags: FlagSet) -> Self {
        let command = Command {
            id,
            synopsis: synopsis.to_owned(),
            flags,
        };
        self.commands.insert(path.to_owned(), command);
        self
    }

    /// Decides what a command line, without the program's name, asks for.
    #[must_use]
    pub fn parse(&self, line: &[String]) -> Invocation<C> {
        let line = self.split(line);
        if line.version {
            return exit(format!("{}\n", self.version), 0);
        }
        let Some(path) = &line.path else {
            let code = if line.help { 0 } else { 127 };
            return exit(self.overview(""), code);
        };
        let command = self.commands.get(path);
        let help = match command {
            Some(command) => self.help(path, command),
            None if self.is_group(path) => self.group_help(path),
            None => return exit(self.overview(parent(path)), 127),
        };
        if line.help {
            return exit(help, 0);
        }
        if line.flag_first {
            let text = format!(
                "Invalid flags before the subcommand. If these flags are for\n\
                 the subcommand, please put them after the subcommand.\n\n{help}"
            );
            return exit(text, 1);
        }
        let Some(command) = command else {
            return exit(help, 1);
        };
        match command.flags.parse(line.arguments) {
            Ok(flags) => Invocation::Run {
                command: command.id.clone(),
                flags,
            },
            Err(FlagError::Help { usage }) => exit(usage, 0),
            // The usage is longer than a screen for some commands, so what is wrong stands above and below it.
            Err(FlagError::Wrong { message, usage }) => {
                exit(format!("{message}\n{usage}{message}\n"), 1)
            }
        }
    }

    /// Adds the command `man`, which the caller runs with [`Self::write_manual`].
    #[must_use]
    pub fn with_manual(self, id: C) -> Self {
        self.command(id, "man", "Writes the manual pages", FlagSet::manual())
    }

    /// Runs the command `man`. Tells on stderr what became of it, and returns whether it went well.
    pub fn write_manual(&self, flags: &Flags) -> bool {
        let directory = flags.string("dir");
        man::told(directory, self.write_man_pages(Path::new(directory)))
    }

    /// Writes a manual page for each command and group into `directory`, which is made when missing, and names the files.
    pub fn write_man_pages(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths: BTreeSet<&str> = BTreeSet::from([""]);
        for path in self.commands.keys() {
            let ends = path.match_indices(' ').map(|(at, _)| at);
            paths.extend(ends.filter_map(|end| path.get(..end)));
            paths.insert(path);
        }
        let pages: Vec<_> = paths.into_iter().map(|path| self.page(path)).collect();
        man::write(&pages, directory)
    }

    fn page(&self, path: &str) -> Page<'_> {
        let command = self.commands.get(path);
        Page {
            words: format!("{} {path}", self.name).trim_end().to_owned(),
            version: &self.version,
            synopsis: command.map_or("", |command| &command.synopsis),
            flags: command.map(|command| &command.flags),
            below: self.below(path),
        }
    }

    /// Finds command, arguments and the flags that are the tree's own. `-h` counts anywhere before `--`.
    fn split<'a>(&self, line: &'a [String]) -> Split<'a> {
        let mut split = Split::default();
        for (at, word) in line.iter().enumerate() {
            match word.as_str() {
                "--" => break,
                "-h" | "-help" | "--help" => split.help = true,
                "-v" | "-version" | "--version" if split.path.is_none() => split.version = true,
                word if split.path.is_none() && word.starts_with('-') => split.flag_first = true,
                word if split.path.is_none() && word.contains(' ') => break,
                word if split.path.is_none() && !word.is_empty() => {
                    let tail = line.get(at..).unwrap_or_default();
                    let (path, words) = self.longest(tail);
                    split.path = Some(path);
                    split.arguments = tail.get(words..).unwrap_or_default();
                }
                _ => {}
            }
        }
        split
    }

    /// The longest command or group that the words begin with, or the first word, and how many words it took.
    fn longest(&self, words: &[String]) -> (String, usize) {
        let end = words
            .iter()
            .take_while(|word| !word.is_empty() && !word.starts_with('-'))
            .count();
        for count in (1..=end).rev() {
            let path = words.get(..count).unwrap_or_default().join(" ");
            if self.commands.contains_key(&path) || self.is_group(&path) {
                return (path, count);
            }
        }
        (words.first().cloned().unwrap_or_default(), 1)
    }

    fn is_group(&self, path: &str) -> bool {
        let prefix = format!("{path} ");
        self.commands.keys().any(|name| name.starts_with(&prefix))
    }

    /// The commands one level below, each with its synopsis.
    fn below(&self, path: &str) -> Vec<(String, &str)> {
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path} ")
        };
        let words: BTreeSet<&str> = self
            .commands
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix))
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        let synopsis = |word: &str| {
            let command = self.commands.get(&format!("{prefix}{word}"));
            command.map_or("", |command| command.synopsis.as_str())
        };
        words
            .into_iter()
            .map(|word| (word.to_owned(), synopsis(word)))
            .collect()
    }

    fn overview(&self, path: &str) -> String {
        let mut text = format!(
            "Usage: {} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n",
            self.name
        );
        text.push_str(&table(&self.below(path)));
        text.push('\n');
        text
    }

    fn group_help(&self, path: &str) -> String {
        format!(
            "This command is accessed by using one of the subcommands below.\n\nSubcommands:\n{}",
            table(&self.below(path))
        )
    }

    fn help(&self, path: &str, command: &Command<C>) -> String {
        let mut text = command.flags.usage();
        let below = self.below(path);
        if !below.is_empty() {
            let _ = write!(text, "\nSubcommands:\n{}", table(&below));
        }
        text
    }
}

/// What a manual page tells of a command or group.
pub(super) struct Page<'a> {
    /// As on a command line.
    pub(super) words: String,
    pub(super) version: &'a str,
    /// Empty for a group.
    pub(super) synopsis: &'a str,
    /// `None` for a group.
    pub(super) flags: Option<&'a FlagSet>,
    /// The commands one level below, each with its synopsis.
    pub(super) below: Vec<(String, &'a str)>,
}

#[derive(Default)]
struct Split<'a> {
    help: bool,
    version: bool,
    flag_first: bool,
    path: Option<String>,
    arguments: &'a [String],
}

fn table(rows: &[(String, &str)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (name, synopsis) in rows {
        let _ = writeln!(text, "    {name:width$}    {synopsis}");
    }
    text
}

fn parent(path: &str) -> &str {
    path.rsplit_once(' ').map_or("", |(parent, _)| parent)
}

fn exit<C>(text: String, code: u8) -> Invocation<C> {
    Invocation::Exit(Exit { text, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli() -> Cli<&'static str> {
        let socket = || FlagSet::new("x").string("socketPath", "/s", "Path");
        Cli::new("spire-agent", "1.14.1")
            .command("fetch", "api fetch", "Fetches X509 SVIDs", socket())
            .command("fetch jwt", "api fetch jwt", "Fetches a JWT SVID", socket())
            .command(
                "watch",
                "api watch",
                "Attaches to the Workload API",
                socket(),
            )
            .command(
                "run",
                "run",
                "Runs the agent",
                FlagSet::new("run").bool("expandEnv", false, "Expand"),
            )
    }

    fn parse(line: &[&str]) -> Invocation<&'static str> {
        cli().parse(
            &line
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    fn exits(line: &[&str]) -> (String, u8) {
        match parse(line) {
            Invocation::Exit(exit) => (exit.text, exit.code),
            Invocation::Run { command, .. } => panic!("{line:?} runs {command}"),
        }
    }

    fn runs(line: &[&str]) -> (&'static str, Flags) {
        match parse(line) {
            Invocation::Run { command, flags } => (command, flags),
            Invocation::Exit(exit) => panic!("{line:?}: {}", exit.text),
        }
    }

    const OVERVIEW: &str = "Usage: spire-agent [--version] [--help] <command> [<args>]\n\n\
        Available commands are:\n    api    \n    run    Runs the agent\n\n";

    #[test]
    fn the_longest_command_wins() {
        assert_eq!(runs(&["api", "fetch"]).0, "fetch");
        assert_eq!(
            runs(&["api", "fetch", "jwt", "-socketPath", "/x"]).0,
            "fetch jwt"
        );
        let (command, flags) = runs(&["api", "fetch", "-socketPath=/x", "jwt"]);
        assert_eq!(
            (command, flags.arguments()),
            ("fetch", &["jwt".to_owned()][..])
        );
        assert_eq!(runs(&["api", "fetch", "other"]).1.arguments(), ["other"]);
    }

    #[test]
    fn help_and_version_end_well() {
        assert_eq!(exits(&["-v"]), ("1.14.1\n".into(), 0));
        assert_eq!(exits(&["--version"]), ("1.14.1\n".into(), 0));
        assert_eq!(exits(&["--help"]), (OVERVIEW.into(), 0));
        assert_eq!(
            exits(&["run", "-h"]),
            ("Usage of run:\n  -expandEnv\n    \tExpand\n".into(), 0)
        );
        assert_eq!(exits(&["run", "-expandEnv", "--help"]).1, 0);
    }

    #[test]
    fn without_a_known_command_the_commands_are_listed() {
        assert_eq!(exits(&[]), (OVERVIEW.into(), 127));
        assert_eq!(exits(&["nonsense"]), (OVERVIEW.into(), 127));
        assert_eq!(exits(&["api fetch"]), (OVERVIEW.into(), 127));
        assert_eq!(exits(&["-socketPath", "/x"]).1, 127);
    }

    #[test]
    fn a_group_lists_its_commands() {
        let text = "This command is accessed by using one of the subcommands below.\n\n\
            Subcommands:\n    fetch    Fetches X509 SVIDs\n    watch    Attaches to the Workload API\n";
        assert_eq!(exits(&["api"]), (text.into(), 1));
        assert_eq!(exits(&["api", "nonsense"]), (text.into(), 1));
        assert_eq!(exits(&["api", "-h"]), (text.into(), 0));
        assert!(
            exits(&["-x", "api"])
                .0
                .starts_with("Invalid flags before the subcommand.")
        );
        let (text, code) = exits(&["api", "fetch", "-h"]);
        assert_eq!(code, 0);
        assert!(
            text.ends_with("\nSubcommands:\n    jwt    Fetches a JWT SVID\n"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_flag_is_told_above_and_below_the_usage() {
        let (text, code) = exits(&["run", "-x"]);
        assert_eq!(code, 1);
        assert!(
            text.starts_with("flag provided but not defined: -x\nUsage of run:\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\nflag provided but not defined: -x\n"),
            "{text}"
        );
        assert!(
            exits(&["-expandEnv", "run"])
                .0
                .starts_with("Invalid flags before the subcommand.")
        );
    }
}
