//! A machine as the guides assume it, in namespaces of its own: absolute paths, fixed ports, host names and users
//! are its alone.

pub mod packages;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ah_testkit::process::{Finished, Process};
use tempfile::TempDir;

/// The binaries of the project.
pub const PROGRAMS: [&str; 4] = [
    "ah",
    "spire-server",
    "spire-agent",
    "oidc-discovery-provider",
];

/// Makes the machine, then holds it. `$1` is an empty directory; what follows are programs, each as its name and its path.
const SETUP: &str = r#"
set -eu
mount -t tmpfs tmpfs "$1"
for place in etc var/lib usr/local; do
  mkdir -p "$1/$place/upper" "$1/$place/work"
  mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/$place/upper,workdir=$1/$place/work" "/$place"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /usr/local/bin
shift
while [ $# -gt 0 ]; do
  rm -f "/usr/local/bin/$1"
  : > "/usr/local/bin/$1"
  mount --bind "$2" "/usr/local/bin/$1"
  shift 2
done
mkdir -p /etc/spire /run/spire /run/user /var/lib/spire
ip link set lo up
echo '127.0.0.1 localhost spire-server.example.org spire-server.partner.example access-point.example.org' > /etc/hosts
echo '127.0.0.1 access-point.example.com vault.example.com oidc.example.org' >> /etc/hosts
number=61000
for user in agent-harbor executor; do
  number=$((number + 1))
  sed -i "/^$user:/d" /etc/passwd /etc/group
  echo "$user:x:$number:$number::/var/lib/$user:/bin/sh" >> /etc/passwd
  echo "$user:x:$number:" >> /etc/group
  install -d -o $number -g $number "/var/lib/$user" "/run/user/$user"
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
# Semaphores of processes of the same id elsewhere.
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
echo ready
exec sleep infinity
"#;

/// A machine. Everything on it ends with it.
pub struct Machine {
    holder: Process,
    _root: TempDir,
}

impl Machine {
    /// `None` when this user may not make namespaces; one line then says so. With `CI` set that is an error.
    pub fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// As [`Self::new`], with further programs in `/usr/local/bin`, each by its name and its path here.
    pub fn with(further: &[(&str, &Path)]) -> Option<Self> {
        let directory = programs();
        let root = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755))
            .expect("its mode can be set");
        let allowed = Command::new("unshare")
            .args(["--mount", "--net", "true"])
            .status();
        if !allowed.is_ok_and(|status| status.success()) {
            assert!(
                std::env::var_os("CI").is_none(),
                "namespaces cannot be made here"
            );
            println!("skipped: namespaces cannot be made here (run as root)");
            return None;
        }
        let holder = Process::start(
            Command::new("unshare")
                .args(["--mount", "--net", "sh", "-c", SETUP, "sh"])
                .arg(root.path())
                .args(
                    PROGRAMS
                        .iter()
                        .flat_map(|name| [name.into(), directory.join(name)]),
                )
                .args(
                    further
                        .iter()
                        .flat_map(|(name, path)| [Path::new(name), *path]),
                ),
        );
        holder.wait_for("ready");
        Some(Self {
            holder,
            _root: root,
        })
    }

    /// A command on it, run as `user` with that user's group alone.
    pub fn command_as<S: AsRef<OsStr>>(
        &self,
        user: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--net", "--wd=/", "--target"])
            .arg(self.holder.pid().to_string())
            .args(["setpriv", "--clear-groups"])
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", format!("/var/lib/{user}"))
            .env("XDG_RUNTIME_DIR", format!("/run/user/{user}"));
        command
    }

    /// What a program of the host is started through to have this machine's network.
    pub fn network(&self) -> Vec<String> {
        let holder = self.holder.pid().to_string();
        ["nsenter", "--net", "--target", &holder]
            .map(str::to_owned)
            .into()
    }

    /// Runs lines of a guide as root, as if they were pasted into a shell, and returns what they printed.
    pub fn shell(&self, lines: &str) -> Finished {
        self.shell_as("root", lines)
    }

    /// As [`Self::shell`], as `user`.
    pub fn shell_as(&self, user: &str, lines: &str) -> Finished {
        let mut shell = self.command_as(user, ["bash", "-euo", "pipefail", "-c", lines]);
        let finished = Finished::from(shell.output().expect("a shell runs"));
        assert_eq!(finished.code, 0, "{lines}\n{finished:?}");
        finished
    }

    /// Starts a line of a guide that does not end by itself, as `user`.
    pub fn start(&self, user: &str, line: &str) -> Process {
        let line = format!("exec {}", line.trim_start());
        Process::start(&mut self.command_as(user, ["bash", "-c", &line]))
    }
}

/// The directory of the binaries: the one that the running test was built into.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let directory = test
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .expect("tests are built below the binaries");
    for program in PROGRAMS {
        let path = directory.join(program);
        assert!(
            path.exists(),
            "{} is missing: cargo build --workspace --bins",
            path.display()
        );
    }
    directory
}
