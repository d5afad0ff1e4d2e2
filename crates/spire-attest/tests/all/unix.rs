use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::unix::{Directory, Unix, UnixConfig};
use ah_spire_attest::workload::{ProcRoot, WorkloadAttestor, attest};
use ah_spire_attest::{AttestError, Selector};
use futures_util::future::join_all;

use crate::processes::{Running, idle, is_root, role, sleep};

fn config(discover_workload_path: bool, workload_size_limit: i64) -> UnixConfig {
    UnixConfig {
        discover_workload_path,
        workload_size_limit,
    }
}

fn unix(config: UnixConfig) -> Unix {
    Unix::new(config, ProcRoot::own())
}

fn peer(running: &Running) -> PeerInfo {
    PeerInfo::of_process(running.pid()).unwrap()
}

fn values(selectors: &[Selector]) -> Vec<&str> {
    assert!(selectors.iter().all(|selector| selector.kind == "unix"));
    selectors
        .iter()
        .map(|selector| selector.value.as_str())
        .collect()
}

fn output(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What `sha256sum` prints.
fn sha256sum(path: &Path) -> String {
    let printed = output("sha256sum", path.to_str().unwrap());
    printed.split_whitespace().next().unwrap().to_owned()
}

/// A copy of `sleep` under `name` that may be run by anybody.
fn copy_of_sleep(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::copy(sleep(), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A directory of users that counts who asks.
#[derive(Default)]
struct Names {
    asked: AtomicU32,
}

impl Directory for &'static Names {
    fn user(&self, uid: u32) -> io::Result<Option<String>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok((uid == 0).then(|| "toor".to_owned()))
    }

    fn group(&self, _gid: u32) -> io::Result<Option<String>> {
        Err(io::Error::other("the directory server does not answer"))
    }
}

#[tokio::test]
async fn user_and_groups_are_those_that_id_prints() {
    let running = idle(&sleep());
    let found = unix(config(false, 0))
        .attest(&peer(&running))
        .await
        .unwrap();
    let found = values(&found);
    let mut expected = vec![
        format!("uid:{}", output("id", "-u").trim()),
        format!("user:{}", output("id", "-un").trim()),
        format!("gid:{}", output("id", "-g").trim()),
        format!("group:{}", output("id", "-gn").trim()),
    ];
    for gid in nix::unistd::getgroups().unwrap() {
        expected.push(format!("supplementary_gid:{gid}"));
        if let Ok(Some(group)) = nix::unistd::Group::from_gid(gid) {
            expected.push(format!("supplementary_group:{}", group.name));
        }
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_user_without_a_passwd_entry_has_no_name_and_is_attested_all_the_same() {
    if !is_root() {
        println!("skipped: only root can start a process of another user");
        return;
    }
    let running = Running::start(Command::new(sleep()).arg("1000000").uid(54321).gid(54322));
    let found = unix(config(false, 0))
        .attest(&peer(&running))
        .await
        .unwrap();
    let found = values(&found);
    assert_eq!(found.first(), Some(&"uid:54321"));
    assert_eq!(found.get(1), Some(&"gid:54322"));
    assert!(
        !found.iter().any(|value| value.starts_with("user:")),
        "{found:?}"
    );
    assert!(
        !found.iter().any(|value| value.starts_with("group:")),
        "{found:?}"
    );
}

#[tokio::test]
async fn names_are_looked_up_once_for_many_and_a_broken_directory_costs_names_alone() {
    static NAMES: Names = Names {
        asked: AtomicU32::new(0),
    };
    let running = idle(&sleep());
    let peer = peer(&running);
    let unix = Unix::with_directory(config(false, 0), ProcRoot::own(), &NAMES);
    let all = join_all((0..200).map(|_| unix.attest(&peer))).await;
    assert_eq!(NAMES.asked.load(Ordering::SeqCst), 1);
    for found in all {
        let found = found.unwrap();
        let named = |name: &str| values(&found).iter().any(|value| value.starts_with(name));
        assert!(named("gid:") && !named("group:"));
        assert_eq!(named("user:toor"), is_root());
    }
}

#[tokio::test]
async fn path_and_digest_come_last() {
    let program = sleep();
    let running = idle(&program);
    let found = unix(config(true, 0)).attest(&peer(&running)).await.unwrap();
    let found = values(&found);
    let [.., path, sha256] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(*path, format!("path:{}", program.display()));
    assert_eq!(*sha256, format!("sha256:{}", sha256sum(&program)));
}

#[tokio::test]
async fn a_size_limit_below_zero_hashes_nothing() {
    let running = idle(&sleep());
    let found = unix(config(true, -1))
        .attest(&peer(&running))
        .await
        .unwrap();
    let last = &found.last().unwrap().value;
    assert!(last.starts_with("path:"), "{last}");
}

#[tokio::test]
async fn the_size_limit_is_the_largest_size_that_is_hashed() {
    let program = sleep();
    let size = i64::try_from(fs::metadata(&program).unwrap().len()).unwrap();
    let running = idle(&program);
    let peer = peer(&running);
    let found = unix(config(true, size)).attest(&peer).await.unwrap();
    assert!(found.last().unwrap().value.starts_with("sha256:"));
    let error = unix(config(true, size - 1))
        .attest(&peer)
        .await
        .unwrap_err();
    assert!(matches!(error, AttestError::Internal(_)));
    let report = error.explained().report();
    let limit = size - 1;
    assert!(report.contains(&format!("exceeds size limit ({size} > {limit})")));
    assert!(report.contains("workload_size_limit"), "{report}");
}

#[tokio::test]
async fn what_took_the_place_of_a_running_program_is_not_hashed_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_sleep(folder.path(), "service");
    let running = idle(&program);
    let digest = sha256sum(&program);
    let other = folder.path().join("other");
    fs::write(&other, "#!/bin/false\n").unwrap();
    fs::rename(&other, &program).unwrap();

    let found = unix(config(true, 0)).attest(&peer(&running)).await.unwrap();
    let found = values(&found);
    assert_eq!(found.last(), Some(&format!("sha256:{digest}").as_str()));
    // As the kernel writes it, and upstream with it.
    let path = format!("path:{} (deleted)", program.display());
    assert!(found.contains(&path.as_str()), "{found:?}");
}

#[tokio::test]
async fn one_program_is_hashed_once_for_all_who_run_it() {
    let one = idle(&sleep());
    let two = idle(&sleep());
    let unix = unix(config(true, 0));
    let (one, two) = (peer(&one), peer(&two));
    let both = (0..100).flat_map(|_| [unix.attest(&one), unix.attest(&two)]);
    let all = join_all(both).await;
    let first = all.first().unwrap().as_ref().unwrap().last();
    for found in &all {
        assert_eq!(found.as_ref().unwrap().last(), first);
    }
    assert_eq!(unix.hashed(), 1);
}

#[tokio::test]
async fn a_program_that_was_changed_just_now_is_hashed_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let running = idle(&copy_of_sleep(folder.path(), "new"));
    let unix = unix(config(true, 0));
    let peer = peer(&running);
    for _ in 0..3 {
        unix.attest(&peer).await.unwrap();
    }
    assert_eq!(unix.hashed(), 3);
}

#[test]
fn a_huge_program_is_not_read_on_when_nobody_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_sleep(folder.path(), "huge");
    let file = fs::OpenOptions::new().append(true).open(&program).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    let running = idle(&program);
    let unix = unix(config(true, 0));
    let peer = peer(&running);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut attesting = Box::pin(unix.attest(&peer));
        while unix.hashed() == 0 {
            let polled = futures_util::poll!(&mut attesting);
            assert!(polled.is_pending());
            tokio::task::yield_now().await;
        }
    });
    // Waits for the reading to end, which for a terabyte would be minutes.
    drop(runtime);
}

#[test]
fn a_program_that_may_not_be_read_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let running = idle(&sleep());
    let (pid, attestor) = if is_root() {
        let program = folder.path().join("attestor");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut attestor = role(&program, "attestor", &running.pid().to_string());
        attestor.uid(65534).gid(65534).current_dir("/");
        (running.pid(), attestor)
    } else {
        let program = std::env::current_exe().unwrap();
        (1, role(&program, "attestor", "1"))
    };
    let mut attestor = attestor;
    let outcome = Running::start(&mut attestor).line("outcome: ");
    let named = format!("path lookup: /proc/{pid}/exe: Permission denied");
    assert!(outcome.contains(&named), "{outcome}");
    assert!(outcome.contains("CAP_SYS_PTRACE"), "{outcome}");
}

/// Ends the workload while its user is looked up.
struct EndsIt(Mutex<Running>);

impl Directory for EndsIt {
    fn user(&self, _uid: u32) -> io::Result<Option<String>> {
        self.0.lock().unwrap().end();
        Ok(None)
    }

    fn group(&self, _gid: u32) -> io::Result<Option<String>> {
        Ok(None)
    }
}

#[tokio::test]
async fn a_workload_that_ends_while_it_is_attested_is_told_as_gone() {
    for discover in [false, true] {
        let running = idle(&sleep());
        let peer = peer(&running);
        let directory = EndsIt(Mutex::new(running));
        let unix = Unix::with_directory(config(discover, 0), ProcRoot::own(), directory);
        let error = attest(&[unix], &peer).await.unwrap_err();
        assert!(matches!(error, AttestError::Refused(_)));
        let gone = format!("caller (PID {}) is gone", peer.pid());
        assert!(error.to_string().contains(&gone), "{error}");
    }
}

#[tokio::test]
async fn a_procfs_of_another_pid_namespace_is_noticed() {
    let other = idle(&sleep());
    let running = idle(&sleep());
    let peer = peer(&running);
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join(running.pid().to_string());
    fs::create_dir(&place).unwrap();
    let own = PathBuf::from("/proc").join(running.pid().to_string());
    for file in ["stat", "status"] {
        fs::copy(own.join(file), place.join(file)).unwrap();
    }
    let unix = Unix::new(config(false, 0), ProcRoot::at(folder.path()));
    assert!(unix.attest(&peer).await.is_ok());

    // The same number, another process: it started at another time.
    let stat = fs::read_to_string(own.join("stat")).unwrap();
    let start = format!(" {} ", peer.start());
    assert!(stat.contains(&start));
    fs::write(place.join("stat"), stat.replace(&start, " 1 ")).unwrap();
    let error = unix.attest(&peer).await.unwrap_err();
    let report = error.explained().report();
    assert!(report.contains("is not the caller"), "{report}");
    assert!(report.contains("hostPID"), "{report}");
    drop(other);
}

#[test]
fn settings_have_the_names_of_spire_and_no_others() {
    let read = |text| serde_json::from_str::<UnixConfig>(text);
    assert_eq!(read("{}").unwrap(), config(false, 0));
    let both = r#"{"discover_workload_path":true,"workload_size_limit":-1}"#;
    assert_eq!(read(both).unwrap(), config(true, -1));
    let error = read(r#"{"discover_path":true}"#).unwrap_err().to_string();
    assert!(error.contains("discover_path"), "{error}");
}
