//! Peers in Go, built from modules that `make setup` fetched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::need;
use crate::process::Finished;

/// One at a time: tests of one process want the same programs.
static BUILDING: Mutex<()> = Mutex::new(());

/// The program `package` of the module in the folder `module`, as `target/go/NAME`. `None` without Go or the module's
/// dependencies; one line then says so. With `CI` set that is a failure.
pub fn build(module: &Path, package: &str, name: &str) -> Option<PathBuf> {
    if !need("go") {
        return None;
    }
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let go = |arguments: &[&str]| {
        let mut command = Command::new("go");
        command.args(arguments).current_dir(module);
        Finished::from(command.output().expect("go runs"))
    };
    if go(&["mod", "download"]).code != 0 {
        assert!(
            std::env::var_os("CI").is_none(),
            "modules of {} are missing, and CI is set",
            module.display()
        );
        println!(
            "skipped: modules of {} are missing (make setup)",
            module.display()
        );
        return None;
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/go");
    std::fs::create_dir_all(&target).expect("a folder for it");
    let program = target.canonicalize().expect("its path").join(name);
    let output = program.to_str().expect("a path in UTF-8");
    let built = go(&["build", "-mod=readonly", "-o", output, package]);
    assert_eq!(built.code, 0, "{built:?}");
    Some(program)
}

/// A program of the module beside this crate: peers that tests of several crates have.
pub fn peer(package: &str, name: &str) -> Option<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    build(&module, package, name)
}
