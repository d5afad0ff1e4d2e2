//! What is in the Debian packages.

use std::collections::BTreeMap;
use std::process::Command;

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
    let expected: [&[(&str, &str)]; 3] = [
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
        ],
        &[
            ("/usr/bin/spire-server", program),
            ("/etc/spire/server.conf", file),
            ("/etc/default/spire-server", secret),
            ("/usr/lib/systemd/system/spire-server.service", file),
        ],
        &[
            ("/usr/bin/spire-agent", program),
            ("/etc/spire/agent.conf", file),
            ("/etc/default/spire-agent", secret),
            ("/usr/lib/systemd/system/spire-agent.service", file),
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
# As somebody completes them.
sed -i 's/^#remote_server/remote_server/' etc/ah/executor.toml
touch bundle.pem
sed -i "s|/etc/spire/bundle.pem|$1/bundle.pem|; s|# join_token|join_token|" etc/spire/agent.conf
export STATE_DIRECTORY="$1/state" RUNTIME_DIRECTORY="$1/run"
usr/bin/ah agent access-point --config etc/ah/access-point.toml --validate
usr/bin/ah agent enroll --config etc/ah/executor.toml --remote-server https://127.0.0.1:4433 --validate
usr/bin/spire-server validate -config etc/spire/server.conf
"#;
    sh(lines, &[tree]);
    // Every key that the examples show is one: with the comment signs gone, each file is still read.
    let every_key = r#"
cd "$1"
for file in access-point executor; do
  grep -E '^#?[a-z_]+ = ' "etc/ah/$file.toml" | sed 's/^#//' |
    awk '{ key = $1; if (!(key in seen)) print; seen[key] = 1 }' > "$file-all.toml"
done
export STATE_DIRECTORY="$1/state" RUNTIME_DIRECTORY="$1/run"
for run in 'access-point --config access-point-all.toml' 'enroll --config executor-all.toml'; do
  usr/bin/ah agent $run --validate 2>&1 || true
done
"#;
    let told = sh(every_key, &[tree]);
    assert!(!told.contains("unknown"), "{told}");
}
