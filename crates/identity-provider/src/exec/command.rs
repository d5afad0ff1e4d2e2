//! The command as it was typed.

use std::fmt;
use std::str::FromStr;

use tokio::process::Command;

/// Variables by which a service manager knows this process, and which its children must not speak for.
const OF_THIS_PROCESS: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// A program and its arguments, split as a POSIX shell would, with no shell to run them (EX-1).
///
/// `Debug` names the program alone: arguments may hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecCommand {
    program: String,
    arguments: Vec<String>,
}

/// A text that is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCommand {
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// A quote without its partner, or a backslash at the end.
    #[error("a quote is not closed, or it ends in a backslash")]
    Unclosed,
    /// A byte that no argument can hold.
    #[error("it has a NUL character")]
    Nul,
}

impl FromStr for ExecCommand {
    type Err = NoCommand;

    fn from_str(text: &str) -> Result<Self, NoCommand> {
        if text.contains('\0') {
            return Err(NoCommand::Nul);
        }
        let mut words = shlex::split(text).ok_or(NoCommand::Unclosed)?.into_iter();
        let program = words.next().filter(|word| !word.is_empty());
        Ok(Self {
            program: program.ok_or(NoCommand::Empty)?,
            arguments: words.collect(),
        })
    }
}

impl ExecCommand {
    /// What is run, without its arguments.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The process to start, in this process's environment as far as that is its business.
    pub(super) fn to_process(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        for name in OF_THIS_PROCESS {
            command.env_remove(name);
        }
        command
    }
}

impl fmt::Debug for ExecCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecCommand")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // EX-1: split like a shell would, and nothing is expanded.
    #[test]
    fn ex_1_a_command_is_split_as_a_shell_would_and_not_expanded() {
        let command: ExecCommand = r#"/opt/id  --for 'a b' "c \"d" e\ f $HOME *.pem ; rm|x"#
            .parse()
            .unwrap();
        assert_eq!(command.program(), "/opt/id");
        assert_eq!(
            command.arguments,
            [
                "--for", "a b", "c \"d", "e f", "$HOME", "*.pem", ";", "rm|x"
            ]
        );
        let debug = format!("{command:?}");
        assert!(
            debug.contains("/opt/id") && !debug.contains("a b"),
            "{debug}"
        );
    }

    // EX-1
    #[test]
    fn ex_1_what_is_no_command_says_why() {
        let refused = |text: &str| text.parse::<ExecCommand>().err();
        assert_eq!(refused("  "), Some(NoCommand::Empty));
        assert_eq!(refused("'' x"), Some(NoCommand::Empty));
        assert_eq!(refused("id 'x"), Some(NoCommand::Unclosed));
        assert_eq!(refused("id \\"), Some(NoCommand::Unclosed));
        assert_eq!(refused("id \0"), Some(NoCommand::Nul));
    }
}
