//! Documents that take a machine of their own, from top to bottom, and what they show.
//!
//! A block marked `sh` is run as root, one marked `sh USER` as that user; `sh server` and `sh server USER` are processes
//! that go on to the end of the page. (The documents that any user can follow are run by `ah-cli`'s tests.)

use std::fs;
use std::path::Path;

use ah_e2e::Machine;
use ah_testkit::document::{Placeholders, blocks};
use ah_testkit::process::{Process, eventually};

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

fn serve(machine: &Machine, user: &str, script: &str) -> Process {
    let mut server = machine.start(user, script);
    let check = ready(script);
    eventually(check, || {
        let said = server.lines().join("\n");
        assert!(server.is_running(), "{script}:\n{said}");
        let asked = machine.command_as(user, check.split(' ')).output();
        asked.expect("it runs").status.success().then_some(())
    });
    server
}

fn follow(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(document);
    let text = fs::read_to_string(path).expect("the document is there");
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{document} has no command");
    let Some(machine) = Machine::new() else {
        return;
    };
    let mut known = Placeholders::default();
    let mut servers = Vec::new();
    for block in &blocks {
        let script = known.fill(&block.script);
        let mut words = block.kind.iter().skip(1).map(String::as_str).peekable();
        let goes_on = words.next_if_eq(&"server").is_some();
        let user = words.next().unwrap_or("root");
        if goes_on {
            assert!(block.shown.is_none(), "{document}: nothing compares this");
            servers.push(serve(&machine, user, &script));
            continue;
        }
        let printed = machine.shell_as(user, &script).stdout;
        if let Some(shown) = &block.shown {
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
