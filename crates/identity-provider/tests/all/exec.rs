//! The exec provider against real commands, well-behaved and hostile (EX-1 to EX-4).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ah_identity_provider::exec::{ExecConfig, ExecProvider, ExecRole};
use ah_identity_provider::{Code, Explained, Identity, Provider, ProviderError, SystemClock};
use ah_testkit::process::{DEADLINE, eventually};
use ah_testkit::provider_suite::coherent;
use tokio::time::timeout;

use crate::common::{Ca, Files, HeldClock, Leaf};

/// What a well-behaved command does.
pub(crate) const PRINT: &str = "cat cert.pem key.pem ca.pem";

/// A shell script in a directory with the files of [`Files`].
pub(crate) struct Script {
    pub(crate) files: Files,
}

impl Script {
    pub(crate) fn new(body: &str) -> Self {
        let script = Self {
            files: Files::new(),
        };
        script.says(body);
        script
    }

    /// Puts another script in its place.
    pub(crate) fn says(&self, body: &str) {
        let directory = self.files.dir.path().display();
        let text = format!("cd {directory} || exit 9\n{body}\n");
        fs::write(self.path("new.sh"), text).unwrap();
        fs::rename(self.path("new.sh"), self.path("script.sh")).unwrap();
    }

    pub(crate) fn config(&self) -> ExecConfig {
        let command = format!("sh {}", self.path("script.sh").display());
        ExecConfig {
            command: command.parse().unwrap(),
            refresh_interval: None,
            timeout: Duration::from_secs(20),
            role: ExecRole::Executor,
            name: "worker-1".to_owned(),
            remote_servers: vec!["https://one:4433".to_owned(), "https://two:4433".to_owned()],
            roots_elsewhere: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn provider(&self) -> ExecProvider {
        ExecProvider::new(self.config(), Arc::new(SystemClock))
    }

    fn within(&self, limit: Duration) -> ExecProvider {
        let config = ExecConfig {
            timeout: limit,
            ..self.config()
        };
        ExecProvider::new(config, Arc::new(SystemClock))
    }
}

async fn next(provider: &mut ExecProvider) -> Result<Identity, ProviderError> {
    timeout(DEADLINE, provider.next())
        .await
        .expect("an answer comes")
}

/// The one fault of `body`, which is likely to pass and names no secret.
async fn fault(body: &str) -> Explained {
    let script = Script::new(body);
    let error = next(&mut script.provider()).await.err().unwrap();
    assert!(matches!(error, ProviderError::Retry(_)), "EX-4: {error:?}");
    let report = error.explained().report();
    let key = script.read("key.pem");
    for line in key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!report.contains(line), "{report}");
    }
    assert!(error.explained().hint.is_some(), "{report}");
    error.explained().clone()
}

fn says(fault: &Explained, words: &[&str]) {
    let report = fault.report();
    for word in words {
        assert!(report.contains(word), "no {word:?} in\n{report}");
    }
}

/// Waits until no process has this number as its group.
fn group_is_gone(group: &str) {
    eventually("the whole process group is gone", || {
        members(group).is_empty().then_some(())
    });
}

/// Processes of a group that are not merely waiting to be reaped.
fn members(group: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let stats = all.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let alive = stats.filter(|stat| {
        // pid (comm) state ppid pgrp …
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = rest.split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(group)
    });
    alive.collect()
}

// EX-2: chain leaf first, key, authorities; the root is trusted and not presented.
#[tokio::test]
async fn ex_2_pem_blocks_are_an_identity() {
    for body in [
        PRINT,
        "cat key.pem cert.pem ca.pem",
        "cat ca.pem key.pem cert.pem",
        "echo 'subject=/CN=x'; cat cert.pem; echo; cat key.pem ca.pem ca.pem",
    ] {
        let script = Script::new(body);
        let identity = next(&mut script.provider()).await.unwrap();
        coherent(&identity);
        assert_eq!(identity.chain().len(), 1, "{body}");
        let root = script.files.ca.certificate.der().clone();
        assert_eq!(identity.bundles().unscoped, [root], "{body}");
    }
}

// EX-2: without a last line end.
#[tokio::test]
async fn ex_2_a_missing_newline_at_the_end_is_no_fault() {
    let script = Script::new("printf %s \"$(cat key.pem ca.pem cert.pem)\"");
    coherent(&next(&mut script.provider()).await.unwrap());
}

// EX-2: one JSON object, as jq, Python and step write it.
#[tokio::test]
async fn ex_2_a_json_object_is_an_identity() {
    let script = Script::new("cat out.json");
    let object = |bundle: &str| {
        serde_json::json!({
            "version": 1,
            "certificate_chain": script.read("cert.pem"),
            "private_key": script.read("key.pem"),
            "ca_bundle": bundle,
        })
    };
    let ca = script.read("ca.pem");
    let plain = object(&ca).to_string();
    // A writer may escape what it need not.
    let escaped = plain.replace('/', "\\/").replace('=', "\\u003d");
    for text in [plain, escaped, format!("\n{:#}\n", object(&ca))] {
        fs::write(script.path("out.json"), text).unwrap();
        let identity = next(&mut script.provider()).await.unwrap();
        coherent(&identity);
        let root = script.files.ca.certificate.der().clone();
        assert_eq!(identity.bundles().unscoped, [root]);
    }

    for (text, words) in [
        (
            object("").to_string(),
            &["no authority to trust", "--ca"][..],
        ),
        (
            r#"{"version":2,"certificate_chain":"","private_key":""}"#.to_owned(),
            &["version 2, and version 1 is known"],
        ),
        (
            r#"{"version":"s3cret","certificate_chain":"","private_key":""}"#.to_owned(),
            &["lacks a field or has one of the wrong type"],
        ),
        (
            r#"{"version":1,"certificate_chain":"x"}"#.to_owned(),
            &["lacks a field"],
        ),
        (r#"{"version":1,"#.to_owned(), &["no JSON from line 1"]),
        (
            r#"{"version":1,"certificate_chain":["s3cret"],"private_key":"s3cret"}"#.to_owned(),
            &["certificate_chain is not a string"],
        ),
        (
            r#"{"version":1,"certificate_chain":"s3cret","private_key":"s3cret"}"#.to_owned(),
            &["private_key: holds no private key block"],
        ),
    ] {
        fs::write(script.path("out.json"), &text).unwrap();
        let error = next(&mut script.provider()).await.err().unwrap();
        says(error.explained(), words);
        assert!(!error.explained().report().contains("s3cret"));
    }
}

// EX-2, AP-3, EN-3: with `--ca` the output need not say whom to trust.
#[tokio::test]
async fn ex_2_somebody_has_to_be_trusted() {
    let script = Script::new("cat cert.pem key.pem");
    let error = next(&mut script.provider()).await.err().unwrap();
    says(error.explained(), &["it has no authority to trust", "--ca"]);
    let config = ExecConfig {
        roots_elsewhere: true,
        ..script.config()
    };
    let mut provider = ExecProvider::new(config, Arc::new(SystemClock));
    let identity = next(&mut provider).await.unwrap();
    assert!(identity.bundles().unscoped.is_empty());
}

// EX-3
#[tokio::test]
async fn ex_3_the_command_is_told_for_whom_and_why() {
    let script = Script::new(
        "echo \"$AH_ROLE|$AH_NAME|$AH_REMOTE_SERVER|$AH_REASON|$AH_CURRENT_NOT_AFTER|$NOTIFY_SOCKET\" >> told\ncat cert.pem key.pem ca.pem",
    );
    let clock = HeldClock::new();
    let mut provider = ExecProvider::new(script.config(), Arc::new(clock.clone()));
    let identity = next(&mut provider).await.unwrap();
    provider.refresh();
    next(&mut provider).await.unwrap();
    // Past two thirds of the certificate's life.
    clock.advance(Duration::from_secs(3500));
    next(&mut provider).await.unwrap();
    let told = script.read("told");
    let told: Vec<_> = told.lines().collect();
    let not_after = humantime::format_rfc3339_seconds(identity.leaf().not_after);
    let who = "executor|worker-1|https://one:4433,https://two:4433";
    assert_eq!(
        told,
        [
            format!("{who}|initial||"),
            format!("{who}|refresh|{not_after}|"),
            format!("{who}|expiring|{not_after}|"),
        ]
    );
}

// EX-1: by the interval when that is earlier than two thirds of the life.
#[tokio::test]
async fn ex_1_the_earlier_of_interval_and_two_thirds_of_the_life_counts() {
    let script = Script::new(PRINT);
    let config = ExecConfig {
        refresh_interval: Some(Duration::from_millis(200)),
        ..script.config()
    };
    let clock = HeldClock::new();
    let mut provider = ExecProvider::new(config, Arc::new(clock));
    let first = next(&mut provider).await.unwrap();
    let again = next(&mut provider).await.unwrap();
    assert!(first.same_material(&again), "the clock stood still");

    let config = ExecConfig {
        refresh_interval: Some(Duration::from_secs(24 * 3600)),
        ..script.config()
    };
    let mut provider = ExecProvider::new(config, Arc::new(SystemClock));
    let identity = next(&mut provider).await.unwrap();
    let renewal = provider.next_renewal().unwrap();
    assert!(renewal < identity.leaf().not_after, "{renewal:?}");
}

// EX-4: which fault, with the last lines of stderr and nothing of stdout.
#[tokio::test]
async fn ex_4_an_exit_code_is_told_with_the_last_lines_of_stderr() {
    let told =
        fault("cat key.pem; for n in 1 2 3 4 5 6 7; do echo \"line $n\" >&2; done; exit 3").await;
    says(
        &told,
        &[
            "error: the identity command sh exited with code 3",
            "cause: stderr: line 3",
            "cause: stderr: line 7",
            "AH_REASON=initial",
        ],
    );
    assert!(!told.report().contains("line 2"), "{}", told.report());
    says(&fault("kill -9 $$").await, &["was ended by SIGKILL"]);
    says(
        &fault("no-such-program-anywhere").await,
        &["exited with code 127", "give whole paths"],
    );
    let escapes = fault("cat key.pem >&2; printf '\\033[31mbad\\033[0m\\007\\n' >&2; exit 1").await;
    says(&escapes, &["stderr: bad", "a line of base64, not shown"]);
    assert!(!escapes.report().contains('\u{1b}'));
}

// EX-4
#[tokio::test]
async fn ex_4_outputs_that_are_no_identity_say_what_is_wrong() {
    says(
        &fault("true").await,
        &["exited with code 0 and printed nothing"],
    );
    says(
        &fault("echo >&2 nothing to give").await,
        &["printed nothing", "stderr: nothing to give"],
    );
    says(
        &fault("cat cert.pem ca.pem").await,
        &["holds no private key block (found: CERTIFICATE)"],
    );
    says(&fault("cat key.pem").await, &["holds no CERTIFICATE block"]);
    says(
        &fault("cat cert.pem key.pem key.pem ca.pem").await,
        &["holds 2 private keys"],
    );
    says(
        &fault("cat cert.pem key.pem | head -c 700").await,
        &["has no end"],
    );
    says(
        &fault("head -c 4000 /dev/urandom").await,
        &["cannot use the output of the identity command"],
    );
    let secret = "echo '-----BEGIN HUNTER2-----'; echo aGk=; echo '-----END HUNTER2-----'";
    let told = fault(secret).await;
    says(&told, &["holds no private key block"]);
    assert!(
        !told.report().contains("HUNTER2"),
        "nothing of stdout is told"
    );
}

// EX-4, ER-6
#[tokio::test]
async fn ex_4_a_key_of_another_certificate_is_told_as_that() {
    let script = Script::new(PRINT);
    script.files.put_key(&script.files.ca.leaf("other.example"));
    let error = next(&mut script.provider()).await.err().unwrap();
    assert_eq!(error.explained().code, Code::KeyMismatch);
    says(
        error.explained(),
        &[
            "private key does not match certificate",
            "identity command sh",
        ],
    );
}

// EX-4, ER-4
#[tokio::test]
async fn ex_4_an_expired_certificate_is_told_as_that() {
    let script = Script::new(PRINT);
    let ended = SystemTime::now() - Duration::from_secs(60);
    script
        .files
        .put(&script.files.ca.leaf_until("late.example", ended));
    let error = next(&mut script.provider()).await.err().unwrap();
    assert!(matches!(error, ProviderError::Retry(_)));
    assert_eq!(error.explained().code, Code::ExpiredOrNotYetValid);
    says(
        error.explained(),
        &["which was valid until", "the clock here says"],
    );
    // The next run is asked at once, and a new certificate is taken.
    script.files.put(&script.files.ca.leaf("fresh.example"));
    coherent(&next(&mut script.provider()).await.unwrap());
}

// EX-2: 10 MiB are not read to their end, and who prints them is ended.
#[tokio::test]
async fn ex_2_more_than_one_mebibyte_is_refused_and_the_command_ended() {
    let script = Script::new("echo $$ > group\nhead -c 10485760 /dev/zero | tr '\\0' A\nsleep 300");
    let error = next(&mut script.provider()).await.err().unwrap();
    says(
        error.explained(),
        &["printed more than 1 MiB and was killed"],
    );
    group_is_gone(script.read("group").trim());
    // Up to that it is read, comments and all.
    let script =
        Script::new("head -c 1000000 /dev/zero | tr '\\0' '#'; echo; cat cert.pem key.pem ca.pem");
    coherent(&next(&mut script.provider()).await.unwrap());
}

// EX-4: the whole group is ended at the timeout, however slowly it drips and whatever it ignores.
#[tokio::test]
async fn ex_4_a_slow_drip_is_ended_at_the_timeout() {
    let script = Script::new(
        "trap '' TERM HUP INT\necho $$ > group\necho waiting for the CA >&2\nwhile :; do printf x; sleep 0.05; done",
    );
    let error = next(&mut script.within(Duration::from_millis(700)))
        .await
        .err()
        .unwrap();
    says(
        error.explained(),
        &[
            "did not end within 700ms and was killed",
            "stderr: waiting for the CA",
            "--exec-timeout",
        ],
    );
    group_is_gone(script.read("group").trim());
}

// EX-4: a fork bomb (of 63 processes, so that the machine survives a broken test).
#[tokio::test]
async fn ex_4_a_fork_bomb_is_ended_by_the_group_kill() {
    let bomb = "echo $$ > group\nf() { if [ $1 -gt 0 ]; then f $(($1 - 1)) & f $(($1 - 1)) & fi; sleep 300; }\nf 5";
    let script = Script::new(bomb);
    let mut provider = script.within(Duration::from_secs(3));
    let run = tokio::spawn(async move { next(&mut provider).await.err().unwrap() });
    let (group, seen) = tokio::task::spawn_blocking(move || {
        let group = eventually("the bomb has begun", || {
            let text = fs::read_to_string(script.path("group")).ok()?;
            text.ends_with('\n').then(|| text.trim().to_owned())
        });
        let seen = eventually("the bomb has gone off", || {
            Some(members(&group).len()).filter(|count| *count > 30)
        });
        (group, seen)
    })
    .await
    .unwrap();
    assert!(seen > 30);
    says(run.await.unwrap().explained(), &["was killed"]);
    group_is_gone(&group);
}

// EX-4: a child in the background that holds stdout open neither hangs us nor loses the output.
#[tokio::test]
async fn ex_4_a_background_child_that_keeps_stdout_open_is_not_waited_for() {
    let script = Script::new("echo $$ > group\nsleep 300 &\ncat cert.pem key.pem ca.pem");
    let begun = Instant::now();
    coherent(&next(&mut script.provider()).await.unwrap());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    // What a command that did its work leaves behind is its own business.
    let group = script.read("group");
    assert_eq!(members(group.trim()).len(), 1);
    nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(group.trim().parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();

    // Of one that failed nothing stays.
    for (end, told) in [
        ("exit 1", "exited with code 1"),
        ("exit 0", "printed nothing"),
    ] {
        let script = Script::new(&format!("echo $$ > group\nsleep 300 &\n{end}"));
        let error = next(&mut script.provider()).await.err().unwrap();
        says(error.explained(), &[told]);
        group_is_gone(script.read("group").trim());
    }
}

// EX-1: a future that is dropped does not end the run, a provider that is dropped does.
#[tokio::test]
async fn ex_1_a_run_outlives_a_dropped_future_and_not_its_provider() {
    let script = Script::new(
        "mkfifo go 2> /dev/null\necho $$ >> groups\nread go < go\ncat cert.pem key.pem ca.pem",
    );
    let mut provider = script.provider();
    let started = || fs::read_to_string(script.path("groups")).unwrap_or_default();
    while !started().ends_with('\n') {
        let patience = Duration::from_millis(20);
        assert!(timeout(patience, provider.next()).await.is_err());
    }
    fs::write(script.path("go"), "\n").unwrap();
    coherent(&next(&mut provider).await.unwrap());
    assert_eq!(started().lines().count(), 1, "one run gave it");

    provider.refresh();
    while started().lines().count() < 2 {
        assert!(
            timeout(Duration::from_millis(20), provider.next())
                .await
                .is_err()
        );
    }
    drop(provider);
    group_is_gone(started().lines().last().unwrap());
}

// EX-4, ER-8, ER-9: what an operator has to put there ends a start-up at once.
#[tokio::test]
async fn ex_4_a_command_that_cannot_be_started_waits_for_an_operator() {
    let script = Script::new(PRINT);
    let with = |command: String| ExecConfig {
        command: command.parse().unwrap(),
        ..script.config()
    };
    let absent = script.path("absent").display().to_string();
    let mut provider = ExecProvider::new(
        with(format!("{absent} --token s3cret")),
        Arc::new(SystemClock),
    );
    let error = next(&mut provider).await.err().unwrap();
    assert!(matches!(error, ProviderError::Operator(_)));
    assert_eq!(error.explained().code, Code::NoSuchFile);
    says(error.explained(), &[&format!("no such file: {absent}")]);
    assert!(!error.explained().report().contains("s3cret"));

    let closed = script.path("script.sh").display().to_string();
    let mut provider = ExecProvider::new(with(closed.clone()), Arc::new(SystemClock));
    let error = next(&mut provider).await.err().unwrap();
    assert!(matches!(error, ProviderError::Operator(_)));
    assert_eq!(error.explained().code, Code::PermissionDenied);
    says(
        error.explained(),
        &[&format!("permission denied running {closed}"), "chmod +x"],
    );
}

// EX-2: an intermediate is presented, and what is highest in the chain is trusted when there is no root.
#[tokio::test]
async fn ex_2_intermediates_are_presented() {
    let files = Files::new();
    let (intermediate, leaf): (Ca, Leaf) = files.ca.intermediate("below.example");
    let script = Script { files };
    script.files.put(&leaf);
    fs::write(script.path("int.pem"), intermediate.certificate.pem()).unwrap();
    for (body, trusted) in [
        ("cat cert.pem int.pem key.pem ca.pem", &script.files.ca),
        ("cat cert.pem int.pem key.pem", &intermediate),
    ] {
        script.says(body);
        let identity = next(&mut script.provider()).await.unwrap();
        coherent(&identity);
        assert_eq!(identity.chain().len(), 2, "{body}");
        let root = trusted.certificate.der().clone();
        assert_eq!(identity.bundles().unscoped, [root], "{body}");
    }
}
