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

/// A machine on which a document was followed.
struct Followed {
    reader: Reader,
    text: String,
    /// In the document's order.
    servers: Vec<Process>,
}

fn follow(document: &str) -> Option<Followed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(document);
    let text = fs::read_to_string(path).expect("the document is there");
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{document} has no command");
    let reader = Reader::new(&blocks)?;
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
    Some(Followed {
        reader,
        text,
        servers,
    })
}

// Issue: every command block in the documents runs, and shows what it prints.
#[test]
fn spire_from_top_to_bottom() {
    let _ = follow("docs/spire.md");
}

// Inventory section 4: secret discovery and delegated identity.
#[test]
fn envoy_and_delegates_from_top_to_bottom() {
    let _ = follow("docs/sds.md");
}

#[test]
fn vault_from_top_to_bottom() {
    let _ = follow("docs/providers/vault.md");
}

// ER-1 to ER-23
#[test]
fn every_error_as_it_is_provoked() {
    let _ = follow("docs/errors.md");
}

// SV-52, SV-54 to SV-56: an executor of one trust domain at the access point of another; and what becomes of it when
// the bundle goes.
#[test]
fn federation_from_top_to_bottom_and_its_end() {
    let Some(page) = follow("docs/federation.md") else {
        return;
    };
    let [.., access_point, executor] = page.servers.as_slice() else {
        panic!("the page ends with an access point and an executor");
    };
    let machine = &page.reader.machine;
    let whoami = "spire-agent api fetch jwt -audience harbor -socketPath /run/spire/partner-agent.sock -output json";
    let fetched = machine.shell_as("executor", whoami).stdout;
    let fetched: serde_json::Value = serde_json::from_str(&fetched).expect("it is JSON");
    let token = fetched[0]["svids"][0]["svid"].as_str().expect("a token");
    let validate = format!(
        "spire-agent api validate jwt -audience harbor -svid {token} -socketPath /run/spire/agent.sock"
    );
    let validated = machine.shell_as("agent-harbor", &validate).stdout;
    let id = "spiffe://partner.example/ah/agent/executor-1";
    assert!(validated.contains(id), "{validated}");

    let delete = "spire-server bundle delete -id spiffe://partner.example -mode dissociate -socketPath /run/spire/server.sock";
    assert!(page.text.contains(delete), "the page lacks {delete}");
    machine.shell(delete);
    access_point.wait_for("executor disconnected");
    executor.wait_for("retrying in");
    let refused = machine
        .command_as("agent-harbor", ["bash", "-c", &validate])
        .output();
    assert!(!refused.expect("it runs").status.success());
}
