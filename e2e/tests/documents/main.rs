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
