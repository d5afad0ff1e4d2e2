//! The demo as a person starts it: it tells every step, and a step that does not happen fails it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ah_testkit::process::{Finished, Process, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const STEPS: [&str; 8] = [
    "1. Enroll three executors",
    "2. Rotate certificates under live sessions",
    "3. Kill worker-2",
    "4. Start worker-2 again",
    "5. Revoke worker-3",
    "6. Start worker-3 again",
    "7. Drain and stop",
    "8. Verify the audit log",
];

/// `ah agent demo` with `temporary` as its temporary directory and nothing else in its environment.
fn demo(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ah"));
    command
        .args(["agent", "demo"])
        .env_clear()
        .env("TMPDIR", temporary);
    command
}

/// The processes that the demo said it started.
fn processes(lines: &[String]) -> Vec<Pid> {
    lines
        .iter()
        .filter_map(|line| line.split_once("(process "))
        .map(|(_, rest)| rest.split(')').next().unwrap().parse().unwrap())
        .map(Pid::from_raw)
        .collect()
}

fn all_gone(pids: &[Pid]) -> bool {
    pids.iter().all(|pid| kill(*pid, None).is_err())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_step_is_told_and_proved() {
    let temporary = TempDir::new().unwrap();
    let demo = Finished::from(demo(temporary.path()).output().unwrap());
    assert_eq!(demo.code, 0, "{demo:?}");
    for step in STEPS {
        assert!(demo.stdout.contains(step), "{step}: {}", demo.stdout);
    }
    assert_eq!(
        demo.stdout.matches("✓ proved:").count(),
        STEPS.len(),
        "{}",
        demo.stdout
    );
    // No terminal, no colour and no table.
    assert!(!demo.stdout.contains('\u{1b}'), "{}", demo.stdout);
    let lines = demo.stdout.lines().map(str::to_owned).collect::<Vec<_>>();
    let started = processes(&lines);
    assert!(started.len() >= 4, "{}", demo.stdout);
    assert!(all_gone(&started));
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_process_that_falls_fails_the_demo_with_its_log() {
    let temporary = TempDir::new().unwrap();
    let mut demo = Process::start(&mut demo(temporary.path()));
    demo.wait_for("listens on");
    let access_point = *processes(&demo.lines()).first().unwrap();
    kill(access_point, Signal::SIGKILL).unwrap();
    assert_eq!(demo.wait().code(), Some(1));
    let said = demo.lines().join("\n");
    assert!(said.contains("error: "), "{said}");
    assert!(said.contains("access-point"), "{said}");
    assert!(!said.contains("all of it happened"), "{said}");
    let hint = demo.wait_for("hint: each process's log is in ");
    let logs = PathBuf::from(hint.rsplit_once(' ').unwrap().1);
    let log = fs::read_to_string(logs.join("access-point.log")).unwrap();
    assert!(log.contains("listening for executors"), "{log}");
    assert!(all_gone(&processes(&demo.lines())));
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let temporary = TempDir::new().unwrap();
    let mut demo = Process::start(&mut demo(temporary.path()));
    demo.wait_for("listens on");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.wait().code(), Some(130), "{:?}", demo.lines());
    let started = processes(&demo.lines());
    eventually("the demo's processes to end", || {
        all_gone(&started).then_some(())
    });
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_temporary_directory_that_cannot_hold_sockets_is_named() {
    let short = TempDir::new().unwrap();
    let long = short.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    let refused = Finished::from(demo(&long).output().unwrap());
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("error: the temporary directory's path is too long for a socket"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("hint: "), "{refused:?}");
    assert_eq!(entries(&long), Vec::<PathBuf>::new());

    let missing = Finished::from(demo(&short.path().join("missing")).output().unwrap());
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(
        missing
            .stderr
            .contains("error: cannot make a directory in "),
        "{missing:?}"
    );
}
