//! What the tests of every crate share.

pub mod aws;
pub mod browser;
pub mod ca;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod disk;
pub mod document;
pub mod go;
pub mod mariadb;
pub mod node_suite;
pub mod openbao;
pub mod pebble;
pub mod postgres;
pub mod process;
pub mod provider_suite;
mod server;
pub mod softhsm;
pub mod swtpm;
pub mod web;
pub mod workload_api;

/// Whether the program `tool` is installed. If not, one line says that the test is skipped; with `CI` set
/// that is a failure instead. `make setup` installs all of them.
pub fn need(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{tool} is not installed, and CI is set"
    );
    println!("skipped: {tool} is not installed (make setup)");
    false
}
