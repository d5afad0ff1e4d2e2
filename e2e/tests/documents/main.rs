//! Documents that take a machine of their own, from top to bottom, and what they show.
//!
//! A block marked `sh` is run as root, one marked `sh USER` as that user; `sh server` and `sh server USER` are processes
//! that go on to the end of the page, and `sh fails` and `sh fails USER` end with an error, which is compared from the
//! line `error:` on. (The documents that any user can follow are run by `ah-cli`'s tests, those marked `sh debian` by
//! `make test-packages`.)

mod monitoring;
mod vault;

use std::fs;
use std::path::Path;
use std::process::Command;

use ah_e2e::Machine;
use ah_testkit::document::{Block, Placeholders, blocks};
use ah_testkit::process::{Finished, Process, eventually};
use vault::Vault;

/// What answers once a process is of use.
fn ready(script: &str) -> &'static str {
    [
        (
            "spire-server run",
            "spire-server healthcheck -socketPath /run/spire/server.sock",
        ),
        (
            "spire-agent run",
            "spire-agent healthcheck -socketPath /run/spire/agent.sock",
        ),
        ("ah agent access-point", "ah agent fleet list"),
        ("ah agent enroll", "ah agent status"),
    ]
    .into_iter()
    .find_map(|(server, check)| script.contains(server).then_some(check))
    .unwrap_or_else(|| panic!("when is this ready? {script}"))
}

/// The machine that the reader of a page sits at.
struct Reader {
    machine: Machine,
    vault: Option<Vault>,
}

impl Reader {
    /// `None` where the machine or Vault cannot be had.
    fn new(blocks: &[Block]) -> Option<Self> {
        if !blocks.iter().any(|block| block.script.contains("vault ")) {
            let machine = Machine::new()?;
            return Some(Self {
                machine,
                vault: None,
            });
        }
        let program = Vault::program()?;
        let machine = Machine::with(&[("vault", &program)])?;
        let vault = Some(Vault::start(&machine)?);
        Some(Self { machine, vault })
    }

    /// A shell for pasted lines.
    fn shell(&self, user: &str, lines: &str) -> Command {
        let mut shell = self
            .machine
            .command_as(user, ["bash", "-euo", "pipefail", "-c", lines]);
        shell.envs(self.vault.iter().flat_map(Vault::environment));
        shell
    }

    fn serve(&self, user: &str, script: &str) -> Process {
        let line = format!("exec {}", script.trim_start());
        let mut server = Process::start(&mut self.shell(user, &line));
        let check = ready(script);
        eventually(check, || {
            let said = server.lines().join("\n");
            assert!(server.is_running(), "{script}:\n{said}");
            let asked = self.machine.command_as(user, check.split(' ')).output();
            asked.expect("it runs").status.success().then_some(())
        });
        server
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
}

fn follow(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(document);
    let text = fs::read_to_string(path).expect("the document is there");
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{document} has no command");
    let Some(reader) = Reader::new(&blocks) else {
        return;
    };
    let mut known = Placeholders::default();
    let mut servers = Vec::new();
    for Block {
        kind,
        script,
        shown,
        ..
    } in &blocks
    {
        let script = known.fill(script);
        let mut words = kind.iter().skip(1).map(String::as_str).peekable();
        let goes_on = words.next_if_eq(&"server").is_some();
        let fails = words.next_if_eq(&"fails").is_some();
        let user = words.next().unwrap_or("root");
        if goes_on {
            assert!(shown.is_none(), "{document}: nothing compares this");
            servers.push(reader.serve(user, &script));
            continue;
        }
        let printed = reader.run(user, &script, fails);
        assert!(
            shown.is_some() || !fails,
            "{document}: which error? {script}"
        );
        if let Some(shown) = shown {
            let compared = known.compare(shown, &printed);
            compared.unwrap_or_else(|drift| panic!("{document}:\n{script}\n{drift}\n{printed}"));
        }
    }
}

// Issue: every command block in the documents runs, and shows what it prints.
#[test]
fn spire_from_top_to_bottom() {
    follow("docs/spire.md");
}

#[test]
fn vault_from_top_to_bottom() {
    follow("docs/providers/vault.md");
}

// ER-1 to ER-23
#[test]
fn every_error_as_it_is_provoked() {
    follow("docs/errors.md");
}
