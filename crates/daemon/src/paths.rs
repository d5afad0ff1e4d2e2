//! The state and run directories (contract §9).

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};

/// Where a process may keep things. Nothing is created by asking; see [`create_private`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    state: Result<PathBuf, NoDirectory>,
    run: Result<PathBuf, NoDirectory>,
}

/// What the environment says, gathered so that a test can say something else.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `$STATE_DIRECTORY`, as systemd sets it: absolute paths with colons between.
    pub state_directory: Option<OsString>,
    /// `$RUNTIME_DIRECTORY`, likewise.
    pub runtime_directory: Option<OsString>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// Whether the effective user is root.
    pub root: bool,
    /// Whether this user can write to the system's run directory, `/run/NAME`.
    pub system_run_writable: bool,
}

/// There is no place for a directory that is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {what} directory: {why}")]
pub struct NoDirectory {
    /// `state` or `run`.
    pub what: &'static str,
    /// Which variables would have named one.
    pub why: String,
}

impl Surroundings {
    /// The surroundings of this process, for the product directory `name`.
    pub fn of_process(name: &str) -> Self {
        let run = Path::new("/run").join(name);
        Self {
            state_directory: std::env::var_os("STATE_DIRECTORY"),
            runtime_directory: std::env::var_os("RUNTIME_DIRECTORY"),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
            home: std::env::var_os("HOME"),
            root: Uid::effective().is_root(),
            system_run_writable: access(&run, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        }
    }
}

impl Paths {
    /// The directories of product `name` in `around`, in the order of contract §9.
    pub fn new(name: &str, around: &Surroundings) -> Self {
        Self {
            state: state(name, around),
            run: run(name, around),
        }
    }

    /// The directory that outlives the process.
    pub fn state(&self) -> Result<&Path, NoDirectory> {
        self.state.as_deref().map_err(Clone::clone)
    }

    /// The directory for sockets.
    pub fn run(&self) -> Result<&Path, NoDirectory> {
        self.run.as_deref().map_err(Clone::clone)
    }
}

/// Creates `path` and what is missing above it, for this user alone (mode 0700).
///
/// A directory that exists keeps its mode: it belongs to whoever made it.
pub fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn state(name: &str, around: &Surroundings) -> Result<PathBuf, NoDirectory> {
    if let Some(path) = first_absolute(around.state_directory.as_ref()) {
        return Ok(path);
    }
    if around.root {
        return Ok(Path::new("/var/lib").join(name));
    }
    if let Some(home) = absolute(around.xdg_state_home.as_ref()) {
        return Ok(home.join(name));
    }
    if let Some(home) = absolute(around.home.as_ref()) {
        return Ok(home.join(".local/state").join(name));
    }
    Err(NoDirectory {
        what: "state",
        why: "none of STATE_DIRECTORY, XDG_STATE_HOME and HOME holds an absolute path".to_owned(),
    })
}

fn run(name: &str, around: &Surroundings) -> Result<PathBuf, NoDirectory> {
    if let Some(path) = first_absolute(around.runtime_directory.as_ref()) {
        return Ok(path);
    }
    let system = Path::new("/run").join(name);
    if around.root || around.system_run_writable {
        return Ok(system);
    }
    if let Some(dir) = absolute(around.xdg_runtime_dir.as_ref()) {
        return Ok(dir.join(name));
    }
    Err(NoDirectory {
        what: "run",
        why: format!(
            "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR holds an absolute path, and {} is not writable",
            system.display()
        ),
    })
}

/// The first path of a list with colons between, as systemd writes it for `StateDirectory=a b`.
fn first_absolute(list: Option<&OsString>) -> Option<PathBuf> {
    std::env::split_paths(list?).find(|path| path.is_absolute())
}

/// A relative path is ignored, as the XDG base directory specification asks.
fn absolute(path: Option<&OsString>) -> Option<PathBuf> {
    let path = PathBuf::from(path?);
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn user() -> Surroundings {
        Surroundings {
            home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..Surroundings::default()
        }
    }

    fn both(around: &Surroundings) -> (String, String) {
        let paths = Paths::new("ah", around);
        (
            paths.state().unwrap().display().to_string(),
            paths.run().unwrap().display().to_string(),
        )
    }

    fn pair(state: &str, run: &str) -> (String, String) {
        (state.to_owned(), run.to_owned())
    }

    // Contract §9.
    #[test]
    fn directories_come_from_the_service_manager_then_the_user() {
        let mut around = user();
        assert_eq!(
            both(&around),
            pair("/home/u/.local/state/ah", "/run/user/7/ah")
        );
        around.xdg_state_home = Some("/data".into());
        assert_eq!(both(&around), pair("/data/ah", "/run/user/7/ah"));
        around.system_run_writable = true;
        assert_eq!(both(&around), pair("/data/ah", "/run/ah"));
        around.system_run_writable = false;
        around.root = true;
        assert_eq!(both(&around), pair("/var/lib/ah", "/run/ah"));
        around.state_directory = Some("/var/lib/a:/var/lib/b".into());
        around.runtime_directory = Some("/run/a:/run/b".into());
        assert_eq!(both(&around), pair("/var/lib/a", "/run/a"));
    }

    #[test]
    fn a_relative_or_empty_variable_names_no_directory() {
        let mut around = user();
        around.xdg_state_home = Some("data".into());
        around.state_directory = Some("".into());
        assert_eq!(
            both(&around),
            pair("/home/u/.local/state/ah", "/run/user/7/ah")
        );
    }

    #[test]
    fn without_any_place_the_error_names_the_variables() {
        let paths = Paths::new("ah", &Surroundings::default());
        assert_eq!(
            paths.run().unwrap_err().to_string(),
            "no run directory: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR holds an absolute path, \
             and /run/ah is not writable"
        );
        assert!(paths.state().unwrap_err().to_string().contains("HOME"));
    }

    #[test]
    fn a_created_directory_is_private_and_an_existing_one_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        create_private(&new).unwrap();
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&new), 0o700);
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o750)).unwrap();
        create_private(&new).unwrap();
        assert_eq!(mode(&new), 0o750);
    }
}
