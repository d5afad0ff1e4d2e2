//! Documents that take a machine of their own, from top to bottom, and what they show.
//!
//! (The documents that any user can follow are run by `ah-cli`'s tests, those marked `sh debian` by `make
//! test-packages`.)

mod monitoring;
mod oidc;
mod reader;
mod vault;

use ah_testkit::process::{Finished, eventually};
use reader::Reader;

// Issue: every command block in the documents runs, and shows what it prints.
#[test]
fn spire_from_top_to_bottom() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    reader.page("docs/spire.md");
    reader.page("docs/nixos.md");
    reader.page("docs/plugins/directory.md");
}

// Inventory section 4: secret discovery and delegated identity.
#[test]
fn envoy_and_delegates_from_top_to_bottom() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    reader.page("docs/sds.md");
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
    let Some(mut reader) = Reader::with_vault() else {
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

// What to do when a key is stolen, of fleets that know nothing of SPIRE.
#[test]
fn stolen_keys_of_a_fleet() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    let page = "docs/security.md";
    reader.section(page, "An executor's key is stolen");
    reader.section(page, "The audit log is changed");
    let robbed = reader.server("root", "ah agent status");
    robbed.wait_for("certificate revoked");
    reader.page("docs/providers/files.md");
    reader.section(page, "An issuing CA is stolen");
}

#[test]
fn stolen_keys_of_a_fleet_with_vault() {
    let Some(mut reader) = Reader::with_vault() else {
        return;
    };
    let page = "docs/security.md";
    reader.page("docs/providers/vault.md");
    reader.section(page, "A Vault secret id is stolen");
    reader.end("ah agent");
    reader.section(page, "An issuer in Vault is stolen");
}

// SV-53: what of SPIRE can be stolen.
#[test]
fn stolen_keys_of_a_trust_domain() {
    let Some(mut reader) = Reader::new() else {
        return;
    };
    let page = "docs/security.md";
    reader.page("docs/spire.md");
    reader.section(page, "An access point's key is stolen");
    let late = "ah agent enroll --remote-server https://access-point.example.org:4433 --identity spiffe --name late --once";
    let late = reader
        .machine
        .command_as("executor", late.split(' '))
        .output();
    let late = Finished::from(late.expect("it runs"));
    let mismatch = "error: server SPIFFE ID mismatch: expected spiffe://example.org/ah/serve, got spiffe://example.org/ah/serve-2";
    assert!(late.stderr.contains(mismatch), "{late:?}");

    let executor = |reader: &Reader| {
        let executor = reader.server("executor", "ah agent status");
        executor.wait_for(" enrolled executor.id=");
        executor.count("retrying in")
    };
    let tried = executor(&reader);
    reader.section(page, "A SPIRE server's CA key is stolen");
    assert_eq!(executor(&reader), tried, "the session is kept");
    let machine = &reader.machine;
    let bundle = machine
        .shell("spire-server bundle show -socketPath /run/spire/server.sock")
        .stdout;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1, "{bundle}");
    let executor = reader.server("executor", "ah agent status");
    executor.wait_for("enrollment moved to a new connection");

    // A thief is there before the node.
    let told = machine.shell("spire-server token generate -socketPath /run/spire/server.sock");
    let token = told
        .stdout
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("Token: "));
    let token = token.expect("a token").to_owned();
    for who in ["thief", "node"] {
        machine.shell(&format!(
            "mkdir /var/lib/{who}
             sed -e 's|/var/lib/spire/agent|/var/lib/{who}|; s|agent.sock|{who}.sock|; s|/admin.sock|/{who}-admin.sock|; s|join_token = .*|join_token = \"{token}\"|' \\
               /etc/spire/agent.conf > /tmp/{who}.conf"
        ));
    }
    let mut thief = machine.start("root", "spire-agent run -config /tmp/thief.conf");
    let agent = format!("spiffe://example.org/spire/agent/join_token/{token}");
    eventually("the thief's agent is attested", || {
        assert!(thief.is_running(), "{:#?}", thief.lines());
        let listed = machine.shell("spire-server agent list -socketPath /run/spire/server.sock");
        listed.stdout.contains(&agent).then_some(())
    });
    let node = machine.start("root", "spire-agent run -config /tmp/node.conf");
    node.wait_for("join token does not exist or has already been used");
    reader.learn("fed654cba321...", &token);
    reader.section(page, "A join token is stolen");
    thief.wait_for("the agent was banned on the server");

    reader.section(page, "An agent's SVID key is stolen");
    let agent = reader.server("root", "spire-agent healthcheck");
    agent.wait_for("the agent was banned on the server");
    let executor = reader.server("executor", "ah agent status");
    executor.wait_for("certificate revoked");
}
