//! A private MariaDB server for one test run, which takes TLS as well.
//!
//! It is Debian's `mariadb-server-core` package run from a temporary folder as an unprivileged user, and it ends with the
//! tests: when the last handle is dropped, or when the process that started it dies.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::ca::TestCa;
use crate::server;

/// The user who may do everything.
pub const ADMIN: &str = "ah";

/// The password of all users.
pub const PASSWORD: &str = "s/cr@t:?";

/// A running server, or one that a test has stopped.
#[derive(Debug)]
pub struct MariaDb {
    folder: TempDir,
    ca: PathBuf,
    port: u16,
    server: Mutex<Option<Child>>,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<MariaDb>> = Mutex::new(Weak::new());

impl MariaDb {
    /// The server that the tests of this process share while any of them holds it.
    ///
    /// `None` when MariaDB is not installed: one line then says that `test` was skipped. With `CI=true`
    /// in the environment that is a failure instead.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        server::shared(&SHARED, || Self::private(test))
    }

    /// A server of the test's own, to be stopped and started. `None` as in [`MariaDb::shared`].
    pub fn private(test: &str) -> Option<Self> {
        let programs = ["/usr/sbin/mariadbd", "/usr/bin/mariadb-install-db", CLIENT];
        if programs.iter().all(|program| Path::new(program).exists()) {
            return Some(Self::init());
        }
        let remedy = "apt install mariadb-server-core mariadb-client-core";
        server::skipped(test, "MariaDB", remedy);
        None
    }

    /// A database of its own, empty, as a DSN without parameters. Its user has its name and may do everything there alone.
    pub fn fresh_database(&self) -> String {
        let n = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{n}");
        let make = format!(
            "CREATE DATABASE {name}; CREATE USER {name}@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON {name}.* TO {name}@'%'"
        );
        self.sql("mysql", &make);
        format!("{name}:{PASSWORD}@tcp(127.0.0.1:{})/{name}", self.port)
    }

    /// The name of a database of [`MariaDb::fresh_database`].
    pub fn name(dsn: &str) -> &str {
        dsn.rsplit('/').next().unwrap_or_default()
    }

    /// Where the server listens beside TCP.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The port that it has on `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A PEM file with the CA of the server's certificate, which is for `127.0.0.1`.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Whether users other than [`ADMIN`] may only read.
    pub fn set_read_only(&self, on: bool) {
        self.sql("mysql", &format!("SET GLOBAL read_only = {on}"));
    }

    /// Runs `sql` in the database `name` with the server's own client.
    pub fn sql(&self, name: &str, sql: &str) -> String {
        let output = Command::new(CLIENT)
            .args(["--no-defaults", "-N", "-B", "-r", "-u", ADMIN])
            .arg(format!("--password={PASSWORD}"))
            .arg(format!("--socket={}", self.socket().display()))
            .args([name, "-e", sql])
            .output();
        match output {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }
            other => panic!("mariadb failed: {other:?}"),
        }
    }

    /// Kills the server.
    pub fn stop(&self) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut server) = server {
            server::end(&mut server, Signal::SIGKILL);
        }
    }

    /// Starts the server again on the same port.
    pub fn start(&self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let user = user();
        let mut command = server::unprivileged(
            Path::new("/usr/sbin/mariadbd"),
            user.as_ref(),
            Signal::SIGKILL,
        );
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", at("data")))
            .arg(format!("--socket={}", at("socket")))
            .arg(format!("--pid-file={}", at("pid")))
            .arg(format!("--init-file={}", at("init.sql")))
            .arg(format!("--port={}", self.port))
            .arg(format!("--ssl-cert={}", at("server.pem")))
            .arg(format!("--ssl-key={}", at("server.key")))
            .args(QUICK)
            .args([
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--skip-log-bin",
                "--max-connections=200",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let ready = "mariadbd: ready for connections";
        let server = server::watched("mariadb", command, ready, Signal::SIGKILL);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    fn init() -> Self {
        let user = user();
        let folder = server::folder("ah-mariadb-", user.as_ref());
        let ca = TestCa::new("db.test");
        let leaf = ca.leaf().ip("127.0.0.1").issue();
        let init = format!(
            "CREATE USER IF NOT EXISTS '{ADMIN}'@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON *.* TO '{ADMIN}'@'%' WITH GRANT OPTION;"
        );
        for (name, text) in [
            ("ca.pem", ca.pem()),
            ("server.pem", leaf.chain_pem()),
            ("server.key", leaf.key_pem()),
            // A statement has a line of its own.
            ("init.sql", init.replace("; ", ";\n")),
        ] {
            let written = std::fs::write(folder.path().join(name), text);
            assert!(written.is_ok(), "{name}: {written:?}");
        }
        let program = Path::new("/usr/bin/mariadb-install-db");
        let output = server::unprivileged(program, user.as_ref(), Signal::SIGKILL)
            .args(["--no-defaults", "--auth-root-authentication-method=normal"])
            .args(["--skip-test-db", "--skip-name-resolve"])
            .arg(format!(
                "--datadir={}",
                folder.path().join("data").display()
            ))
            .args(QUICK)
            .output();
        assert!(
            output.as_ref().is_ok_and(|output| output.status.success()),
            "mariadb-install-db failed: {output:?}"
        );
        let mariadb = Self {
            ca: folder.path().join("ca.pem"),
            port: server::free_port(),
            folder,
            server: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        mariadb.start();
        mariadb
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.stop();
    }
}

const CLIENT: &str = "/usr/bin/mariadb";

/// Small files, and no waiting for the disk: what was committed outlives the server, not the machine.
const QUICK: [&str; 5] = [
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=16M",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=2",
    "--performance-schema=OFF",
];

fn user() -> Option<User> {
    server::user("nobody")
}
