//! The audit log under faults (AU-1, AU-2): real files, real processes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ah_fleet::audit::{
    AuditLog, AuditTarget, BrokenAt, Entry, Event, Fault, Outcome, QUEUE_LIMIT, Start, Verified,
    verify,
};
use ah_fleet::store::CertificateRecord;
use ah_identity_provider::{Explained, ProviderKind, SystemClock};
use ah_testkit::child;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> Result<AuditLog, Explained> {
    let (log, task) = AuditLog::open(AuditTarget::File(path.into()), Arc::new(SystemClock))?;
    tokio::spawn(task.run());
    Ok(log)
}

fn entry(n: usize) -> Entry {
    let mut entry = Entry::new(Event::Enrolled, Outcome::Success);
    entry.executor_id = Some(format!("executor-{n}").into());
    entry.peer = Some("[::1]:4433".parse().unwrap());
    entry.provider = Some(ProviderKind::Files);
    entry.certificate = Some(CertificateRecord {
        serial: "0a".into(),
        sha256: "ab".repeat(32),
        not_after: time::macros::datetime!(2026-01-01 00:00 UTC),
    });
    entry
}

async fn write(path: &Path, count: usize) {
    let log = open(path).unwrap();
    (0..count).for_each(|n| log.record(entry(n)));
    assert_eq!(log.close(DEADLINE).await, 0);
}

fn check(path: &Path) -> Result<Verified, BrokenAt> {
    verify(BufReader::new(std::fs::File::open(path).unwrap()))
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

#[tokio::test]
async fn au_1_a_line_says_all_and_the_chain_goes_on_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    write(&path, 3).await;
    write(&path, 2).await;
    let verified = check(&path).unwrap();
    assert_eq!(verified.lines, 5);
    assert_eq!(verified.first_sequence, Some(1));
    assert_eq!(verified.last_sequence, Some(5));
    assert_eq!(verified.starts_from, Start::Beginning);
    let first = json(&lines(&path)[0]);
    assert_eq!(first["event"], "enrolled");
    assert_eq!(first["outcome"], "success");
    assert_eq!(first["executor_id"], "executor-0");
    assert_eq!(first["peer"], "[::1]:4433");
    assert_eq!(first["provider"], "files");
    assert_eq!(first["certificate"]["serial"], "0a");
    assert_eq!(first["previous"], "0".repeat(64));
    let time = first["time"].as_str().unwrap();
    assert_eq!(time.len(), "2026-01-01T00:00:00.000Z".len(), "{time}");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn au_2_a_torn_line_is_cut_reported_and_kept_in_the_chain() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    write(&path, 3).await;
    let whole = std::fs::read(&path).unwrap();
    let torn = [&whole[..], b"{\"time\":\"2026\xff\0"].concat();
    std::fs::write(&path, torn).unwrap();
    assert_eq!(
        check(&path).unwrap_err(),
        BrokenAt {
            line: 4,
            what: Fault::Torn
        }
    );
    // Nothing else has to happen for the repair to be told.
    write(&path, 0).await;
    assert_eq!(check(&path).unwrap().lines, 4);
    let repaired = json(&lines(&path)[3]);
    assert_eq!(repaired["event"], "repaired");
    let reason = repaired["reason"].as_str().unwrap();
    assert!(reason.ends_with(r#"{\"time\":\"2026\xff\x00"#), "{reason}");
}

#[tokio::test]
async fn au_2_the_tail_is_found_behind_long_lines_and_many_blocks() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = open(&path).unwrap();
    let mut long = entry(0);
    long.reason = Some("x".repeat(300_000));
    log.record(long);
    assert_eq!(log.close(DEADLINE).await, 0);
    let torn = [std::fs::read(&path).unwrap(), vec![0; 200_000]].concat();
    std::fs::write(&path, torn).unwrap();
    write(&path, 1).await;
    assert_eq!(check(&path).unwrap().lines, 3);
}

#[tokio::test]
async fn au_2_verify_names_the_first_bad_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    write(&path, 9).await;
    let good = lines(&path);
    let judge = |lines: &[String]| verify((lines.join("\n") + "\n").as_bytes());
    assert_eq!(judge(&good).unwrap().lines, 9);

    let mut edited = good.clone();
    edited[3] = edited[3].replace("executor-3", "executor-9");
    let broken = judge(&edited).unwrap_err();
    assert_eq!((broken.line, broken.what), (4, Fault::Changed));

    let mut deleted = good.clone();
    deleted.drain(4..6);
    let broken = judge(&deleted).unwrap_err();
    let gap = Fault::Sequence {
        expected: 5,
        found: 7,
    };
    assert_eq!((broken.line, broken.what), (5, gap));

    let mut swapped = good.clone();
    swapped.swap(2, 3);
    assert_eq!(judge(&swapped).unwrap_err().line, 3);

    let mut junk = good.clone();
    junk.push("junk".into());
    let broken = judge(&junk).unwrap_err();
    assert_eq!(broken.line, 10);
    assert!(matches!(broken.what, Fault::NotALine(_)));

    let mut middle = good.clone();
    middle[5].truncate(40);
    assert_eq!(judge(&middle).unwrap_err().line, 6);

    let beheaded = judge(&good[4..]).unwrap();
    assert!(matches!(beheaded.starts_from, Start::Earlier(_)));
    assert_eq!(beheaded.first_sequence, Some(5));
    assert_eq!(verify(&b""[..]).unwrap().lines, 0);
}

#[tokio::test]
async fn a_rotated_file_continues_the_chain_of_the_old_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let old = folder.path().join("audit.jsonl.1");
    let log = open(&path).unwrap();
    let mut health = log.watch_health();
    log.record(entry(1));
    health.wait_for(|h| h.written == 1).await.unwrap();
    std::fs::rename(&path, &old).unwrap();
    log.reopen();
    log.record(entry(2));
    assert_eq!(log.close(DEADLINE).await, 0);
    let before = check(&old).unwrap();
    let after = check(&path).unwrap();
    assert_eq!((before.lines, after.lines), (1, 1));
    assert_eq!(after.first_sequence, Some(2));
    assert_eq!(after.starts_from, Start::Earlier(before.last_hash.unwrap()));
}

#[tokio::test]
async fn what_cannot_be_an_audit_log_is_refused_and_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("precious");
    for content in ["root:x:0:0\n", "no line end"] {
        std::fs::write(&path, content).unwrap();
        let refused = open(&path).unwrap_err().report();
        assert!(refused.contains("not an audit line"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    let missing = open(&folder.path().join("no/audit.jsonl")).unwrap_err();
    assert!(
        missing.report().contains("mkdir -p"),
        "{}",
        missing.report()
    );
}

#[tokio::test]
async fn two_processes_do_not_share_a_log() {
    if let Some(path) = child::argument() {
        let refused = open(Path::new(&path)).unwrap_err().report();
        assert!(
            refused.contains("another process writes to it"),
            "{refused}"
        );
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = open(&path).unwrap();
    let status = child::command("two_processes_do_not_share_a_log", &path)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(log.close(DEADLINE).await, 0);
}

#[tokio::test]
async fn au_2_kill_9_leaves_a_chain_that_goes_on() {
    if let Some(path) = child::argument() {
        let log = open(Path::new(&path)).unwrap();
        let mut health = log.watch_health();
        for n in 0_u64.. {
            (0..50).for_each(|k| log.record(entry(k)));
            let written = health
                .wait_for(|h| h.written >= n * 25)
                .await
                .unwrap()
                .written;
            println!("written {written}");
        }
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mut killed = child::start("au_2_kill_9_leaves_a_chain_that_goes_on", &path);
        let stdout = BufReader::new(killed.stdout.take().unwrap());
        let written = stdout.lines().filter_map(|line| {
            let line = line.unwrap();
            line.strip_prefix("written ")?.parse::<u64>().ok()
        });
        acknowledged += written.take(20 * round).last().unwrap();
        killed.kill().unwrap();
        killed.wait().unwrap();
        write(&path, 1).await;
        let verified = check(&path).unwrap();
        assert!(verified.lines > acknowledged, "{verified:?} {acknowledged}");
    }
}

#[tokio::test]
async fn a_full_disk_breaks_no_chain_and_loses_nothing_below_the_limit() {
    if let Some(path) = child::argument() {
        let log = open(Path::new(&path)).unwrap();
        let mut health = log.watch_health();
        (0..200).for_each(|n| log.record(entry(n)));
        health.wait_for(|h| !h.ok).await.unwrap();
        assert!(log.health().last_error.is_some());
        // Whole lines alone are on the disk, also while it is full.
        check(Path::new(&path)).unwrap();
        // More than are kept: the oldest go, and the chain says so.
        (0..QUEUE_LIMIT + 10).for_each(|n| log.record(entry(n)));
        let before = log.health();
        assert!(before.lost >= 10, "{before:?}");
        child::lift_file_limit();
        log.reopen();
        assert_eq!(log.close(DEADLINE).await, 0);
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let status = child::command_with_file_limit(
        64,
        "a_full_disk_breaks_no_chain_and_loses_nothing_below_the_limit",
        &path,
    )
    .status()
    .unwrap();
    assert!(status.success());
    let verified = check(&path).unwrap();
    let all = lines(&path);
    let lost = all
        .iter()
        .find(|line| line.contains("events-lost"))
        .unwrap();
    let reason = json(lost)["reason"].as_str().unwrap().to_owned();
    let count: u64 = reason.split(' ').next().unwrap().parse().unwrap();
    let recorded = 200 + QUEUE_LIMIT as u64 + 10;
    assert_eq!(
        verified.lines - 1 + count,
        recorded,
        "all are written or counted"
    );
}
