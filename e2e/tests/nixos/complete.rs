//! Nothing is missing: settings, documents, and what the package is made of.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use ah_e2e::programs;
use ah_testkit::need;

use crate::evaluate::{modules, nix, root};

/// Flags that make no sense in the settings of a service.
const NO_SETTINGS: [&str; 7] = [
    "config",
    "help",
    "once",
    "print_config",
    "print_config_schema",
    "validate",
    "version",
];

/// Settings whose flag the help does not show, as it is not to be used.
const HIDDEN: &str = "vault_token";

/// The keys of all flags that the help of a command shows.
fn flags(command: &str) -> BTreeSet<String> {
    let help = Command::new(programs().join("ah"))
        .args(["agent", command, "--help"])
        .output()
        .expect("ah runs");
    String::from_utf8_lossy(&help.stdout)
        .lines()
        .filter_map(|line| {
            let words = line.split_whitespace();
            let mut words = words.skip_while(|word| word.len() == 3 && word.ends_with(','));
            let flag = words.next()?.strip_prefix("--")?;
            let end = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            Some(flag.split(end).next()?.replace('-', "_"))
        })
        .filter(|key| !NO_SETTINGS.contains(&key.as_str()))
        .collect()
}

fn offered() -> serde_json::Value {
    let path = root().join("nix/tests/options.nix");
    nix(&format!("import {}", path.display())).unwrap()
}

// AP-17, contract §10: each flag has its setting.
#[test]
fn every_flag_is_a_setting_and_no_other() {
    if !need("nix-instantiate") {
        return;
    }
    let offered = offered();
    for (command, role) in [("access-point", "access-point"), ("enroll", "executor")] {
        let settings: BTreeSet<String> = offered["settings"][role]
            .as_object()
            .unwrap()
            .values()
            .map(|key| key.as_str().unwrap().to_owned())
            .filter(|key| key != HIDDEN)
            .collect();
        assert_eq!(
            settings,
            flags(command),
            "nix/nixos-modules/common/settings.nix (left) is not what {role} takes (right)"
        );
    }
}

#[test]
fn every_option_is_in_the_document() {
    if !need("nix-instantiate") {
        return;
    }
    let page = fs::read_to_string(root().join("docs/nixos.md")).unwrap();
    let offered = offered();
    for option in offered["options"].as_array().unwrap() {
        let option = option.as_str().unwrap();
        let (service, name) = [
            "spire.server",
            "spire.agent",
            "spire.oidc-discovery-provider",
        ]
        .iter()
        .chain(&["agent-harbor.access-point", "agent-harbor.executor"])
        .find_map(|service| {
            let name = option.strip_prefix(&format!("services.{service}."))?;
            Some((service, name))
        })
        .unwrap();
        let part = page.split("\n## ").find(|part| {
            part.lines()
                .next()
                .unwrap()
                .contains(&format!("services.{service}"))
        });
        let part =
            part.unwrap_or_else(|| panic!("docs/nixos.md has no part on services.{service}"));
        assert!(
            part.contains(&format!("| `{name}` |")),
            "docs/nixos.md lacks {name} of services.{service}"
        );
    }
    for role in ["access-point", "executor"] {
        for name in offered["settings"][role].as_object().unwrap().keys() {
            assert!(
                page.contains(&format!("`{name}`")),
                "docs/nixos.md lacks the setting {name}"
            );
        }
    }
}

#[test]
fn the_documents_configurations_evaluate() {
    if !need("nix-instantiate") {
        return;
    }
    let page = fs::read_to_string(root().join("docs/nixos.md")).unwrap();
    let blocks = page.split("```nix\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|text| text.split("```").next()).collect();
    assert!(blocks.len() > 5);
    for block in blocks {
        if block.contains("outputs =") {
            assert_eq!(nix(&format!("({block}) ? outputs")).unwrap(), true);
            continue;
        }
        let module = block.replace("/path/to/agent-harbor/nix/nixos-modules", "");
        modules(&[&module]).unwrap_or_else(|error| panic!("{block}{error}"));
    }
}

/// The derivation is evaluated with what nixpkgs would give it; building it takes nixpkgs.
#[test]
fn the_package_is_of_this_workspace() {
    if !need("nix-instantiate") {
        return;
    }
    let root = root();
    let package = nix(&format!(
        r#"let lib = import {0}/nix/tests/lib.nix; in
        import {0}/nix/package.nix {{
            lib = lib // {{ licenses.asl20 = "Apache-2.0"; platforms.linux = [ "x86_64-linux" ]; }};
            stdenv = {{ buildPlatform.canExecute = _: true; hostPlatform = {{ }}; }};
            installShellFiles = "installShellFiles";
            rustPlatform.buildRustPackage = it: it // {{
                src = "${{it.src}}";
                lock = toString it.cargoLock.lockFile;
                locked = builtins.pathExists it.cargoLock.lockFile;
            }};
        }}"#,
        root.display()
    ))
    .unwrap();
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(package["locked"], true);
    // buildRustPackage needs a hash for each source that is no registry's.
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    assert!(!lock.contains("git+"));
    assert!(package["src"].as_str().unwrap().ends_with("-agent-harbor"));
}
