//! A private PostgreSQL server for one test run.
//!
//! It is Debian's `postgresql` package run from a temporary folder as an unprivileged user, and it ends with
//! the tests: when the last handle is dropped, or when the process that started it dies.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::server;

/// The database user of the tests, who may do everything.
const USER: &str = "ah";

/// A running server, or one that a test has stopped.
#[derive(Debug)]
pub struct Postgres {
    binaries: PathBuf,
    folder: TempDir,
    port: u16,
    server: Mutex<Option<Child>>,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

impl Postgres {
    /// The server that the tests of this process share while any of them holds it.
    ///
    /// `None` when PostgreSQL is not installed: one line then says that `test` was skipped. With `CI=true`
    /// in the environment that is a failure instead.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        server::shared(&SHARED, || Self::private(test))
    }

    /// A server of the test's own, to be stopped and started. `None` as in [`Postgres::shared`].
    pub fn private(test: &str) -> Option<Self> {
        let Some(binaries) = binaries() else {
            server::skipped(test, "PostgreSQL", "apt install postgresql");
            return None;
        };
        Some(Self::init(binaries))
    }

    /// A database of its own, empty, as a URL.
    pub fn fresh_database(&self) -> String {
        let n = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{n}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Runs `sql` in the database `name` with psql.
    pub fn sql(&self, name: &str, sql: &str) -> String {
        let output = Command::new(self.binaries.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url(name))
            .args(["-c", sql])
            .output();
        match output {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }
            other => panic!("psql failed: {other:?}"),
        }
    }

    /// Stops the server as a crash would: connections are cut, nothing is written out.
    pub fn stop(&self) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut server) = server {
            server::end(&mut server, Signal::SIGQUIT);
        }
    }

    /// Starts the server again on the same port.
    pub fn start(&self) {
        let mut command = run_by_user(&self.binaries.join("postgres"));
        command
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args([
                "-c",
                "fsync=off",
                "-c",
                "max_connections=100",
                "-c",
                "log_min_messages=log",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let ready = "database system is ready to accept connections";
        let server = server::watched("postgres", command, ready, Signal::SIGQUIT);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    fn init(binaries: PathBuf) -> Self {
        let folder = server::folder("ah-postgres-", user().as_ref());
        let output = run_by_user(&binaries.join("initdb"))
            .arg("-D")
            .arg(folder.path().join("data"))
            .args([
                "-U",
                USER,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .output();
        assert!(
            output.as_ref().is_ok_and(|output| output.status.success()),
            "initdb failed: {output:?}"
        );
        let postgres = Self {
            binaries,
            port: server::free_port(),
            folder,
            server: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        postgres.start();
        postgres
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The newest installed server's programs.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
        .max_by_key(|bin| version(bin))
}

fn version(bin: &Path) -> u32 {
    let name = bin.parent().and_then(Path::file_name);
    name.and_then(|name| name.to_str()?.parse().ok())
        .unwrap_or(0)
}

/// PostgreSQL refuses to run as root; Debian's package brings a user for it.
fn user() -> Option<User> {
    server::user("postgres")
}

fn run_by_user(program: &Path) -> Command {
    server::unprivileged(program, user().as_ref(), Signal::SIGQUIT)
}
