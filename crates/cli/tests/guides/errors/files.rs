//! Files that are missing, closed, touched or replaced.

use ah_testkit::need;
use ah_testkit::process::{Host, Process};

use crate::kit::{NOBODY, Told, audited, chmod, executor_leaf, host, pair, sh};

#[test]
fn er_8_er_9_files_that_cannot_be_read_or_are_not_there() {
    if !need("setpriv") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    sh(
        &host,
        "chmod 755 . home; mkdir -p nobody; chown 65534:65534 nobody",
    );
    let mut command =
        pair.executor
            .enroll_under(&nobody, &host, access_point.address, &["--name", "n"]);
    command
        .env("STATE_DIRECTORY", host.path("nobody"))
        .env("RUNTIME_DIRECTORY", host.path("nobody"));
    let mut process = Process::start(&mut command);
    let key = pair.executor.key.display();
    assert_eq!(process.wait().code(), Some(1));
    Told::first(process.lines()).says(
        &format!("permission denied reading {key}"),
        &["uid 65534", "belongs to uid 0 gid 0, mode 0600"],
        "chmod 600",
    );
    // What the guide and the hint say to do.
    std::os::unix::fs::chown(&pair.executor.key, Some(NOBODY), Some(NOBODY)).unwrap();
    let process = Process::start(&mut command);
    process.wait_for(" enrolled executor.id=");
    drop(process);

    for (file, flag) in [
        (&pair.executor.cert, "--cert"),
        (&pair.executor.key, "--key"),
        (&pair.executor.ca, "--ca"),
    ] {
        let aside = file.with_extension("aside");
        std::fs::rename(file, &aside).unwrap();
        let mut gone = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
        assert_eq!(gone.wait().code(), Some(1));
        Told::first(gone.lines()).says(
            &format!("no such file: {}", file.display()),
            &[flag],
            "ls -la ",
        );
        std::fs::rename(&aside, file).unwrap();
    }
}

#[test]
fn fi_2_a_touch_is_seen_and_says_that_nothing_changed() {
    // The guide's "Trigger inotify event", and what `grep -i "rotat\|renew"` finds after a real change.
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    let executor = Process::start(&mut pair.executor.enroll(&host, access_point.address, &[]));
    executor.wait_for(" enrolled executor.id=");
    sh(&host, "touch executor.pem");
    executor.wait_for("certificate unchanged");
    let leaf = executor_leaf(&pair.ca);
    std::fs::write(host.path("new.pem"), leaf.chain_pem()).unwrap();
    std::fs::write(host.path("new-key.pem"), leaf.key_pem()).unwrap();
    chmod(&host.path("new-key.pem"), 0o600);
    sh(
        &host,
        "mv new-key.pem executor-key.pem; mv new.pem executor.pem",
    );
    executor.wait_for("certificate rotated; enrollment moved");
    std::fs::write(host.path("log"), executor.lines().join("\n")).unwrap();
    let found = sh(
        &host,
        "grep -i \"rotat\\|renew\" log; ah agent status --show-cert",
    );
    let serial = leaf_serial(&host);
    assert!(found.contains(&serial), "{serial}: {found}");
    assert_eq!(audited(&host, "rotated")["certificate"]["serial"], serial);
}

fn leaf_serial(host: &Host) -> String {
    let line = sh(host, "openssl x509 -in executor.pem -noout -serial");
    line.trim().trim_start_matches("serial=").to_lowercase()
}
