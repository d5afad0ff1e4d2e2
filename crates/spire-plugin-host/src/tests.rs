//! Plugins that crash, hang and lie. Those that speak gRPC are this test's own program, started again.

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ah_identity_provider::hex;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Named, Reference, WorkloadAttestor};
use ah_spire_attest::{AttestError, Selector};
use ah_spire_plugin::catalog::{PluginConfig, PluginData, PluginType};
use ah_spire_plugin::hcl::Position;
use ah_spire_telemetry::Metrics;
use aws_lc_rs::digest::{SHA256, digest};
use prost_types::Any;
use spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;

use crate::program::Program;
use crate::workload::{SERVICE, Workloads};
use crate::{HostServices, Limits, Plugin, Settings};

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with one program.
struct Case {
    folder: TempDir,
    settings: Settings,
}

impl Case {
    fn script(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin");
        write(&path, text);
        let settings = Settings {
            config: PluginConfig {
                plugin_type: PluginType::WorkloadAttestor,
                name: "test".to_owned(),
                position: Position::START,
                command: Some(path),
                arguments: Vec::new(),
                checksum: None,
                enabled: true,
                data: PluginData::None,
            },
            service: SERVICE,
            trust_domain: TrustDomain::new("example.org").unwrap(),
            services: HostServices::new(&Metrics::off()),
            launcher: None,
            limits: Limits {
                call: PATIENCE,
                stop: PATIENCE,
                ..Limits::default()
            },
        };
        Self { folder, settings }
    }

    /// A plugin of [`fake`] that behaves so.
    fn fake(behaviour: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let text = format!(
            "export BEHAVIOUR={behaviour}\nexec {program:?} tests::fake::plays_the_plugin --exact --nocapture 3>&1 >&2\n"
        );
        Self::script(&text)
    }

    async fn start(&self) -> Result<Plugin, String> {
        let started = Plugin::start(self.settings.clone()).await;
        started.map_err(|error| error.report())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(
        path,
        format!("#!/bin/sh\ncd {:?}\n{text}", path.parent().unwrap()),
    )
    .unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn sum(path: &Path) -> String {
    hex(digest(&SHA256, &std::fs::read(path).unwrap()).as_ref())
}

async fn attest(plugin: &Plugin) -> Result<Vec<Selector>, AttestError> {
    let own = PeerInfo::of_process(i32::try_from(std::process::id()).unwrap()).unwrap();
    Workloads::new(plugin.clone()).attest(&own).await
}

/// What comes in the end, whatever fails before.
async fn until<T, E: std::fmt::Debug>(mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_gone(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z'),
        Err(_) => true,
    }
}

#[tokio::test]
async fn a_program_that_is_no_plugin_is_refused_by_what_it_does() {
    let here = "1|1|unix|/nowhere/socket|grpc";
    for (script, told) in [
        ("echo hello; sleep 1000", "no handshake: \"hello\""),
        (
            "head -c 100000 /dev/zero | tr '\\0' x; sleep 1000",
            "no handshake",
        ),
        (
            "echo '1|7|unix|/x|grpc'; sleep 1000",
            "version \"7\" of the plugin protocol",
        ),
        (
            "echo '9|1|unix|/x|grpc'; sleep 1000",
            "version \"9\" of the core protocol",
        ),
        ("echo '1|1|unix|/x|netrpc'; sleep 1000", "speaks \"netrpc\""),
        (
            &format!("echo '{here}'; sleep 1000"),
            "does not serve where it says",
        ),
        (
            "exit 3",
            "ended before it said where it listens: exit status: 3",
        ),
        (
            "kill -9 $$",
            "ended before it said where it listens: signal: 9",
        ),
        (
            "echo 'meant for others' >&2; exit 1",
            "it wrote: meant for others",
        ),
        ("exec >&-; sleep 1000", "closed its stdout"),
        // The cookie, which a plugin looks at first of all.
        (
            "echo \"$WorkloadAttestor $PLUGIN_PROTOCOL_VERSIONS\" >&2; test -d \"$PLUGIN_UNIX_SOCKET_DIR\" || exit 9; exit 1",
            "it wrote: WorkloadAttestor 1",
        ),
    ] {
        let error = Case::script(script).start().await.err().unwrap();
        assert!(error.contains(told), "{script}: {error}");
        assert!(
            error.starts_with("error: WorkloadAttestor \"test\": "),
            "{error}"
        );
        assert!(error.contains("hint: "), "{error}");
    }
}

#[tokio::test]
async fn a_plugin_that_never_says_a_word_is_not_waited_for_and_leaves_nothing() {
    let mut case = Case::script("sleep 1000 & echo $! > child; exec sleep 1000");
    case.settings.limits.start = Duration::from_secs(1);
    let error = case.start().await.err().unwrap();
    assert!(
        error.contains("did not say within 1s that it serves"),
        "{error}"
    );
    // What it started ends with it.
    until(async || {
        let child = std::fs::read_to_string(case.path("child")).map_err(|e| e.to_string())?;
        is_gone(&child).then_some(()).ok_or_else(|| child.clone())
    })
    .await;
}

#[tokio::test]
async fn what_is_no_program_is_named() {
    let mut case = Case::script("exit 0");
    let path = case.path("plugin");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(
        case.start()
            .await
            .err()
            .unwrap()
            .contains("it is not executable")
    );
    case.settings.config.command = Some(case.folder.path().to_owned());
    assert!(case.start().await.err().unwrap().contains("it is no file"));
    case.settings.config.command = Some("/nowhere/plugin".into());
    let error = case.start().await.err().unwrap();
    assert!(error.contains("/nowhere/plugin: No such file"), "{error}");
}

#[tokio::test]
async fn a_wrong_checksum_runs_nothing() {
    let mut case = Case::script("touch ran");
    for (checksum, told) in [
        ("0".repeat(64), "checksums did not match"),
        ("xy".to_owned(), "checksum is not a valid hex string"),
        ("ab".to_owned(), "expected checksum of length 64; got 2"),
    ] {
        case.settings.config.checksum = Some(checksum);
        let error = case.start().await.err().unwrap();
        assert!(error.contains(told), "{error}");
    }
    assert!(!case.path("ran").exists());
}

#[test]
fn what_was_checked_is_what_runs() {
    let mut case = Case::script("echo \"right, $1\"");
    let path = case.path("plugin");
    case.settings.config.checksum = Some(sum(&path));
    case.settings.config.arguments = vec!["an argument".to_owned()];
    let program = Program::open(&case.settings.config).unwrap();
    // In place, as no rename would: the file that was looked at is another now.
    write(&path, "echo wrong");
    for _ in 0..2 {
        let mut command = program
            .command(None, "WorkloadAttestor", Path::new("/"))
            .unwrap();
        let output = command.output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "right, an argument\n"
        );
    }
}

#[tokio::test]
async fn a_plugin_is_loaded_asked_and_ended() {
    let mut case = Case::fake("good");
    case.settings.config.checksum = Some(sum(&case.path("plugin")));
    case.settings.config.data = PluginData::File(case.path("data"));
    std::fs::write(case.path("data"), "one").unwrap();
    let plugin = case.start().await.unwrap();
    assert_eq!(
        attest(&plugin).await.unwrap(),
        [Selector::new("test", "one")]
    );
    // SIGUSR1: what is new is told, and nothing else.
    assert!(!plugin.reconfigure().await.unwrap());
    std::fs::write(case.path("data"), "two").unwrap();
    assert!(plugin.reconfigure().await.unwrap());
    assert_eq!(
        attest(&plugin).await.unwrap(),
        [Selector::new("test", "two")]
    );
    std::fs::write(case.path("data"), "refused").unwrap();
    let error = plugin.reconfigure().await.unwrap_err().report();
    assert!(error.contains("cause: this is refused"), "{error}");
    assert_eq!(
        attest(&plugin).await.unwrap(),
        [Selector::new("test", "two")]
    );

    let pid = std::fs::read_to_string(case.path("pid")).unwrap();
    plugin.stop().await;
    assert!(is_gone(&pid));
    assert!(case.path("deinitialised").exists());
    let error = attest(&plugin).await.unwrap_err();
    assert!(matches!(error, AttestError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_brokers_reference_goes_to_the_plugin_as_it_is_with_the_brokers_name() {
    let case = Case::fake("good");
    let plugin = case.start().await.unwrap();
    let broker = SpiffeId::new("spiffe://example.org/broker").unwrap();
    let workloads = Workloads::new(plugin.clone());
    let ask = async |workload: Named<'_>| {
        let broker = &broker;
        workloads
            .attest_reference(&Reference { broker, workload })
            .await
    };
    let object = |value: &[u8]| Any {
        type_url: "type.googleapis.com/example.Thing".to_owned(),
        value: value.to_vec(),
    };
    let selectors = |values: &[&str]| {
        let each = values.iter().map(|value| Selector::new("test", *value));
        Some(each.collect::<Vec<_>>())
    };
    assert_eq!(
        ask(Named::Other(&object(b"x\xff"))).await.unwrap(),
        selectors(&[
            "type.googleapis.com/example.Thing x\\xff",
            "for spiffe://example.org/broker",
        ])
    );
    let own = PeerInfo::of_process(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert_eq!(
        ask(Named::Process(&own)).await.unwrap(),
        selectors(&["", "for spiffe://example.org/broker"])
    );
    let error = ask(Named::Other(&object(b"gone"))).await.unwrap_err();
    assert!(matches!(error, AttestError::NotFound(_)), "{error:?}");
    assert_eq!(error.to_string(), "there is no such thing");
    // A kind that it does not know is no fault: others may.
    assert_eq!(ask(Named::Other(&object(b"unknown"))).await, Ok(None));
    plugin.stop().await;
}

#[tokio::test]
async fn a_configuration_is_judged_by_its_plugin() {
    let mut case = Case::fake("good");
    case.settings.config.data = PluginData::File(case.path("data"));
    std::fs::write(case.path("data"), "refused").unwrap();
    let notes = Plugin::validate(case.settings.clone()).await.unwrap();
    assert_eq!(notes, ["this is refused"]);
    let error = case.start().await.err().unwrap();
    assert!(error.contains("does not take its configuration"), "{error}");
    std::fs::write(case.path("data"), "one").unwrap();
    assert!(
        Plugin::validate(case.settings.clone())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_plugin_of_another_type_is_refused() {
    let case = Case::fake("other");
    let error = case.start().await.err().unwrap();
    assert!(
        error.contains("no supported plugin interface found in: [\"other.Service\"]"),
        "{error}"
    );
    // It takes no configuration either.
    let mut case = Case::fake("unconfigurable");
    case.start().await.unwrap().stop().await;
    std::fs::write(case.path("data"), "one").unwrap();
    case.settings.config.data = PluginData::File(case.path("data"));
    let error = case.start().await.err().unwrap();
    assert!(
        error.contains("no supported configuration interface found"),
        "{error}"
    );
}

#[tokio::test]
async fn a_plugin_that_crashes_is_started_and_configured_again() {
    let mut case = Case::fake("mortal");
    case.settings.config.data = PluginData::File(case.path("data"));
    std::fs::write(case.path("data"), "one").unwrap();
    let plugin = case.start().await.unwrap();
    let first = std::fs::read_to_string(case.path("pid")).unwrap();
    let error = attest(&plugin).await.unwrap_err();
    assert!(!error.to_string().is_empty());
    let found = until(async || attest(&plugin).await).await;
    assert_eq!(found, [Selector::new("test", "one")]);
    assert_ne!(std::fs::read_to_string(case.path("pid")).unwrap(), first);
    plugin.stop().await;
}

#[tokio::test]
async fn a_plugin_that_freezes_is_ended_and_started_again() {
    let mut case = Case::fake("freezing");
    case.settings.limits.call = Duration::from_secs(1);
    case.settings.limits.health = Duration::from_secs(1);
    let plugin = case.start().await.unwrap();
    let first = std::fs::read_to_string(case.path("pid")).unwrap();
    let error = attest(&plugin).await.unwrap_err();
    assert!(matches!(error, AttestError::Unavailable(_)), "{error}");
    assert!(
        error.to_string().contains("did not answer within 1s"),
        "{error}"
    );
    until(async || attest(&plugin).await).await;
    assert!(is_gone(&first));
    plugin.stop().await;
}

/// Lines of the log while a test runs.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// One thread: the log of a test is that of its thread.
#[tokio::test]
async fn what_a_plugin_writes_is_in_the_log() {
    let seen = Seen::default();
    let writer = seen.clone();
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _log = tracing::subscriber::set_default(log);
    let case = Case::script(
        "echo '{\"@level\":\"warn\",\"@message\":\"told\",\"answer\":42}' >&2; echo 'panic: no' >&2; echo 'plain' >&2; exit 1",
    );
    case.start().await.err().unwrap();
    let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
    let line = |of: &str| {
        text.lines()
            .find(|line| line.contains(of))
            .unwrap()
            .to_owned()
    };
    let told = line("told");
    assert!(
        told.contains("WARN") && told.contains("\"answer\":42"),
        "{told}"
    );
    assert!(
        told.contains("\"plugin_name\":\"test\"") && told.contains("\"external\":true"),
        "{told}"
    );
    assert!(line("panic: no").contains("ERROR"));
    assert!(
        line("plain").contains("ERROR"),
        "after a panic comes its trace"
    );
    assert!(line("Plugin checksum not configured").contains("WARN"));
}
