//! The units, as systemd reads them.

use std::process::Command;

use ah_testkit::process::Finished;

use ah_e2e::packages::{UNPACKED, root, run};

const SERVICES: [&str; 5] = [
    "ah-access-point.service",
    "ah-executor.service",
    "oidc-discovery-provider.service",
    "spire-agent.service",
    "spire-server.service",
];

fn analyze(arguments: &[&str]) -> Command {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("--root").arg(&*UNPACKED);
    command
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    // What the units run besides.
    std::fs::create_dir_all(UNPACKED.join("bin")).unwrap();
    std::fs::copy("/bin/sh", UNPACKED.join("bin/sh")).unwrap();
    let mut units = SERVICES.to_vec();
    units.push("ah-access-point.socket");
    let finished = Finished::from(
        analyze(&["verify", "--man=no", "--recursive-errors=no"])
            .args(units)
            .output()
            .unwrap(),
    );
    assert_eq!(
        (finished.code, finished.stderr.as_str()),
        (0, ""),
        "{finished:?}"
    );
}

/// The table of docs/install.md: a service cannot lose protection unnoticed.
#[test]
fn the_documented_exposure_is_what_systemd_measures() {
    let page = std::fs::read_to_string(root().join("docs/install.md")).unwrap();
    for service in SERVICES {
        let told = run(analyze(&["security", "--offline=true", "--no-pager"]).arg(service));
        let line = told
            .lines()
            .find(|line| line.contains("Overall exposure level"));
        let measured = line
            .and_then(|line| line.split(": ").nth(1))
            .unwrap_or_default();
        let measured = measured.split_whitespace().next().unwrap_or_default();
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{service}`")));
        let documented = row
            .and_then(|row| row.split('|').nth(3))
            .unwrap_or_default()
            .trim();
        assert_eq!(documented, measured, "{service}: {line:?}");
    }
}
