//! The packages of the built programs, for tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use ah_testkit::process::Finished;
use tempfile::TempDir;

/// In the order that [`packages`] tells their files in.
pub const PACKAGES: [&str; 4] = crate::PROGRAMS;

/// Any moment will do; the same one builds the same bytes.
const EPOCH: &str = "1700000000";

/// Of the sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The built programs without what is for debuggers only.
static STRIPPED: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = place("programs");
    for program in crate::PROGRAMS {
        let mut strip = Command::new("strip");
        strip.args(["--strip-debug", "-o"]);
        run(strip
            .arg(directory.join(program))
            .arg(crate::programs().join(program)));
    }
    directory
});

/// An empty directory beside the programs that tests share; the next run takes it over.
fn place(name: &str) -> PathBuf {
    let path = crate::programs().join("packages").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A directory of one test, where there is room for copies of the programs.
pub fn scratch() -> TempDir {
    TempDir::with_prefix_in("packages-", crate::programs()).unwrap()
}

/// `packaging/TOOL` with the built programs.
pub fn tool(tool: &str, output: &Path) -> Command {
    let mut command = Command::new(root().join("packaging").join(tool));
    command
        .arg("--binaries")
        .arg(&*STRIPPED)
        .arg("--output")
        .arg(output)
        .env("SOURCE_DATE_EPOCH", EPOCH);
    command
}

/// Builds the packages of `revision` into `output`, and tells their files in the order of [`PACKAGES`].
pub fn packages(output: &Path, revision: &str) -> Vec<PathBuf> {
    let told = run(tool("deb", output).args(["--revision", revision, "--compression", "none"]));
    let files: Vec<_> = told.lines().map(PathBuf::from).collect();
    assert_eq!(files.len(), PACKAGES.len(), "{told}");
    files
}

/// Those that most tests look at.
pub static BUILT: LazyLock<Vec<PathBuf>> = LazyLock::new(|| packages(&place("debs"), "1"));

/// The packages unpacked on top of each other, as a root directory.
pub static UNPACKED: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = place("root");
    for file in &*BUILT {
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(&directory));
    }
    directory
});

/// What `command` prints on standard output. It has to succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let finished = Finished::from(command.output().unwrap());
    assert_eq!(finished.code, 0, "{command:?}\n{finished:?}");
    finished.stdout
}

/// Lines of a shell.
#[track_caller]
pub fn sh(script: &str, arguments: &[&Path]) -> String {
    let mut shell = Command::new("bash");
    run(shell
        .args(["-euo", "pipefail", "-c", script, "sh"])
        .args(arguments))
}
