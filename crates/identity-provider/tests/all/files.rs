//! The files provider and the ways that files change.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::files::{FilesConfig, FilesProvider};
use ah_identity_provider::{
    Code, Explained, Identity, Provider, ProviderError, Supervisor, SystemClock, Vet,
};
use tokio::time::{Instant, timeout};

use crate::common::{Ca, Files, Leaf, Log, config, write_key};

/// FI-2: changes are seen within two seconds; the rest is for a busy machine.
const SEEN: Duration = Duration::from_secs(20);

async fn next(provider: &mut FilesProvider) -> Result<Identity, ProviderError> {
    let outcome = timeout(SEEN, provider.next()).await;
    outcome.expect("the change is seen")
}

async fn expect_leaf(provider: &mut FilesProvider, leaf: &Leaf) {
    loop {
        let identity = next(provider).await.unwrap();
        if identity.chain().first() == Some(&leaf.der) {
            return;
        }
    }
}

fn both(config: &FilesConfig) -> [FilesProvider; 2] {
    [
        FilesProvider::new(config.clone()),
        FilesProvider::without_notification(config.clone()),
    ]
}

#[tokio::test]
async fn fi_2_in_place_writes_are_seen() {
    let files = Files::new();
    for mut provider in both(&files.config()) {
        next(&mut provider).await.unwrap();
        let leaf = files.ca.leaf("second.example");
        files.put(&leaf);
        expect_leaf(&mut provider, &leaf).await;
    }
}

#[tokio::test]
async fn fi_2_atomic_renames_are_seen() {
    let files = Files::new();
    for mut provider in both(&files.config()) {
        next(&mut provider).await.unwrap();
        let leaf = files.ca.leaf("second.example");
        fs::write(files.path("cert.new"), &leaf.cert_pem).unwrap();
        write_key(&files.path("key.new"), &leaf.key_pem);
        fs::rename(files.path("cert.new"), files.path("cert.pem")).unwrap();
        fs::rename(files.path("key.new"), files.path("key.pem")).unwrap();
        expect_leaf(&mut provider, &leaf).await;
    }
}

/// A volume as Kubernetes mounts a secret: files are links through `..data`, which is swapped in one step.
fn publish_volume(mount: &Path, version: &str, leaf: &Leaf, ca: &Ca) {
    let data = mount.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("cert.pem"), &leaf.cert_pem).unwrap();
    write_key(&data.join("key.pem"), &leaf.key_pem);
    fs::write(data.join("ca.pem"), ca.certificate.pem()).unwrap();
    symlink(format!("..{version}"), mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
}

#[tokio::test]
async fn fi_2_a_kubernetes_link_swap_is_seen() {
    let ca = Ca::new("volume CA");
    let mount = tempfile::tempdir().unwrap();
    for name in ["cert.pem", "key.pem", "ca.pem"] {
        symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
    }
    publish_volume(mount.path(), "0", &ca.leaf("zero.example"), &ca);
    for (index, mut provider) in both(&config(mount.path())).into_iter().enumerate() {
        next(&mut provider).await.unwrap();
        for step in 1..=3 {
            let leaf = ca.leaf("next.example");
            publish_volume(mount.path(), &format!("{index}.{step}"), &leaf, &ca);
            expect_leaf(&mut provider, &leaf).await;
        }
    }
}

// FI-2: a link elsewhere, whose target's directory is changed.
#[tokio::test]
async fn fi_2_changes_behind_a_link_are_seen() {
    let files = Files::new();
    let links = tempfile::tempdir().unwrap();
    symlink(files.dir.path(), links.path().join("live")).unwrap();
    for mut provider in both(&config(&links.path().join("live"))) {
        next(&mut provider).await.unwrap();
        let leaf = files.ca.leaf("second.example");
        files.put(&leaf);
        expect_leaf(&mut provider, &leaf).await;
    }
}

#[tokio::test]
async fn fi_2_deleted_files_and_replaced_directories_are_survived() {
    let outer = tempfile::tempdir().unwrap();
    let ca = Ca::new("CA");
    let fill = |dir: &Path, leaf: &Leaf| {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("cert.pem"), &leaf.cert_pem).unwrap();
        write_key(&dir.join("key.pem"), &leaf.key_pem);
        fs::write(dir.join("ca.pem"), ca.certificate.pem()).unwrap();
    };
    let dir = outer.path().join("pki");
    fill(&dir, &ca.leaf("first.example"));
    for mut provider in both(&config(&dir)) {
        next(&mut provider).await.unwrap();

        // ER-9, once it is clear that nobody is just replacing it.
        fs::remove_file(dir.join("cert.pem")).unwrap();
        let error = next(&mut provider).await.err().unwrap();
        assert_eq!(error.explained().code, Code::NoSuchFile);
        let leaf = ca.leaf("second.example");
        fill(&dir, &leaf);
        timeout(SEEN, provider.changed()).await.unwrap();
        expect_leaf(&mut provider, &leaf).await;

        let aside = outer.path().join("aside");
        fs::rename(&dir, &aside).unwrap();
        let leaf = ca.leaf("third.example");
        fill(&dir, &leaf);
        expect_leaf(&mut provider, &leaf).await;
        // The new directory is the one that is watched.
        let leaf = ca.leaf("fourth.example");
        fill(&dir, &leaf);
        expect_leaf(&mut provider, &leaf).await;
        fs::remove_dir_all(aside).unwrap();
    }
}

/// Accepts everything.
struct Lenient;

impl Vet for Lenient {
    fn vet(&self, _: &Identity, _: SystemTime) -> Result<(), Explained> {
        Ok(())
    }
}

// FI-2: the whole way from `touch` to the log, and SIGHUP's.
#[tokio::test]
async fn fi_2_a_touch_that_changes_nothing_is_logged() {
    let (log, _guard) = Log::start();
    let files = Files::new();
    let provider = FilesProvider::new(files.config());
    let (mut supervisor, _health, refresher) =
        Supervisor::new(provider, Arc::new(Lenient), Arc::new(SystemClock));
    let mut watch = supervisor.first().await.unwrap();
    let task = tokio::spawn(supervisor.run());
    let lines = async |count| log.wait_for("certificate unchanged", count).await;
    // Not before the supervisor is at its work.
    tokio::task::yield_now().await;
    let touch = Command::new("touch").arg(files.path("cert.pem")).status();
    assert!(touch.unwrap().success());
    timeout(SEEN, lines(1)).await.expect("the touch is logged");
    let before = log.lines_with("certificate unchanged").len();
    refresher.refresh();
    timeout(SEEN, lines(before + 1))
        .await
        .expect("so is SIGHUP");
    assert_eq!(watch.current().generation, 1);

    files.put(&files.ca.leaf("second.example"));
    let published = timeout(SEEN, watch.next()).await.unwrap().unwrap();
    assert_eq!(published.generation, 2);
    assert_eq!(log.lines_with("certificate rotated").len(), 1);
    assert_eq!(log.lines_with("WARN certificate").len(), 0);
    task.abort();
}

// FI-3, ER-6
#[tokio::test]
async fn fi_3_half_written_pair_is_not_used() {
    let files = Files::new();
    let mut provider = FilesProvider::new(files.config());
    next(&mut provider).await.unwrap();
    let leaf = files.ca.leaf("second.example");
    files.put_cert(&leaf);
    let error = next(&mut provider).await.err().unwrap();
    assert!(matches!(error, ProviderError::Operator(_)));
    let explained = error.explained();
    assert_eq!(explained.code, Code::KeyMismatch);
    let report = explained.report();
    assert!(report.starts_with("error: private key does not match certificate\n"));
    for name in ["cert.pem", "key.pem"] {
        assert!(report.contains(&files.path(name).display().to_string()));
    }
    // The key arrives: noticed without waiting out a backoff.
    files.put_key(&leaf);
    timeout(SEEN, provider.changed()).await.unwrap();
    expect_leaf(&mut provider, &leaf).await;
}

// FI-3: a pair that becomes whole within a moment is no fault at all.
#[tokio::test]
async fn fi_3_a_pair_written_in_two_steps_raises_no_error() {
    let files = Files::new();
    let mut provider = FilesProvider::new(files.config());
    next(&mut provider).await.unwrap();
    let leaf = files.ca.leaf("second.example");
    fs::write(files.path("cert.pem"), "").unwrap();
    // The provider meets the empty file, and is dropped in the middle of waiting for the rest.
    let dropped = timeout(Duration::from_millis(100), provider.next()).await;
    assert!(dropped.is_err());
    files.put(&leaf);
    expect_leaf(&mut provider, &leaf).await;
}

// FI-3: every cut of a certificate file is kept out.
#[tokio::test]
async fn fi_3_truncated_files_are_not_used() {
    let files = Files::new();
    let leaf = files.ca.leaf("second.example");
    for file in ["cert.pem", "key.pem", "ca.pem"] {
        files.put(&leaf);
        let whole = fs::read(files.path(file)).unwrap();
        for end in [0, 10, 100, whole.len() - 30] {
            fs::write(files.path(file), &whole[..end]).unwrap();
            let mut provider = FilesProvider::new(files.config());
            let error = next(&mut provider).await.err().unwrap();
            let report = error.explained().report();
            assert!(report.contains(file), "{report}");
        }
        fs::write(files.path(file), whole).unwrap();
    }
}

#[tokio::test]
async fn fi_4_an_open_key_is_warned_about_or_refused() {
    let (log, _guard) = Log::start();
    let files = Files::new();
    let key = files.path("key.pem");
    let mut provider = FilesProvider::new(files.config());
    next(&mut provider).await.unwrap();
    assert_eq!(log.lines_with("WARN").len(), 0);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let mut provider = FilesProvider::new(files.config());
    next(&mut provider).await.unwrap();
    let command = format!("chmod 600 {}", key.display());
    assert_eq!(log.lines_with(&command).len(), 1);

    let strict = FilesConfig {
        strict_key_permissions: true,
        ..files.config()
    };
    let mut provider = FilesProvider::new(strict);
    let error = next(&mut provider).await.err().unwrap();
    let report = error.explained().report();
    assert!(
        report.contains("mode 0640") && report.contains(&command),
        "{report}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    next(&mut provider).await.unwrap();
}

#[tokio::test]
async fn er_9_a_missing_file_is_named_with_its_flag() {
    let files = Files::new();
    for (set, flag) in [
        (0, "--cert"),
        (1, "--key"),
        (2, "--ca"),
        (3, "--key-passphrase-file"),
    ] {
        let missing = files.path("nowhere/at/all.pem");
        let mut config = files.config();
        match set {
            0 => config.cert.clone_from(&missing),
            1 => config.key.clone_from(&missing),
            2 => config.ca.push(missing.clone()),
            _ => config.key_passphrase_file = Some(missing.clone()),
        }
        let error = next(&mut FilesProvider::new(config)).await.err().unwrap();
        let explained = error.explained();
        assert_eq!(explained.code, Code::NoSuchFile);
        assert_eq!(
            explained.text,
            format!("no such file: {}", missing.display())
        );
        let hint = explained.hint.as_deref().unwrap();
        let look = format!("ls -la {}", files.dir.path().display());
        assert!(hint.contains(&look) && hint.contains(flag), "{hint}");
    }
}

// A directory or a pipe would be read for ever, or never.
#[tokio::test]
async fn er_24_only_regular_files_are_read() {
    let files = Files::new();
    let pipe = files.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for (path, word) in [
        (files.dir.path(), "a directory"),
        (&pipe, "not a regular file"),
    ] {
        let mut config = files.config();
        config.cert = path.to_owned();
        let error = next(&mut FilesProvider::new(config)).await.err().unwrap();
        assert!(error.explained().text.contains(word), "{error}");
    }
}

const UNPRIVILEGED: &str = "AH_TEST_UNPRIVILEGED";

/// Whoever may read everything runs this again without that right.
#[test]
fn er_8_an_unreadable_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    fs::write(&closed, "x").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&closed).is_ok() {
        assert!(std::env::var_os(UNPRIVILEGED).is_none(), "still privileged");
        let status = Command::new("setpriv")
            .args(["--bounding-set", "-dac_override,-dac_read_search"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "files::er_8_an_unreadable_file_is_named"])
            .env(UNPRIVILEGED, "1")
            .output()
            .expect("setpriv of util-linux is installed");
        let output = String::from_utf8_lossy(&status.stdout);
        assert!(status.status.success(), "{output}");
        assert!(output.contains("1 passed"), "{output}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(unreadable_files_are_named());
}

async fn unreadable_files_are_named() {
    let files = Files::new();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["key.pem", "cert.pem", "ca.pem"] {
        let path = files.path(name);
        mode(&path, 0);
        let mut provider = FilesProvider::new(files.config());
        let error = next(&mut provider).await.err().unwrap();
        let explained = error.explained();
        assert_eq!(explained.code, Code::PermissionDenied);
        let text = format!("permission denied reading {}", path.display());
        assert_eq!(explained.text, text);
        let report = explained.report();
        assert!(
            report.contains("mode 0000") && report.contains("chmod 600"),
            "{report}"
        );
        // Mended: noticed without waiting out a backoff.
        mode(&path, 0o600);
        timeout(SEEN, provider.changed()).await.unwrap();
        next(&mut provider).await.unwrap();
    }
    // A closed directory is named as what closes the way.
    mode(files.dir.path(), 0);
    let mut provider = FilesProvider::new(files.config());
    let error = next(&mut provider).await.err().unwrap();
    mode(files.dir.path(), 0o700);
    assert_eq!(error.explained().code, Code::PermissionDenied);
    let cause = error.explained().causes.join("");
    assert!(
        cause.contains(&format!("{} belongs", files.dir.path().display())),
        "{cause}"
    );
}

// FI-2: a storm of writes is no storm of reads. Time is paused, so that the storm is as fast as can be.
#[tokio::test(start_paused = true)]
async fn fi_2_a_storm_of_writes_does_not_spin() {
    let files = Files::new();
    let mut provider = FilesProvider::new(files.config());
    let first = next(&mut provider).await.unwrap();
    let began = Instant::now();
    let storm = async {
        let mut beat = tokio::time::interval(Duration::from_millis(1));
        for _ in 0..1000 {
            beat.tick().await;
            fs::write(files.path("ca.pem"), files.ca.certificate.pem()).unwrap();
        }
    };
    let mut given = 0;
    let reading = async {
        loop {
            let identity = provider.next().await.unwrap();
            assert!(identity.same_material(&first));
            given += 1;
        }
    };
    tokio::select! {
        () = storm => {}
        () = reading => {}
    }
    let most = began.elapsed().as_millis() / 20 + 1;
    assert!(given <= most, "{given} reads in the time of {most}");
}

// FI-2: within two seconds without any notification, by the paused clock.
#[tokio::test(start_paused = true)]
async fn fi_2_the_poll_alone_sees_a_change_within_two_seconds() {
    let files = Files::new();
    let mut provider = FilesProvider::without_notification(files.config());
    next(&mut provider).await.unwrap();
    let leaf = files.ca.leaf("second.example");
    let change = async {
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        files.put(&leaf);
        Instant::now()
    };
    let (changed_at, outcome) = tokio::join!(change, provider.next());
    assert_eq!(outcome.unwrap().chain().first(), Some(&leaf.der));
    assert!(changed_at.elapsed() <= Duration::from_secs(2));
}
