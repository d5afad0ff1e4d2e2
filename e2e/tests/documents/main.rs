//! Documents that take a machine of their own, from top to bottom, and what they show.
//!
//! (The documents that any user can follow are run by `ah-cli`'s tests, those marked `sh debian` by `make
//! test-packages`.)

mod monitoring;
mod reader;
mod vault;

use reader::Reader;

// Issue: every command block in the documents runs, and shows what it prints.
#[test]
fn spire_from_top_to_bottom() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    reader.page("docs/spire.md");
}

#[test]
fn vault_from_top_to_bottom() {
    let Some(mut reader) = Reader::with_vault() else {
        return;
    };
    reader.page("docs/providers/vault.md");
}

// ER-1 to ER-23
#[test]
fn every_error_as_it_is_provoked() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    reader.page("docs/errors.md");
}

// AP-3, EN-3, RG-1: a running fleet goes from one provider to the next and stays the same executors.
#[test]
fn moving_from_dev_to_files_and_on_to_vault() {
    let Some(mut reader) = Reader::with_vault() else {
        return;
    };
    let page = "docs/moving.md";
    reader.preparations("docs/providers/vault.md");
    reader.section(page, "From dev to files");
    reader.section(page, "From files to Vault");
    reader.section(page, "Who has moved");
    for name in ["worker-1", "worker-2"] {
        let executor = reader.server("root", &format!("ah agent status --name {name}"));
        let id = format!(" enrolled executor.id=spiffe://example.org/ah/agent/{name} ");
        executor.wait_for(&id);
    }
}

// AP-3, EN-3, EN-5, RG-1
#[test]
fn moving_from_spiffe_to_vault() {
    let Some(mut reader) = Reader::with_vault() else {
        return;
    };
    reader.page("docs/spire.md");
    reader.preparations("docs/providers/vault.md");
    reader.section("docs/moving.md", "From SPIFFE to Vault");
    reader.end("spire-");
    let machine = &reader.machine;
    machine.shell("[[ ! -S /run/spire/agent.sock ]] || ! spire-agent healthcheck -socketPath /run/spire/agent.sock");
    machine.shell_as("executor", "ah agent status");
    let listed = machine.shell_as("agent-harbor", "ah agent fleet list --json");
    assert_eq!(
        listed.stdout.matches("\"id\":").count(),
        1,
        "nobody became somebody else: {listed:?}"
    );
}

// SV-52, SV-54 to SV-56: an executor of one trust domain at the access point of another; and what becomes of it when
// the bundle goes.
#[test]
fn federation_from_top_to_bottom_and_its_end() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    reader.page("docs/federation.md");
    let access_point = reader.server("agent-harbor", "ah agent fleet");
    access_point.wait_for("executor disconnected");
    let executor = reader.server("executor", "ah agent status");
    executor.wait_for("retrying in");
    // The page's token is worth as little.
    let validate = "spire-agent api validate jwt -audience harbor -svid \"$(cat /tmp/token)\" -socketPath /run/spire/agent.sock";
    let mut validate = reader
        .machine
        .command_as("agent-harbor", ["bash", "-c", validate]);
    assert!(!validate.output().expect("it runs").status.success());
}
