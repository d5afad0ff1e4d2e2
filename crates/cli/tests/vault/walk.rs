//! A machine on which the guide is followed: its host names, its ports, its Vault and nobody else's.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::need;
use ah_testkit::openbao::{Listen, OpenBao};
use ah_testkit::process::{Finished, Host, Process};
use serde_json::json;

use crate::kit::{AH, host};
use crate::tokens_of_others::{jwt, service_account, token_review};

/// The guide's blocks of commands, each with its name.
fn printed(name: &str) -> String {
    let fixture = include_str!("../fixtures/vault-guide.txt");
    let mut blocks = fixture.split("\n== ").skip(1);
    let found = blocks.find_map(|block| {
        let (title, text) = block.split_once('\n')?;
        (title == name).then(|| text.trim_end().to_owned())
    });
    found.unwrap_or_else(|| panic!("the guide prints no {name:?}"))
}

/// Every name there is.
fn all_printed() -> BTreeSet<&'static str> {
    let fixture = include_str!("../fixtures/vault-guide.txt");
    let blocks = fixture.split("\n== ").skip(1);
    blocks
        .filter_map(|block| Some(block.split_once('\n')?.0))
        .collect()
}

/// A network and a file system of its own, in which `vault.example.com` and `access-point.example.com` are this
/// machine, and a sealed raft server with TLS.
pub(crate) struct Walk {
    pub(crate) host: Host,
    pub(crate) bao: OpenBao,
    followed: RefCell<BTreeSet<&'static str>>,
    // After the server and the cluster, which run in it.
    _kubernetes: Process,
    _place: Process,
}

impl Walk {
    /// `None` where a tool is missing, or root.
    pub(crate) fn begin() -> Option<Self> {
        let tools = ["unshare", "nsenter", "ip", "mount"];
        if !tools.into_iter().all(need) || !root() {
            return None;
        }
        let host = host();
        let hosts = "127.0.0.1 localhost vault.example.com access-point.example.com kubernetes.default.svc\n";
        std::fs::write(host.path("hosts"), hosts).unwrap();
        let mut command = Command::new("unshare");
        let script = "ip link set lo up
             mount --bind hosts /etc/hosts
             mount -t tmpfs tmpfs /var/log
             mkdir /var/log/vault
             mount -t tmpfs tmpfs /run
             mkdir -p /run/secrets/kubernetes.io
             ln -s $PWD/pod /run/secrets/kubernetes.io/serviceaccount
             echo ready
             exec sleep infinity";
        command
            .args(["--net", "--mount", "sh", "-euc", script])
            .current_dir(host.path(""));
        let place = Process::start(&mut command);
        place.wait_for("ready");
        let inside = [
            "nsenter",
            "-t",
            &place.pid().to_string(),
            "-n",
            "-m",
            "--wd=.",
        ];
        let wrapper = inside.map(str::to_owned).to_vec();

        let ca = TestCa::new("example.org");
        let files = ca
            .leaf()
            .dns("vault.example.com")
            .issue()
            .write(&host.path(""), "vault");
        let kubernetes = kubernetes(&host, &ca, &wrapper);
        let listen = Listen {
            host: Some("vault.example.com".to_owned()),
            port: Some(8200),
            tls: Some([files.cert, files.key, ca.write(&host.path(""), "vault-ca")]),
            wrapper,
        };
        let bao = OpenBao::raft(&listen)?;
        Some(Self {
            host,
            bao,
            followed: RefCell::default(),
            _kubernetes: kubernetes,
            _place: place,
        })
    }

    /// The guide's block `name`, which counts as followed.
    pub(crate) fn printed(&self, name: &'static str) -> String {
        self.followed.borrow_mut().insert(name);
        printed(name)
    }

    /// Panics if the guide prints anything that was not followed.
    pub(crate) fn was_whole(&self) {
        assert_eq!(*self.followed.borrow(), all_printed());
    }

    /// Types the guide's block `name` as it is printed; it must succeed. Returns what was shown.
    #[track_caller]
    pub(crate) fn follow(&self, name: &'static str) -> String {
        let script = self.printed(name);
        self.bao.sh(&self.host.path(""), &script)
    }

    /// The executors' role id and a new secret id.
    pub(crate) fn executor_credentials(&self) -> (String, String) {
        let path = "auth/approle/role/executor";
        let role_id = &self.bao.read(&format!("{path}/role-id"))["data"]["role_id"];
        let made = self.bao.write(&format!("{path}/secret-id"), json!({}));
        let [role_id, secret_id] =
            [role_id, &made["data"]["secret_id"]].map(|value| value.as_str().unwrap().to_owned());
        (role_id, secret_id)
    }

    /// A shell at that place, with `environment`, in which `ah` is the program under test. When `ah` starts it
    /// takes the shell's place.
    pub(crate) fn shell(&self, environment: &[(&str, &str)], script: &str) -> Command {
        let program = Path::new(AH).display();
        let script = format!("ah() {{ exec {program} \"$@\"; }}\n{script}");
        let mut command = self.bao.shell(&self.host.path(""), &script);
        command
            .env_remove("VAULT_TOKEN")
            .env_remove("VAULT_ADDR")
            .env("STATE_DIRECTORY", self.host.state())
            .env("RUNTIME_DIRECTORY", self.host.run_directory())
            .envs(environment.iter().copied());
        command
    }

    /// Runs `script` there to its end.
    pub(crate) fn run(&self, environment: &[(&str, &str)], script: &str) -> Finished {
        Finished::from(self.shell(environment, script).output().unwrap())
    }

    /// Starts `script` there.
    pub(crate) fn start(&self, environment: &[(&str, &str)], script: &str) -> Process {
        Process::start(&mut self.shell(environment, script))
    }
}

/// What a pod finds of its cluster: its service account's token, and the interface that knows it.
fn kubernetes(host: &Host, ca: &TestCa, wrapper: &[String]) -> Process {
    let pod = host.path("pod");
    std::fs::create_dir(&pod).unwrap();
    ca.write(&pod, "ca");
    std::fs::rename(pod.join("ca.pem"), pod.join("ca.crt")).unwrap();
    let token = jwt(
        host,
        "cluster",
        &service_account("agent-harbor", "ah-executor"),
    );
    std::fs::write(pod.join("token"), &token).unwrap();
    let account = format!("{token} agent-harbor ah-executor\n");
    std::fs::write(host.path("accounts"), account).unwrap();
    let leaf = ca.leaf().dns("kubernetes.default.svc").issue();
    leaf.write(&host.path(""), "kubernetes");
    token_review(host, wrapper, 443, Some("kubernetes")).0
}

pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "root is needed");
    if !root {
        println!("skipped: needs root");
    }
    root
}
