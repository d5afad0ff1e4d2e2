//! The machine that the reader of some pages sits at.
//!
//! A block marked `sh` is run as root, one marked `sh USER` as that user, both from their home; `sh server` and
//! `sh server USER` are processes that go on, and one that answers where another did takes its place; `sh fails` and
//! `sh fails USER` end with an error, which is compared from the line `error:` on.

use std::fs;
use std::path::Path;
use std::process::Command;

use ah_e2e::Machine;
use ah_testkit::document::{Block, Placeholders, blocks};
use ah_testkit::process::{Finished, Process, eventually};
use nix::sys::signal::Signal;

use crate::vault::Vault;

/// What answers once a process is of use.
fn ready(script: &str) -> String {
    let check = [
        (
            "partner-server.conf",
            "spire-server healthcheck -socketPath /run/spire/partner-server.sock",
        ),
        (
            "partner-agent.conf",
            "spire-agent healthcheck -socketPath /run/spire/partner-agent.sock",
        ),
        (
            "spire-server run",
            "spire-server healthcheck -socketPath /run/spire/server.sock",
        ),
        (
            "spire-agent run",
            "spire-agent healthcheck -socketPath /run/spire/agent.sock",
        ),
        (
            "oidc-discovery-provider",
            "curl --silent --fail http://localhost:8008/ready",
        ),
        ("ah agent access-point", "ah agent fleet list"),
        ("ah agent enroll", "ah agent status"),
    ]
    .into_iter()
    .find_map(|(server, check)| script.contains(server).then_some(check))
    .unwrap_or_else(|| panic!("when is this ready? {script}"));
    let mut words = script.split_whitespace();
    match (words.find(|word| *word == "--name"), words.next()) {
        (Some(flag), Some(name)) => format!("{check} {flag} {name}"),
        _ => check.to_owned(),
    }
}

/// A process that goes on.
struct Server {
    user: String,
    /// Ends well once the process is of use.
    check: String,
    process: Process,
}

/// A machine, and what somebody did on it as pages say.
pub(crate) struct Reader {
    pub(crate) machine: Machine,
    vault: Option<Vault>,
    known: Placeholders,
    servers: Vec<Server>,
}

impl Reader {
    /// `None` where the machine cannot be had.
    pub(crate) fn new() -> Option<Self> {
        Self::on(&[])
    }

    /// On a machine that has further programs, each by its name and its path here.
    pub(crate) fn on(further: &[(&str, &Path)]) -> Option<Self> {
        Some(Self::at(Machine::with(further)?, None))
    }

    /// With a Vault, whose operator is root. `None` where either cannot be had.
    pub(crate) fn with_vault() -> Option<Self> {
        let program = Vault::program()?;
        let machine = Machine::with(&[("vault", &program)])?;
        let vault = Vault::start(&machine)?;
        Some(Self::at(machine, Some(vault)))
    }

    fn at(machine: Machine, vault: Option<Vault>) -> Self {
        machine.shell("install -d \"$HOME\"");
        Self {
            machine,
            vault,
            known: Placeholders::default(),
            servers: Vec::new(),
        }
    }

    /// Follows a page from its top to its end.
    pub(crate) fn page(&mut self, document: &str) {
        self.follow(document, read(document));
    }

    /// Follows what stands below a `##` heading.
    pub(crate) fn section(&mut self, document: &str, heading: &str) {
        let mut blocks = read(document);
        blocks.retain(|block| block.section == heading);
        self.follow(document, blocks);
    }

    /// Follows a page up to the first process that goes on.
    pub(crate) fn preparations(&mut self, document: &str) {
        let before = read(document).into_iter();
        let before =
            before.take_while(|block| block.kind.get(1).is_none_or(|word| word != "server"));
        self.follow(document, before.collect());
    }

    fn follow(&mut self, document: &str, blocks: Vec<Block>) {
        assert!(!blocks.is_empty(), "{document} has no command");
        for Block {
            kind,
            script,
            shown,
            ..
        } in blocks
        {
            let script = self.known.fill(&script);
            let mut words = kind.iter().skip(1).map(String::as_str).peekable();
            let goes_on = words.next_if_eq(&"server").is_some();
            let fails = words.next_if_eq(&"fails").is_some();
            let user = words.next().unwrap_or("root");
            if goes_on {
                assert!(shown.is_none(), "{document}: nothing compares this");
                self.serve(user, &script);
                continue;
            }
            let printed = self.run(user, &script, fails);
            assert!(
                shown.is_some() || !fails,
                "{document}: which error? {script}"
            );
            if let Some(shown) = shown {
                let compared = self.known.compare(&shown, &printed);
                compared
                    .unwrap_or_else(|drift| panic!("{document}:\n{script}\n{drift}\n{printed}"));
            }
        }
    }

    /// A shell for pasted lines, in the home of `user`.
    fn shell(&self, user: &str, lines: &str) -> Command {
        let lines = format!("cd\n{lines}");
        let mut shell = self
            .machine
            .command_as(user, ["bash", "-euo", "pipefail", "-c", &lines]);
        shell.envs(self.vault.iter().flat_map(Vault::environment));
        shell
    }

    fn is_well(&self, server: &Server) -> bool {
        let asked = self
            .machine
            .command_as(&server.user, server.check.split(' '))
            .output();
        asked.expect("it runs").status.success()
    }

    /// Starts what goes on. What was well before is well again afterwards.
    fn serve(&mut self, user: &str, script: &str) {
        let check = ready(script);
        let mut others = std::mem::take(&mut self.servers);
        let before = others
            .iter()
            .position(|server| server.user == user && server.check == check);
        let before = before.map(|at| others.remove(at));
        let (well, ill) = others.into_iter().partition(|other| self.is_well(other));
        self.servers = ill;
        if let Some(mut before) = before
            && before.process.is_running()
        {
            before.process.signal(Signal::SIGTERM);
            let ended = before.process.wait();
            assert!(ended.success(), "{:#?}", before.process.lines());
        }
        let line = format!("exec {}", script.trim_start());
        let started = Server {
            user: user.to_owned(),
            check,
            process: Process::start(&mut self.shell(user, &line)),
        };
        for server in well.into_iter().chain([started]) {
            self.wait_until_well(script, server);
        }
    }

    fn wait_until_well(&mut self, script: &str, mut server: Server) {
        let check = server.check.clone();
        eventually(&check, || {
            let said = server.process.lines().join("\n");
            assert!(server.process.is_running(), "{script}:\n{said}");
            self.is_well(&server).then_some(())
        });
        self.servers.push(server);
    }

    /// What a block prints: all of it, or of one that has to fail its error.
    fn run(&self, user: &str, script: &str, fails: bool) -> String {
        let ran = self.shell(user, script).output().expect("a shell runs");
        let ran = Finished::from(ran);
        assert_eq!(ran.code != 0, fails, "{script}\n{ran:#?}");
        if !fails {
            return ran.stdout;
        }
        let said = ran.stderr.lines();
        let error = said.skip_while(|line| !line.starts_with("error: "));
        error.collect::<Vec<_>>().join("\n")
    }

    /// Has a page's placeholder stand for what only the test knows.
    pub(crate) fn learn(&mut self, placeholder: &str, value: &str) {
        self.known.insert(placeholder, value);
    }

    /// The process of `user` that this check asks.
    pub(crate) fn server(&self, user: &str, check: &str) -> &Process {
        let mut servers = self.servers.iter();
        let found = servers.find(|server| server.user == user && server.check.starts_with(check));
        let found = found.unwrap_or_else(|| panic!("{user} runs nothing that {check} asks"));
        &found.process
    }

    /// Ends the processes that such a check asks, as a power cut would.
    pub(crate) fn end(&mut self, check: &str) {
        self.servers
            .retain(|server| !server.check.starts_with(check));
    }
}

/// The command blocks that are followed on such a machine.
fn read(document: &str) -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(document);
    let mut blocks = blocks(&fs::read_to_string(path).expect("the document is there"));
    blocks.retain(|block| block.kind.get(1).is_none_or(|word| word != "debian"));
    blocks
}
