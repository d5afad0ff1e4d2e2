//! Each configuration that the guides print, as it is printed there.

use std::fs;

use ah_testkit::need;

use crate::evaluate::{Evaluated, modules, root, text};

/// The guides' text, with the only thing in it that a reader has to replace by a place of their own. Our modules are
/// imported in any case, and once.
fn printed(name: &str) -> String {
    text(&format!("tests/guides/{name}.nix")).replace(
        "imports = [ /path/to/agent-harbor/nix/nixos-modules ];",
        "imports = [ ];",
    )
}

/// The vault guide declares secrets of other names than it uses.
const USED_SECRETS: &str = r#"{
  sops.secrets."vault/env" = { path = "/run/secrets/vault/env"; };
  sops.secrets."vault/executor-env" = { path = "/run/secrets/vault/executor-env"; };
}"#;

/// Compares with the file of this name, or with `UPDATE_EXPECTED` set writes it.
fn is_expected(name: &str, evaluated: &Evaluated) {
    let path = root().join(format!("nix/tests/expected/{name}.txt"));
    let shown = evaluated.shown();
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&path, &shown).expect("it can be written");
    }
    let expected = fs::read_to_string(&path).expect("it can be read");
    assert!(
        shown == expected,
        "{name} is another than {} (UPDATE_EXPECTED=1 takes it over):\n{shown}",
        path.display()
    );
}

// Contract §10
#[test]
fn the_spire_server_of_the_guide() {
    if !need("nix-instantiate") {
        return;
    }
    let evaluated = modules(&[&printed("spire-server")]).unwrap();
    assert!(evaluated.warnings().is_empty());
    is_expected("spire-server", &evaluated);
}

// Contract §10
#[test]
fn the_spire_agent_of_the_guide() {
    if !need("nix-instantiate") {
        return;
    }
    let production = printed("spire-agent");
    let evaluated = modules(&[&production]).unwrap();
    let warnings = evaluated.warnings();
    assert!(warnings[0].contains("services.spire.agent.joinTokenFile"));
    is_expected("spire-agent", &evaluated);

    // The two lines that the guide gives in comments, in the place of those above them.
    let secret = "{ sops.secrets.\"spire/join-token\".path = \"/run/secrets/join-token\"; }";
    let other = format!("{{ config, ... }}:\n{production}")
        .replace("trustBundlePath =", "# trustBundlePath =")
        .replace("joinToken =", "# joinToken =")
        .replace("# insecureBootstrap", "insecureBootstrap")
        .replace("# joinTokenFile", "joinTokenFile");
    let evaluated = modules(&[&other, secret]).unwrap();
    assert!(evaluated.warnings().is_empty());
    let file = evaluated.file("/etc/spire/agent.conf");
    assert!(file.contains("insecure_bootstrap = true"), "{file}");
    assert!(
        file.contains(r#"join_token_file = "/run/secrets/join-token""#),
        "{file}"
    );
    assert!(!file.contains("trust_bundle_path"), "{file}");
}

// Contract §10
#[test]
fn the_postgresql_of_the_guide() {
    if !need("nix-instantiate") {
        return;
    }
    let server = r#"{ services.spire.server = {
        enable = true;
        trustDomain = "example.org";
        nodeAttestors.joinToken.enable = true;
    }; }"#;
    let printed = format!("{{\n{}}}", printed("spire-postgresql"));
    let evaluated = modules(&[server, &printed]).unwrap();
    let file = evaluated.file("/etc/spire/server.conf");
    assert!(
        file.contains(r#"database_type = "postgres""#)
            && file.contains(r#"= "postgres://spire:password@db:5432/spire?sslmode=require""#),
        "{file}"
    );
    let warnings = evaluated.warnings();
    assert!(
        warnings[0].contains("services.spire.server.dataStore.connectionString holds a password")
            && warnings[0].contains("services.spire.server.environmentFile"),
        "{warnings:?}"
    );

    // What the warning says to do.
    let mended = printed.replace(":password@", ":$SPIRE_DB_PASSWORD@");
    let secret = r#"{ services.spire.server.environmentFile = "/run/secrets/spire.env"; }"#;
    let evaluated = modules(&[server, &mended, secret]).unwrap();
    assert!(evaluated.warnings().is_empty());
    let unit = evaluated.unit("spire-server");
    assert!(
        unit.contains("\nEnvironmentFile=/run/secrets/spire.env\n")
            && unit.contains("server.conf -expandEnv\n"),
        "{unit}"
    );
}

// Contract §10, VA-4
#[test]
fn access_point_and_executor_of_the_vault_guide() {
    if !need("nix-instantiate") {
        return;
    }
    for name in ["vault-access-point", "vault-executor"] {
        let evaluated = modules(&[&printed(name), USED_SECRETS]).unwrap();
        assert!(evaluated.warnings().is_empty());
        is_expected(name, &evaluated);
    }
}
