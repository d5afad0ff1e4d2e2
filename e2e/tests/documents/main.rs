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

/// A machine on which a document was followed.
struct Followed {
    machine: Machine,
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
    let machine = Machine::new()?;
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
    Some(Followed {
        machine,
        text,
        servers,
    })
}

// Issue: every command block in the documents runs, and shows what it prints.
#[test]
fn spire_from_top_to_bottom() {
    let _ = follow("docs/spire.md");
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
    let whoami = "spire-agent api fetch jwt -audience harbor -socketPath /run/spire/partner-agent.sock -output json";
    let fetched = page.machine.shell_as("executor", whoami).stdout;
    let fetched: serde_json::Value = serde_json::from_str(&fetched).expect("it is JSON");
    let token = fetched[0]["svids"][0]["svid"].as_str().expect("a token");
    let validate = format!(
        "spire-agent api validate jwt -audience harbor -svid {token} -socketPath /run/spire/agent.sock"
    );
    let validated = page.machine.shell_as("agent-harbor", &validate).stdout;
    let id = "spiffe://partner.example/ah/agent/executor-1";
    assert!(validated.contains(id), "{validated}");

    let delete = "spire-server bundle delete -id spiffe://partner.example -mode dissociate -socketPath /run/spire/server.sock";
    assert!(page.text.contains(delete), "the page lacks {delete}");
    page.machine.shell(delete);
    access_point.wait_for("executor disconnected");
    executor.wait_for("retrying in");
    let refused = page
        .machine
        .command_as("agent-harbor", ["bash", "-c", &validate])
        .output();
    assert!(!refused.expect("it runs").status.success());
}
