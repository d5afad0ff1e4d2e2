//! The step between a daemon and its plugin: a process that asks the kernel to be killed with its parent, and becomes
//! the plugin.
//!
//! It is the daemon's own program, since what a child does between fork and exec would be `unsafe`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The first argument of a program that is to be the launcher.
const MARK: &str = "launch-plugin";

/// The program of this process, which has to call [`dispatch`] first of all.
pub fn own_program() -> PathBuf {
    // Right even when the file was replaced by another version meanwhile.
    PathBuf::from("/proc/self/exe")
}

/// What starts `target` under the name `name`, by way of `launcher`.
pub(crate) fn command(launcher: &std::path::Path, target: OsString, name: OsString) -> Command {
    let mut command = Command::new(launcher);
    command
        .arg(MARK)
        .arg(std::process::id().to_string())
        .arg(target)
        .arg(name);
    command
}

/// Becomes a plugin if `arguments`, the program's name first, say so. For the first line of `main`.
pub fn dispatch(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != MARK {
        return None;
    }
    let Err(why) = launch(arguments);
    eprintln!("{why}");
    Some(ExitCode::from(126))
}

fn launch(mut arguments: impl Iterator<Item = OsString>) -> Result<Infallible, String> {
    let missing = || "only the daemon itself starts plugins this way".to_owned();
    let parent = arguments.next().and_then(|pid| pid.to_str()?.parse().ok());
    let parent = parent.and_then(Pid::from_raw).ok_or_else(missing)?;
    let target = arguments.next().ok_or_else(missing)?;
    let name = arguments.next().ok_or_else(missing)?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("a plugin cannot be tied to its daemon: {error}"))?;
    // It may have died before that.
    if getppid() != Some(parent) {
        return Err("the daemon ended while it started a plugin".to_owned());
    }
    let shown = name.display().to_string();
    let error = Command::new(target).arg0(name).args(arguments).exec();
    Err(format!("{shown} cannot be run: {error}"))
}
