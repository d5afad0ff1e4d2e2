//! The packages on a Debian of their own: made by debootstrap, booted by systemd-nspawn. `make test-packages`.

use std::path::{Path, PathBuf};
use std::process::Command;

use ah_testkit::document;
use ah_testkit::process::{Finished, Process, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use ah_e2e::packages::{packages, root, run, scratch, sh};

/// Beside what every Debian has: systemd as the first process, and what the pages use besides ours. What `ah`
/// recommends is not needed.
const INCLUDED: &str = "systemd,systemd-sysv,dbus,jq,sqlite3,postgresql";

/// A directory with a bare Debian of this machine's release. Made once; the mirror is the one that apt uses here.
fn bare_debian() -> PathBuf {
    let place = ah_e2e::programs().join(format!("debian-with-{}", INCLUDED.replace(',', "-")));
    if !place.exists() {
        let making = scratch();
        let script = r#"
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' "Codename: $release" | head -1)
[[ -n $mirror ]] || { echo "apt knows no mirror of Debian $release" >&2; exit 1; }
debootstrap --variant=minbase --include="$2" "$release" "$1/tree" "$mirror" >&2
"#;
        sh(script, &[making.path(), Path::new(INCLUDED)]);
        std::fs::rename(making.path().join("tree"), &place).unwrap();
    }
    place
}

/// A copy of the bare Debian, and the packages of two revisions in its `/packages`.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        let directory = scratch();
        let tree = directory.path().join("tree");
        sh(r#"cp -a "$1" "$2""#, &[&bare_debian(), &tree]);
        for revision in ["1", "2"] {
            packages(&tree.join("packages").join(revision), revision);
        }
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("tree")
    }

    /// Runs lines in it while it is not booted, as an image builder does.
    #[track_caller]
    fn shell(&self, lines: &str) -> String {
        let mut shell = Command::new("systemd-nspawn");
        shell
            .args(["--quiet", "--register=no", "--keep-unit", "--directory"])
            .arg(self.path())
            .args(["bash", "-euo", "pipefail", "-c", lines]);
        run(clean(&mut shell))
    }
}

fn clean(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
}

/// That Debian while it runs. Everything on it ends with it.
struct Booted {
    _console: Process,
    leader: Pid,
}

impl Booted {
    fn boot(tree: &Tree) -> Self {
        let console = Process::start(
            Command::new("systemd-nspawn")
                .args([
                    "--quiet",
                    "--register=no",
                    "--keep-unit",
                    "--private-network",
                    "--boot",
                ])
                .arg("--directory")
                .arg(tree.path()),
        );
        console.wait_for("Welcome to");
        let children = format!("/proc/{0}/task/{0}/children", console.pid());
        let children = std::fs::read_to_string(children).unwrap();
        let leader = Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap());
        let booted = Self {
            _console: console,
            leader,
        };
        eventually("a system bus", || {
            let asked = booted
                .command(["systemctl", "is-system-running", "--wait"])
                .output()
                .unwrap();
            let state = String::from_utf8_lossy(&asked.stdout);
            ["running", "degraded"]
                .contains(&state.trim())
                .then_some(())
        });
        booted
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--target",
            ])
            .arg(self.leader.to_string())
            .args(arguments);
        clean(&mut command);
        command
    }

    /// Runs lines on it as root.
    #[track_caller]
    fn shell(&self, lines: &str) -> String {
        let finished = Finished::from(
            self.command(["timeout", "120", "bash", "-euo", "pipefail", "-c", lines])
                .output()
                .unwrap(),
        );
        assert_eq!(
            finished.code,
            0,
            "{lines}\n{finished:?}\n{}",
            self.journal()
        );
        finished.stdout
    }

    fn journal(&self) -> String {
        let mut journal = self.command(["journalctl", "--no-pager", "--lines=80"]);
        String::from_utf8_lossy(&journal.output().unwrap().stdout).into_owned()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // The first process of a namespace takes all others along.
        let _ = kill(self.leader, Signal::SIGKILL);
    }
}

/// What a person types on such a machine, from the page that says so: its blocks marked `sh debian`, in their order.
fn documented(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut blocks = document::blocks(&text);
    blocks.retain(|block| block.kind.get(1).is_some_and(|word| word == "debian"));
    assert!(!blocks.is_empty(), "{page} has none");
    blocks.into_iter().map(|block| block.script).collect()
}

/// The machine's agent.
const AGENT: &str = r"spire-server agent list -socketPath /run/spire/server.sock | grep -oP 'spiffe://[^\s]+' | head -1";

/// The one that the machine's executor enrolled with.
const CERTIFICATE: &str = "ah agent fleet show spiffe://example.org/ah/agent/executor-1 --json | jq -r .certificate.serial";

/// `entry` makes an entry below the machine's agent.
const ENTRY: &str = r#"
agent=$(spire-server agent list -socketPath /run/spire/server.sock | grep -oP 'spiffe://[^\s]+' | head -1)
entry() {
  spire-server entry create -socketPath /run/spire/server.sock -parentID "$agent" "$@"
}"#;

const ENTRIES: &str = r#"
entry -spiffeID spiffe://example.org/ah/serve -selector unix:user:agent-harbor
# The path needs the agent's capability: the process is another user's.
entry -spiffeID spiffe://example.org/ah/agent/executor-1 -selector unix:user:executor -selector unix:path:/usr/bin/ah
entry -spiffeID spiffe://example.org/ah/agent/comer -selector unix:user:nobody"#;

// Issue: a fresh Debian with nothing but the packages does what the guides say, and an upgrade hurts nobody.
#[test]
fn installed_upgraded_removed_and_purged() {
    let tree = Tree::new();
    not_booted(&tree);
    let debian = Booted::boot(&tree);
    let [
        install,
        spire_server,
        spire_agent,
        access_point,
        executor,
        listen,
        replace,
    ] = <[String; 7]>::try_from(documented("docs/install.md")).unwrap();
    services(
        &debian,
        &[install, spire_server, spire_agent, access_point, executor],
    );
    debian.shell(&listen);
    enrolled(&debian);
    upgrade(&debian, &replace);
    other_pages(&debian);
    removal(&debian);
}

/// As an image builder installs: nothing may start.
fn not_booted(tree: &Tree) {
    tree.shell(
        r#"
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
dpkg --install /packages/1/*.deb
[[ -z $(dpkg --audit) ]]
[[ $(id -Gn agent-harbor) == 'agent-harbor ah' && $(id -Gn executor) == 'executor ah' ]]
[[ $(id -Gn spire-agent) == 'spire-agent spire' && $(id -Gn spire-server) == 'spire-server spire' ]]
[[ $(stat -c '%U:%G %a' /run/ah) == 'root:ah 1775' && $(stat -c '%U:%G %a' /run/spire) == 'root:spire 1775' ]]
[[ $(stat -c '%U:%G %a' /etc/spire/server.conf) == 'root:spire-server 640' ]]
[[ $(stat -c '%U:%G %a' /etc/spire/agent.conf) == 'root:spire-agent 640' ]]
# Nothing is enabled; what is, is forgotten by a purge alone.
[[ -z $(find /etc/systemd/system -name 'ah-*' -o -name 'spire-*') ]]
systemctl enable ah-access-point spire-agent
dpkg --install /packages/2/*.deb
dpkg --remove ah spire-agent
[[ -L /etc/systemd/system/sockets.target.wants/ah-access-point.socket && -e /etc/ah/executor.toml && ! -e /usr/bin/ah ]]
dpkg --purge ah spire-agent spire-server
[[ -z $(find /etc/systemd/system -name 'ah-*' -o -name 'spire-*') && ! -e /etc/ah && ! -e /etc/spire ]]
rm /usr/sbin/policy-rc.d
"#,
    );
}

/// The SPIFFE page, with the services.
fn services(debian: &Booted, page: &[String; 5]) {
    let [install, spire_server, spire_agent, access_point, executor] = page;
    debian.shell(
        "echo '127.0.0.1 localhost spire-server.example.org access-point.example.org db.example.org' > /etc/hosts",
    );
    // There is no mirror to take what is only recommended from.
    debian.shell("echo 'APT::Install-Recommends \"false\";' > /etc/apt/apt.conf.d/alone");
    debian.shell(&format!("cd /packages/1\n{install}"));
    // Who installs it and does nothing has nothing that runs.
    nothing_runs(debian);
    let token = debian.shell(spire_server);
    let token = token.lines().find_map(|line| line.strip_prefix("Token: "));
    let token = token.unwrap();
    debian.shell(&format!(
        r#"sed -i 's|# join_token = .*|join_token = "{token}"|' /etc/spire/agent.conf"#
    ));
    debian.shell(spire_agent);
    debian.shell(&format!("{ENTRY}{ENTRIES}"));
    debian.shell(access_point);
    debian.shell(executor);
    enrolled(debian);
    let fleet = debian.shell("ah agent fleet list");
    assert!(
        fleet.contains("spiffe://example.org/ah/agent/executor-1"),
        "{fleet}"
    );
    debian.shell(
        r#"
systemctl reload ah-access-point ah-executor
for unit in spire-server spire-agent ah-access-point ah-executor; do
  [[ $(systemctl show --property=ActiveState,NRestarts,WatchdogUSec $unit | sort | xargs) == 'ActiveState=active NRestarts=0 WatchdogUSec=30s' ]]
  [[ $(stat -c %U "/proc/$(systemctl show --value --property=MainPID $unit)") != root ]]
done
[[ $(stat -c '%U %a' /var/lib/ah) == 'agent-harbor 700' && $(stat -c '%U %a' /var/lib/spire/server) == 'spire-server 700' ]]
"#,
    );
}

/// Root sees both through their sockets.
fn enrolled(debian: &Booted) {
    eventually("enrolled", || {
        let asked = debian.command(["ah", "agent", "status"]).output().unwrap();
        asked.status.success().then_some(())
    });
}

/// Sessions are live and executors keep coming while every package is replaced.
fn upgrade(debian: &Booted, replace: &str) {
    // Before this the port was let go on purpose.
    let cursor =
        debian.shell("journalctl --no-pager -n 1 --show-cursor | sed -n 's/^-- cursor: //p'");
    let cursor = cursor.trim();
    let mut comers = Process::start(&mut debian.command(["bash", "-c", COMERS]));
    comers.wait_for_nth(" enrolled executor.id=", 1);
    let before = debian.shell(PROCESSES);
    debian.shell(&format!(
        "echo '# mine' >> /etc/ah/access-point.toml; cd /packages/2; {replace}\ndpkg --install ./spire-*.deb"
    ));
    // Settings that somebody changed are kept, and all four services are new processes.
    let after = debian.shell(&format!(
        "grep -q '# mine' /etc/ah/access-point.toml; {PROCESSES}"
    ));
    for (old, new) in before.lines().zip(after.lines()) {
        assert_ne!(old, new, "{after}");
    }
    let count = comers.count(" enrolled executor.id=");
    comers.wait_for_nth(" enrolled executor.id=", count + 2);
    enrolled(debian);
    debian.shell("rm /run/comers");
    comers.wait();
    assert_eq!(
        comers.count("connection refused to"),
        0,
        "{:#?}",
        comers.lines()
    );
    let journal = debian.shell(&format!(
        "journalctl --no-pager --after-cursor='{cursor}' -u ah-executor -u ah-access-point"
    ));
    assert!(!journal.contains("connection refused to"), "{journal}");
    debian.shell(
        "for unit in spire-server spire-agent ah-access-point ah-executor; do
           [[ $(systemctl show --property=ActiveState,NRestarts $unit | sort | xargs) == 'ActiveState=active NRestarts=0' ]]
         done",
    );
}

/// What the other pages have somebody type on such a machine.
fn other_pages(debian: &Booted) {
    // There is something to find.
    debian.shell("ah agent fleet revoke comer; ah agent fleet reinstate comer");
    for script in documented("docs/troubleshooting.md") {
        debian.shell(&script);
        enrolled(debian);
    }
    let [database, access_point, bars, drain, revoke] =
        <[String; 5]>::try_from(documented("docs/high-availability.md")).unwrap();
    debian.shell(&database);
    upgrade_page(debian);

    debian.shell(&access_point);
    enrolled(debian);
    debian.shell(
        "[[ $(runuser -u postgres -- psql -At ah -c 'SELECT count(*) FROM executors') == 1 ]]",
    );
    debian.shell("ah agent fleet revoke 0x17 --reason 'key found'");
    assert!(debian.shell(&bars).contains("key found"));
    debian.shell(&drain);
    debian.shell("systemctl start ah-access-point");
    enrolled(debian);
    security_page(debian);
    debian.shell(&revoke);
}

/// With an older package that can be gone back to, and back again to the backup.
fn upgrade_page(debian: &Booted) {
    // The page runs a copy of the program, which needs an entry that the agent has heard of.
    debian.shell(&format!(
        "{ENTRY}
         entry -spiffeID spiffe://example.org/ah/agent/executor-1 -selector unix:user:executor -selector unix:path:/tmp/new/usr/bin/ah
         dpkg-deb -x /packages/2/ah_*.deb /tmp/new
         until runuser -u executor -- /tmp/new/usr/bin/ah agent enroll --config /etc/ah/executor.toml --validate; do sleep 0.2; done
         ln -s ../1 /packages/2/older"
    ));
    let [
        save,
        validate,
        install,
        versions,
        after,
        back,
        restore,
        postgres,
        bars,
    ] = <[String; 9]>::try_from(documented("docs/upgrade.md")).unwrap();
    let version = || debian.shell("dpkg-query --show --showformat='${Version}' ah");
    let newer = version();
    for script in [save, validate, install] {
        debian.shell(&format!("cd /packages/2\n{script}"));
        enrolled(debian);
    }
    let told = debian.shell(&versions);
    assert!(
        told.contains("spiffe://example.org/ah/agent/executor-1"),
        "{told}"
    );
    debian.shell(&after);
    debian.shell(&format!("cd /packages/2\n{back}"));
    assert_ne!(version(), newer);
    enrolled(debian);
    // The backup does not know of it, and the audit log does.
    debian.shell("ah agent fleet revoke 0x18 --reason 'after the backup'");
    debian.shell(&restore);
    enrolled(debian);
    let left = debian.shell("ah agent fleet list --revoked");
    assert!(!left.contains("after the backup"), "{left}");
    debian.shell(&postgres);
    let told = debian.shell(&bars);
    assert!(told.contains("after the backup"), "{told}");
    debian.shell("cd /packages/2; apt install ./ah_*.deb");
    enrolled(debian);
}

fn security_page(debian: &Booted) {
    let [server, node, token, database, bars] =
        <[String; 5]>::try_from(documented("docs/security.md")).unwrap();
    let certificate = || debian.shell(CERTIFICATE);
    let (old, before) = (debian.shell(AGENT), certificate());
    let told = debian.shell(&server);
    let join = told.lines().find_map(|line| line.strip_prefix("Token: "));
    debian.shell(&format!(
        r#"sed -i 's|join_token = .*|join_token = "{}"|' /etc/spire/agent.conf"#,
        join.unwrap()
    ));
    debian.shell(&node);
    debian.shell(&format!(
        "spire-server agent evict -socketPath /run/spire/server.sock -spiffeID {old}\n{ENTRY}{ENTRIES}"
    ));
    eventually("an executor with an SVID of the new CA", || {
        (certificate() != before).then_some(())
    });
    enrolled(debian);

    debian.shell(HTTP);
    let before = debian.shell("cat /etc/credstore/ah-access-point.http-token");
    assert_eq!(answered(debian, &before), "200");
    debian.shell("ah agent fleet revoke 0x19 --reason thief");
    assert!(debian.shell(&token).contains("thief"));
    assert_eq!(answered(debian, &before), "401");
    let after = debian.shell("cat /etc/credstore/ah-access-point.http-token");
    assert_eq!(answered(debian, &after), "200");
    enrolled(debian);

    // More starts within a minute than systemd lets anybody make.
    debian.shell("systemctl reset-failed ah-access-point");
    debian.shell(&database);
    enrolled(debian);
    debian.shell("! PGPASSWORD=PASSWORD psql -h db.example.org -U ah -c 'SELECT 1' ah");
    assert!(debian.shell(&bars).contains("thief"));
}

/// Makes the access point serve REST to whoever has the token.
const HTTP: &str = r#"
cat >> /etc/ah/access-point.toml << EOF
http_listen = "127.0.0.1:9443"
http_token_file = "/run/credentials/ah-access-point.service/ah-access-point.http-token"
EOF
mkdir -p /etc/credstore
echo a-token-that-somebody-stole > /etc/credstore/ah-access-point.http-token
systemctl restart ah-access-point"#;

/// The status with which REST answers to a token.
fn answered(debian: &Booted, token: &str) -> String {
    let ask = format!(
        "exec 3<> /dev/tcp/127.0.0.1/9443
         printf 'GET /api/v1/executors HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n' >&3
         head -1 <&3 | cut -d' ' -f2",
        token.trim()
    );
    debian.shell(&ask).trim().to_owned()
}

/// Executors of another user, one after the other: each enrolls and goes.
const COMERS: &str = "
touch /run/comers
while [[ -e /run/comers ]]; do
  setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/tmp XDG_RUNTIME_DIR=/tmp ah agent enroll \
    --name comer --status-socket /tmp/comer.sock --once=enrolled 2>&1 || sleep 0.2
done";

const PROCESSES: &str = "systemctl show --value --property=MainPID spire-server spire-agent ah-access-point ah-executor | grep .";

fn nothing_runs(debian: &Booted) {
    debian.shell(
        "for unit in ah-access-point.socket ah-access-point ah-executor spire-server spire-agent; do
           [[ $(systemctl is-active $unit) == inactive ]]
         done",
    );
}

fn removal(debian: &Booted) {
    debian.shell(
        r#"
# What a person wrote there, as the page says.
rm -r /etc/systemd/system/ah-access-point.socket.d
systemctl daemon-reload
touch /etc/ah/cert.pem
dpkg --remove ah
[[ -e /etc/ah/executor.toml && -e /var/lib/ah/access-point.db ]]
if (exec 3<>/dev/tcp/127.0.0.1/4433) 2>/dev/null; then echo 'the port is still open' >&2; exit 1; fi
dpkg --purge ah spire-agent spire-server
[[ -z $(systemctl list-units --all --plain --no-legend 'ah-*' 'spire-*') ]]
[[ ! -e /var/lib/ah && ! -e /var/lib/ah-executor && ! -e /var/lib/spire ]]
# What the package did not make stays.
[[ $(ls /etc/ah) == cert.pem && $(ls /etc/spire) == bundle.pem ]]
[[ -z $(find /etc/systemd/system /var/lib/systemd/deb-systemd-helper-enabled -name 'ah-*' -o -name 'spire-*') ]]
# And what was purged can be installed again.
dpkg --install /packages/2/*.deb
[[ -z $(dpkg --audit) ]]
"#,
    );
}
