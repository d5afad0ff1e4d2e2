//! The units are those of the Debian packages, but for places.

use std::collections::BTreeMap;
use std::fs;

use ah_testkit::need;

use crate::evaluate::{modules, root};
use crate::running::NODE;

/// What is said of places, of the order of starting, and of NixOS's own ways.
const OF_PLACES: [&str; 11] = [
    "After",
    "Also",
    "Description",
    "Documentation",
    "EnvironmentFile",
    "ExecReload",
    "ExecStart",
    "LimitNOFILE",
    "LoadCredential",
    "WantedBy",
    "Wants",
];

/// Everything else: sandbox, user, state, time limits.
fn directives(unit: &str) -> BTreeMap<String, Vec<String>> {
    let mut directives = BTreeMap::<_, Vec<_>>::new();
    for (key, value) in unit.lines().filter_map(|line| line.split_once('=')) {
        if key.starts_with('#') || OF_PLACES.contains(&key) {
            continue;
        }
        let value = value.replace("yes", "true");
        directives.entry(key.to_owned()).or_default().push(value);
    }
    directives
}

#[test]
fn the_sandbox_is_that_of_the_debian_packages() {
    if !need("nix-instantiate") {
        return;
    }
    let evaluated = modules(&[NODE]).unwrap();
    for (package, unit) in [
        ("ah", "ah-access-point"),
        ("ah", "ah-executor"),
        ("spire-server", "spire-server"),
        ("spire-agent", "spire-agent"),
        ("oidc-discovery-provider", "oidc-discovery-provider"),
    ] {
        let path = format!("packaging/{package}/root/usr/lib/systemd/system/{unit}.service");
        let debian = fs::read_to_string(root().join(&path)).unwrap();
        assert!(directives(&debian).len() > 20, "{path}");
        assert_eq!(
            directives(&evaluated.unit(unit)),
            directives(&debian),
            "nix/nixos-modules (left) and {path} (right)"
        );
    }
}
