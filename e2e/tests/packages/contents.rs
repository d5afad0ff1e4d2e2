//! What is in the Debian packages.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ah_testkit::need;
use ah_testkit::process::Finished;

use ah_e2e::packages::{BUILT, PACKAGES, UNPACKED, packages, run, scratch, sh};

#[test]
fn two_builds_are_the_same_bytes() {
    let again = scratch();
    for (one, other) in BUILT.iter().zip(packages(again.path(), "1")) {
        sh(r#"cmp "$1" "$2""#, &[one, &other]);
    }
}

/// Mode and owner of every file of a package, by path.
fn listed(package: usize) -> BTreeMap<String, String> {
    let listing = run(Command::new("dpkg-deb")
        .arg("--contents")
        .arg(&BUILT[package]));
    let files = listing.lines().map(|line| {
        let mut words = line.split_whitespace();
        let kind = format!("{} {}", words.next().unwrap(), words.next().unwrap());
        (
            words
                .next_back()
                .unwrap()
                .trim_start_matches('.')
                .to_owned(),
            kind,
        )
    });
    files.collect()
}

// Contract §9; the paths are those of the guides.
#[test]
fn every_file_is_where_the_guides_look_for_it() {
    let program = "-rwxr-xr-x root/root";
    let file = "-rw-r--r-- root/root";
    let secret = "-rw------- root/root";
    let expected: [&[(&str, &str)]; 4] = [
        &[
            ("/usr/bin/ah", program),
            ("/etc/ah/access-point.toml", file),
            ("/etc/ah/executor.toml", file),
            ("/etc/default/ah-access-point", secret),
            ("/etc/default/ah-executor", secret),
            ("/usr/lib/systemd/system/ah-access-point.service", file),
            ("/usr/lib/systemd/system/ah-access-point.socket", file),
            ("/usr/lib/systemd/system/ah-executor.service", file),
            ("/usr/lib/sysusers.d/ah.conf", file),
            ("/usr/lib/tmpfiles.d/ah.conf", file),
            ("/usr/share/man/man1/ah.1.gz", file),
            ("/usr/share/man/man1/ah-agent-enroll.1.gz", file),
            ("/usr/share/bash-completion/completions/ah", file),
            ("/usr/share/zsh/vendor-completions/_ah", file),
            ("/usr/share/fish/vendor_completions.d/ah.fish", file),
            ("/usr/share/doc/ah/copyright", file),
            ("/usr/share/doc/ah/NOTICES.gz", file),
        ],
        &[
            ("/usr/bin/spire-server", program),
            ("/etc/spire/server.conf", file),
            ("/etc/default/spire-server", secret),
            ("/usr/lib/systemd/system/spire-server.service", file),
            ("/usr/share/man/man1/spire-server.1.gz", file),
            ("/usr/share/man/man1/spire-server-entry-create.1.gz", file),
            ("/usr/share/doc/spire-server/NOTICES.gz", file),
        ],
        &[
            ("/usr/bin/spire-agent", program),
            ("/etc/spire/agent.conf", file),
            ("/etc/default/spire-agent", secret),
            ("/usr/lib/systemd/system/spire-agent.service", file),
            ("/usr/share/man/man1/spire-agent-api-fetch-jwt.1.gz", file),
            ("/usr/share/doc/spire-agent/NOTICES.gz", file),
        ],
        &[
            ("/usr/bin/oidc-discovery-provider", program),
            ("/etc/spire/oidc-discovery-provider.conf", file),
            ("/etc/default/oidc-discovery-provider", secret),
            (
                "/usr/lib/systemd/system/oidc-discovery-provider.service",
                file,
            ),
            ("/usr/share/man/man1/oidc-discovery-provider.1.gz", file),
            ("/usr/share/doc/oidc-discovery-provider/oidc.md", file),
            ("/usr/share/doc/oidc-discovery-provider/NOTICES.gz", file),
        ],
    ];
    for (package, files) in expected.iter().enumerate() {
        let listed = listed(package);
        for (path, kind) in *files {
            let found = listed.get(*path).map(String::as_str);
            assert_eq!(found, Some(*kind), "{path} of {}", PACKAGES[package]);
        }
        for (path, kind) in &listed {
            assert!(kind.ends_with(" root/root"), "{path}: {kind}");
        }
    }
}

#[test]
fn the_packages_say_what_they_need_and_what_is_the_administrators() {
    for (package, file) in PACKAGES.iter().zip(&*BUILT) {
        let field = |name| run(Command::new("dpkg-deb").arg("--field").arg(file).arg(name));
        assert_eq!(field("Package").trim(), *package);
        assert_eq!(
            field("Version").trim(),
            concat!(env!("CARGO_PKG_VERSION"), "-1")
        );
        let depends = field("Depends");
        // The C library with the version whose symbols are used, and the users' maker.
        assert!(depends.contains("libc6 (>= 2."), "{depends}");
        assert!(
            depends.contains("systemd | systemd-standalone-sysusers"),
            "{depends}"
        );
        let size: u64 = field("Installed-Size").trim().parse().unwrap();
        assert!(size > 1024, "{size} KiB");
        let conffiles = run(Command::new("dpkg-deb")
            .arg("--info")
            .arg(file)
            .arg("conffiles"));
        let etc = run(Command::new("dpkg-deb").arg("--contents").arg(file));
        let etc = etc
            .lines()
            .filter(|line| line.contains(" ./etc/") && !line.ends_with('/'));
        assert_eq!(conffiles.lines().count(), etc.count(), "{conffiles}");
        let control = run(Command::new("dpkg-deb").arg("--info").arg(file));
        for script in ["postinst", "prerm", "postrm"] {
            let text = run(Command::new("dpkg-deb").arg("--info").arg(file).arg(script));
            assert!(
                control.contains(script) && !text.contains('@'),
                "{script}:\n{text}"
            );
        }
    }
}

#[test]
fn the_shipped_configuration_is_read_by_its_program() {
    let tree = &*UNPACKED;
    let lines = r#"
cd "$1"
touch bundle.pem
sed -i "s|/etc/spire/bundle.pem|$1/bundle.pem|; s|# join_token|join_token|" etc/spire/agent.conf
export STATE_DIRECTORY="$1/state" RUNTIME_DIRECTORY="$1/run"
usr/bin/ah agent access-point --config etc/ah/access-point.toml --validate
usr/bin/ah agent enroll --config etc/ah/executor.toml --remote-server https://127.0.0.1:4433 --validate
usr/bin/spire-server validate -config etc/spire/server.conf
# Read to its end: what lacks is the certificate.
! usr/bin/oidc-discovery-provider -config etc/spire/oidc-discovery-provider.conf > told 2>&1
grep 'failed to load certificate: /etc/spire/oidc.pem' told
"#;
    sh(lines, &[tree]);
}

// AP-17: the settings that are installed are those that the flags are defined by.
#[test]
fn the_installed_settings_are_printed_by_the_program() {
    for (command, name) in [("access-point", "access-point"), ("enroll", "executor")] {
        let installed =
            std::fs::read_to_string(UNPACKED.join(format!("etc/ah/{name}.toml"))).unwrap();
        let mut ah = Command::new(UNPACKED.join("usr/bin/ah"));
        let printed = run(ah.args(["agent", command, "--print-config", "--config", "/dev/null"]));
        let (ours, rest) = installed.split_once("\n\n").unwrap();
        assert_eq!(rest, printed, "{name}");
        assert!(ours.lines().all(|line| line.starts_with('#')), "{ours}");
    }
}

/// The manual page that was installed for `name`.
fn page(name: &str) -> String {
    sh(
        r#"gzip -dc "$1/usr/share/man/man1/$2.1.gz""#,
        &[&UNPACKED, Path::new(name)],
    )
}

#[test]
fn every_command_has_a_manual_page_with_all_its_flags() {
    for program in ["spire-server", "spire-agent"] {
        let listed = sh(
            r#"cd "$1/usr/share/man/man1" && ls "$2".1.gz "$2"-*.1.gz"#,
            &[&UNPACKED, Path::new(program)],
        );
        let mut commands = 0;
        for name in listed
            .lines()
            .map(|line| line.strip_suffix(".1.gz").unwrap())
        {
            let words = name.strip_prefix(program).unwrap().replace('-', " ");
            let mut help = Command::new(UNPACKED.join("usr/bin").join(program));
            let help = Finished::from(
                help.args(words.split_whitespace())
                    .arg("-help")
                    .output()
                    .unwrap(),
            );
            assert_eq!(help.code, 0, "{name}: {help:?}");
            let text = page(name);
            for flag in help
                .stderr
                .lines()
                .filter_map(|line| line.strip_prefix("  -"))
            {
                let flag = flag.split([' ', '\t']).next().unwrap();
                assert!(
                    text.contains(&format!("\\fB\\-{flag}\\fR")),
                    "{name} lacks -{flag}:\n{text}"
                );
                commands += 1;
            }
        }
        assert!(commands > 30, "{listed}");
        if need("groff") {
            let script = r#"cd "$1/usr/share/man/man1"; for page in "$2"*.1.gz; do gzip -dc "$page" | groff -man -Tutf8 -ww -z; done 2>&1"#;
            assert_eq!(sh(script, &[&UNPACKED, Path::new(program)]), "");
        }
    }
    let text = page("oidc-discovery-provider");
    for flag in ["config", "expandEnv", "version"] {
        assert!(text.contains(&format!("\\fB\\-{flag}\\fR")), "{text}");
    }
    // Where somebody begins.
    assert!(page("spire-server").contains("spire\\-server\\-entry"));
    assert!(page("spire-server-entry").contains("spire\\-server\\-entry\\-create"));
}

#[test]
fn licences_of_what_is_linked_come_along() {
    for package in PACKAGES {
        let path = format!("usr/share/doc/{package}/NOTICES.gz");
        let notices = sh(r#"gzip -dc "$1""#, &[&UNPACKED.join(path)]);
        let crates = notices
            .lines()
            .take_while(|line| !line.starts_with("-----"));
        let crates: Vec<_> = crates
            .filter(|line| line.contains(": ") && !line.starts_with(' '))
            .collect();
        assert!(crates.len() > 100, "{crates:?}");
        for linked in ["rustls ", "tokio ", "aws-lc-sys "] {
            assert!(
                crates.iter().any(|line| line.starts_with(linked)),
                "{package}: {linked}"
            );
        }
        // None of ours, and none that only builds.
        assert!(
            !crates
                .iter()
                .any(|line| line.starts_with("ah-") || line.starts_with("syn ")),
            "{crates:?}"
        );
        // The terms themselves, with whom they name.
        for words in [
            "Permission is hereby granted",
            "Apache License",
            "The Tokio Authors",
        ] {
            assert!(notices.contains(words), "{package}: {words}");
        }
    }
}
