//! A test that runs itself as a child process, to be killed or to meet a limit.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

const ARGUMENT: &str = "AH_TEST_CHILD";

/// What the parent handed over, in the child.
pub fn argument() -> Option<String> {
    std::env::var(ARGUMENT).ok()
}

/// This test binary, running the one test `name` as a child.
pub fn command(name: &str, argument: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ARGUMENT, argument);
    command
}

/// The same, started, its output to be read.
pub fn start(name: &str, argument: &Path) -> Child {
    command(name, argument)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The same, unable to make a file longer than so many KiB: a full disk that needs no mount and no root.
pub fn command_with_file_limit(kib: u32, name: &str, argument: &Path) -> Command {
    let mut command = Command::new("bash");
    // The signal that goes with the limit is ignored, so that the write fails instead. What the test prints goes
    // through a pipe: where it ends may be a file that is larger than the limit already.
    let script = format!(
        r#"trap "" XFSZ; set -o pipefail; (ulimit -S -f {kib}; exec "$0" "$@") 2>&1 | cat"#
    );
    command
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ARGUMENT, argument);
    command
}

/// Space is back.
pub fn lift_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
}
