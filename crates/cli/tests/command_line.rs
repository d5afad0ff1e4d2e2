//! The command as a person meets it: real processes of `ah`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ah_cli::settings::{self, AccessPointSettings, EnrollSettings, Launch, SourceSettings};
use ah_daemon::paths::{Paths, Surroundings};
use ah_testkit::ca::TestCa;
use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

/// A machine on which nothing of the real one shows.
struct Machine {
    dir: TempDir,
}

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        machine.write("empty.toml", "");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn ah(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin("ah"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            // Instead of what /etc/ah may hold.
            .env("AH_CONFIG", self.path("empty.toml"))
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .current_dir(self.dir.path())
            .arg("agent")
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        outcome(self.ah(arguments))
    }
}

fn outcome(mut command: Command) -> Outcome {
    let done = command.output().unwrap();
    Outcome {
        code: done.status.code().expect("ended by itself"),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

impl Outcome {
    /// Contract §8: `error: TEXT`, then causes, then a hint, and nothing else.
    #[track_caller]
    fn fails(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.code, code, "{}", self.err);
        for line in lines {
            assert!(self.err.contains(line), "no '{line}' in:\n{}", self.err);
        }
        for line in self.err.lines() {
            assert!(
                line.starts_with("error: ")
                    || line.starts_with("  cause: ")
                    || line.starts_with("  hint: "),
                "not of the shape of contract §8: {line}"
            );
        }
    }
}

const LOCAL: [&str; 3] = ["enroll", "--remote-server", "https://127.0.0.1:4433"];

fn words(line: &str) -> Vec<String> {
    let words = line.split_whitespace();
    words
        .map(|word| word.trim_matches('"').to_owned())
        .collect()
}

fn test_paths() -> Paths {
    let around = Surroundings {
        state_directory: Some("/var/lib/ah".into()),
        runtime_directory: Some("/run/ah".into()),
        ..Surroundings::default()
    };
    Paths::new("ah", &around)
}

// Contract, first paragraph: every command line in the guides works as printed there.
#[test]
fn every_command_line_of_the_guides_parses() {
    let fixture = include_str!("fixtures/guide-lines.txt");
    let mut count = 0;
    for line in fixture.lines().filter(|line| !line.starts_with('#')) {
        count += 1;
        let line = line.replace('|', " ");
        let layers = settings::layers(words(&line).into_iter().map(Into::into).collect());
        let parsed = layers
            .parse()
            .unwrap_or_else(|e| panic!("{line}: {}", e.error));
        if line.contains(" access-point ") {
            let launch = Launch::<AccessPointSettings>::new(layers, &parsed, test_paths());
            launch.unwrap_or_else(|faults| panic!("{line}: {faults:?}"));
        } else if line.contains(" enroll ") {
            let launch = Launch::<EnrollSettings>::new(layers, &parsed, test_paths());
            launch.unwrap_or_else(|faults| panic!("{line}: {faults:?}"));
        }
    }
    assert_eq!(count, 26);
}

// Contract §8: exit code 2 for usage, in the one shape of errors.
#[test]
fn usage_errors_have_the_shape_of_every_error_and_say_what_to_do() {
    let machine = Machine::new();
    let check = |arguments: &[&str], lines: &[&str]| machine.run(arguments).fails(2, lines);
    check(
        &["enroll", "--remote-srever", "https://a"],
        &[
            "error: unexpected argument '--remote-srever'",
            "did you mean '--remote-server'?",
        ],
    );
    check(
        &["enroll"],
        &[
            "error: missing --remote-server <https://HOST:PORT>",
            "hint: usage: ah agent enroll",
        ],
    );
    check(
        &["enroll", "--remote-server", "http://a:1"],
        &[
            "error: invalid value 'http://a:1' for --remote-server",
            "only https",
            "write https://a:1",
        ],
    );
    check(
        &["access-point", "--fleet-listen", "0.0.0.0"],
        &["cause: the port is missing", "hint: write 0.0.0.0:4433"],
    );
    check(
        &["access-point", "--log-level", "loud"],
        &[
            "error: invalid value 'loud'",
            "possible values: error, warn, info, debug, trace",
        ],
    );
    check(
        &["access-point", "--drain-timeout", "30"],
        &["cause: a unit is missing", "such as 10s, 1m or 500ms"],
    );
    check(
        &["access-point", "--duplicates"],
        &["--duplicates <POLICY> needs a value"],
    );
    check(
        &["acess-point"],
        &[
            "error: unknown command 'acess-point'",
            "did you mean 'access-point'?",
        ],
    );
    check(&["status", "--pem"], &["error: missing --show-cert"]);
    check(&["audit"], &["error: a command is missing"]);
    let outcome = machine.run(&["access-point", "--db", "mysql://ah:hunter2@db"]);
    outcome.fails(2, &["error: invalid value for --db <URL>"]);
    assert!(!outcome.err.contains("hunter2"), "{}", outcome.err);
}

// AP-15
#[test]
fn ap_15_a_bad_rust_log_is_named() {
    let machine = Machine::new();
    let mut command = machine.ah(&["access-point", "--validate"]);
    command.env("RUST_LOG", "ah_cli=loud");
    outcome(command).fails(1, &["error: invalid RUST_LOG 'ah_cli=loud'"]);
    let mut command = machine.ah(&["access-point", "--validate"]);
    command.env("RUST_LOG", "ah_identity_provider=debug,ah_cli=debug");
    assert_eq!(outcome(command).code, 0);
}

// AP-11, AP-12, AP-14, EN-11: defaults below <state> and <run>, and no password shown.
#[test]
fn validate_shows_what_the_defaults_come_to() {
    let machine = Machine::new();
    let outcome = machine.run(&["access-point", "--validate"]);
    for path in [
        "state/access-point.db",
        "state/audit.jsonl",
        "run/access-point.sock",
    ] {
        let path = machine.path(path).display().to_string();
        assert!(outcome.out.contains(&path), "no {path} in\n{}", outcome.out);
    }
    let db = "postgres://ah:hunter2@db/fleet";
    let outcome = machine.run(&["access-point", "--validate", "--db", db]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(outcome.out.contains("postgres://ah@db/fleet") && !outcome.out.contains("hunter2"));
    let outcome = machine.run(&[&LOCAL[..], &["--name", "w", "--validate"]].concat());
    assert!(
        outcome.out.contains("run/executor-w.sock"),
        "{}",
        outcome.out
    );
}

#[test]
fn help_and_version_are_no_errors() {
    let machine = Machine::new();
    let help = machine.run(&["enroll", "--help"]);
    assert_eq!(help.code, 0);
    for part in [
        "Examples:",
        "Access point:",
        "Identity:",
        "Process:",
        "AH_REMOTE_SERVER",
    ] {
        assert!(help.out.contains(part), "no {part}");
    }
    assert_eq!(machine.run(&["--version"]).code, 0);
}

// DV-2
#[test]
fn dv_2_dev_stays_on_this_machine() {
    let machine = Machine::new();
    let ways_out = ["files, spiffe, vault or exec", "--dev-allow-remote"];
    let outcome = machine.run(&["access-point", "--fleet-listen", "127.0.0.1:1,0.0.0.0:4433"]);
    outcome.fails(2, &ways_out);
    outcome.fails(
        2,
        &["error: the dev identity does not listen on 0.0.0.0:4433"],
    );
    assert_eq!(outcome.err.matches("error: ").count(), 1);
    let outcome = machine.run(&[
        "enroll",
        "--remote-server",
        "https://access-point.example.com",
    ]);
    outcome.fails(2, &ways_out);
    outcome.fails(2, &["does not dial https://access-point.example.com:4433"]);
    for allowed in [
        "https://localhost:1",
        "https://[::1]:1",
        "https://127.9.9.9:1",
    ] {
        let outcome = machine.run(&["enroll", "--remote-server", allowed, "--validate"]);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
    }
    let lifted = [
        "access-point",
        "--fleet-listen=[::]:1",
        "--dev-allow-remote",
        "--validate",
    ];
    assert_eq!(machine.run(&lifted).code, 0);
    let mapped = [
        "access-point",
        "--fleet-listen=[::ffff:10.0.0.1]:1",
        "--validate",
    ];
    assert_eq!(machine.run(&mapped).code, 1);
}

// AP-2, EN-2, AP-3, EN-3
#[test]
fn the_files_identity_needs_its_three_files_and_dev_takes_none() {
    let machine = Machine::new();
    let with = |more: &[&'static str]| machine.run(&[&LOCAL[..], more].concat());
    with(&["--identity", "files", "--key", "k"]).fails(
        2,
        &[
            "error: --identity files needs --cert, --ca",
            "/etc/ah/cert.pem",
        ],
    );
    with(&["--cert", "c", "--key", "k"]).fails(
        2,
        &[
            "error: --cert, --key have no meaning with --identity dev",
            "cause: only the files identity takes them",
            "hint: add --identity files",
        ],
    );
    with(&["--ca", "c"]).fails(2, &["error: --ca has no meaning with --identity dev"]);
    // AP-3: extra roots with every provider.
    let ca = machine.write("ca.pem", "");
    let outcome = machine.run(&["access-point", "--ca", &ca, "--validate"]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

// AP-13
#[test]
fn ap_13_http_that_others_can_reach_has_tls_and_a_token() {
    let machine = Machine::new();
    machine
        .run(&[
            "access-point",
            "--http-listen",
            "0.0.0.0:9443",
            "--http-cert",
            "c",
        ])
        .fails(
            2,
            &[
                "error: --http-listen 0.0.0.0:9443 needs --http-key, --http-token-file",
                "error: --http-cert needs --http-key",
            ],
        );
    machine
        .run(&["access-point", "--http-token-file", "t"])
        .fails(
            2,
            &["error: --http-token-file has no meaning without --http-listen"],
        );
    let local = [
        "access-point",
        "--http-listen",
        "127.0.0.1:9443",
        "--validate",
    ];
    assert_eq!(machine.run(&local).code, 0);
}

// AP-17: flag > env > file > default, seen from outside.
#[test]
fn ap_17_precedence() {
    let machine = Machine::new();
    let file = machine.write("ap.toml", "fleet_listen = '127.0.0.1:3'\n");
    let from = |flag: Option<&str>, env: Option<&str>, config: bool| {
        let mut command = machine.ah(&["access-point", "--validate"]);
        command.args(flag.map(|value| format!("--fleet-listen={value}")));
        command.args(config.then(|| format!("--config={file}")));
        command.envs(env.map(|value| ("AH_FLEET_LISTEN", value)));
        let outcome = outcome(command);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        let line = outcome.out.lines().find(|l| l.starts_with("fleet_listen"));
        line.unwrap()
            .split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (one, two) = (Some("127.0.0.1:1"), Some("127.0.0.1:2"));
    assert_eq!(from(one, two, true), "127.0.0.1:1 flag");
    assert_eq!(from(None, two, true), "127.0.0.1:2 env AH_FLEET_LISTEN");
    assert_eq!(from(None, None, true), format!("127.0.0.1:3 {file}:1"));
    assert_eq!(from(None, None, false), "127.0.0.1:4433 default");
    let mut command = machine.ah(&["access-point", "--validate"]);
    command.env("AH_CONFIG", machine.path("absent.toml"));
    outcome(command).fails(1, &["absent.toml: no such file"]);
}

// AP-17, EN-12
#[test]
fn ap_17_faults_of_a_file_name_it() {
    let machine = Machine::new();
    let file = machine.write(
        "executor.toml",
        "remote_server = ['https://127.0.0.1:4433']\nconect_timeout = '3s'\nname = ''\n[label]\nsite = 'x'\n",
    );
    let outcome = machine.run(&["enroll", "--config", &file]);
    outcome.fails(
        2,
        &[
            &format!("error: {file}:2: unknown key 'conect_timeout'"),
            "hint: did you mean 'connect_timeout'?",
            &format!("error: {file}:3: name: "),
        ],
    );
    assert_eq!(outcome.err.matches("error: ").count(), 2, "{}", outcome.err);
}

// AP-18: every fault at once, exit 1, starts nothing.
#[test]
fn ap_18_validate_tells_every_fault_and_starts_nothing() {
    let machine = Machine::new();
    let file = machine.write("ap.toml", "bogus = 1\nmax_handshakes = 0\n");
    let outcome = machine.run(&[
        "access-point",
        "--validate",
        "--config",
        &file,
        "--server-identity",
        "files",
        "--heartbeat-interval",
        "1ms",
        "--http-listen",
        "0.0.0.0:1",
    ]);
    outcome.fails(
        1,
        &[
            "unknown key 'bogus'",
            "max_handshakes: invalid value '0'",
            "error: --server-identity files needs --cert, --key, --ca",
            "error: --heartbeat-interval 1ms is not between 100ms and 1h",
            "error: --http-listen 0.0.0.0:1 needs",
        ],
    );
    assert!(!machine.path("state").exists() && !machine.path("run").exists());
}

// AP-18 with ER-8 and ER-9
#[test]
fn ap_18_validate_reads_the_files() {
    let machine = Machine::new();
    let ca = TestCa::new("example.org");
    let leaf = ca.leaf().dns("worker.example.org").issue();
    let files = leaf.write(machine.dir.path(), "worker");
    let [cert, key] = [&files.cert, &files.key].map(|path| path.display().to_string());
    let absent = machine.path("ca.pem").display().to_string();
    let arguments = [
        &LOCAL[..],
        &[
            "--identity=files",
            "--cert",
            &cert,
            "--key",
            &key,
            "--ca",
            &absent,
            "--validate",
        ],
    ]
    .concat();
    machine
        .run(&arguments)
        .fails(1, &[&format!("error: no such file: {absent}")]);
    fs::write(&absent, ca.pem()).unwrap();
    let outcome = machine.run(&arguments);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(outcome.out.ends_with("valid\n"), "{}", outcome.out);
}

// EN-8, EN-10, EN-11
#[test]
fn labels_come_from_flags_and_file_and_the_socket_from_the_name() {
    let machine = Machine::new();
    let file = machine.write("labels", "# where\nsite = berlin\n\nrack=7\n");
    let line = format!(
        "ah agent enroll --remote-server https://127.0.0.1:1,https://[::1] --name w \
         --label rack=8 --labels-file {file} --once"
    );
    let layers = settings::layers(words(&line).into_iter().map(Into::into).collect());
    let parsed = layers.parse().unwrap();
    let launch = Launch::<EnrollSettings>::new(layers, &parsed, test_paths()).unwrap();
    let settings = launch.settings;
    let labels: Vec<_> = settings.labels.into_iter().collect();
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    assert_eq!(labels, [pair("rack", "8"), pair("site", "berlin")]);
    assert_eq!(settings.status_socket, Path::new("/run/ah/executor-w.sock"));
    assert_eq!(settings.once, Some(ah_fleet::executor::Once::Failed));
    assert_eq!(settings.servers.len(), 2);
    assert!(matches!(settings.identity.source, SourceSettings::Dev(_)));

    fs::write(&file, "site\nok=1\nok=2\n").unwrap();
    let outcome = machine.run(&[&LOCAL[..], &["--labels-file", &file]].concat());
    outcome.fails(
        2,
        &[
            "labels:1: the '=' is missing",
            "labels:3: label 'ok' is set a second time",
        ],
    );
    let absent = machine.path("absent").display().to_string();
    let outcome = machine.run(&[&LOCAL[..], &["--labels-file", &absent]].concat());
    outcome.fails(1, &[&format!("error: no such file: {absent}")]);
}

// AP-19: HUP reads the file again, and a bad one is told without losing what runs.
#[test]
fn a_reload_sees_the_file_as_it_is_now() {
    let machine = Machine::new();
    let file = machine.write("ap.toml", "log_level = 'warn'\n");
    let arguments = ["ah", "agent", "access-point", "--config", &file];
    let layers = settings::layers(arguments.iter().map(Into::into).collect());
    let parsed = layers.parse().unwrap();
    let launch = Launch::<AccessPointSettings>::new(layers, &parsed, test_paths()).unwrap();
    assert_eq!(launch.settings.log.level, ah_daemon::logging::Level::Warn);
    fs::write(&file, "log_level = 'debug'\n").unwrap();
    let again = launch.reload().unwrap();
    assert_eq!(again.settings.log.level, ah_daemon::logging::Level::Debug);
    fs::write(&file, "log_levle = 'debug'\n").unwrap();
    let faults = launch.reload().unwrap_err();
    assert!(
        faults[0].text.contains("unknown key 'log_levle'"),
        "{faults:?}"
    );
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let outcome = machine.run(&["completions", shell]);
        assert_eq!(outcome.code, 0);
        assert!(outcome.out.contains("remote-server"), "{shell}");
        if shell == "bash" {
            let script = machine.write("ah.bash", &outcome.out);
            let checked = Command::new("bash").args(["-n", &script]).output().unwrap();
            assert!(checked.status.success(), "{checked:?}");
        }
    }
    machine
        .run(&["completions", "cmd"])
        .fails(2, &["possible values: bash, elvish, fish"]);
}

#[test]
fn every_command_has_a_man_page() {
    let machine = Machine::new();
    let dir = machine.path("man1");
    let outcome = machine.run(&["man", dir.to_str().unwrap()]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    for name in [
        "ah",
        "ah-agent",
        "ah-agent-access-point",
        "ah-agent-enroll",
        "ah-agent-status",
        "ah-agent-fleet",
        "ah-agent-fleet-revoke",
        "ah-agent-audit-verify",
        "ah-agent-demo",
    ] {
        let page = fs::read_to_string(dir.join(format!("{name}.1"))).unwrap();
        assert!(
            page.contains(&format!(".TH {}", name.to_uppercase())),
            "{name}: {page:.200}"
        );
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
            "{name}"
        );
    }
    let page = dir.join("ah-agent-enroll.1");
    // Rendered where a man is installed.
    if let Ok(man) = Command::new("man").arg("-l").arg(&page).output() {
        assert!(man.status.success(), "{man:?}");
        assert!(String::from_utf8_lossy(&man.stdout).contains("remote-server"));
    }
}

const VAULT: [&str; 6] = [
    "--identity",
    "vault",
    "--vault-addr",
    "http://127.0.0.1:1",
    "--vault-pki-path",
    "pki/sign/executor",
];

// VA-1 to VA-8
#[test]
fn va_3_a_vault_identity_says_what_it_lacks() {
    let machine = Machine::new();
    let with = |more: &[&str]| machine.run(&[&LOCAL[..], &VAULT[..], more].concat());
    machine
        .run(&[&LOCAL[..], &["--identity", "vault"]].concat())
        .fails(
            2,
            &[
                "needs --vault-addr",
                "needs --vault-pki-path",
                "VAULT_TOKEN",
            ],
        );
    for (flags, text) in [
        (&["--vault-auth", "approle"][..], "needs a role id"),
        (
            &["--vault-auth", "kubernetes"],
            "--vault-k8s-role is missing",
        ),
        (&["--vault-auth", "jwt"], "--vault-jwt-file is missing"),
        (
            &["--vault-auth", "cert"],
            "the client certificate is missing",
        ),
        (&["--vault-auth", "token"], "nothing is given to log in"),
        (
            &["--vault-client-cert", "c"],
            "--vault-client-cert needs --vault-client-key",
        ),
        (
            &[
                "--vault-role-id",
                "r",
                "--vault-secret-id",
                "s",
                "--vault-secret-id-file",
                "f",
            ],
            "--vault-secret-id and --vault-secret-id-file are both given",
        ),
        (&["--vault-renewal-threshold", "1.5"], "not between 0 and 1"),
        (
            &["--vault-cert-san-uri", "spiffe://"],
            "--vault-cert-san-uri",
        ),
        (&["--vault-skip-verify"], "VAULT_SKIP_VERIFY is refused"),
    ] {
        with(flags).fails(2, &[text]);
    }
    // Another provider's flag is a mistake; a variable that other programs read too is none.
    machine
        .run(&[&LOCAL[..], &["--vault-cert-cn", "x"]].concat())
        .fails(2, &["--vault-cert-cn has no meaning with --identity dev"]);
    let mut command = machine.ah(&[&LOCAL[..], &["--validate"]].concat());
    command.env("VAULT_ADDR", "https://vault.example.com:8200");
    assert_eq!(outcome(command).code, 0);
}

// VA-8: the variable that other programs take is refused here, with what to do instead.
#[test]
fn va_8_skip_verify_is_refused() {
    let machine = Machine::new();
    let arguments = [
        &LOCAL[..],
        &VAULT[..],
        &["--vault-role-id", "r", "--validate"],
    ]
    .concat();
    let mut command = machine.ah(&arguments);
    command.env("VAULT_SKIP_VERIFY", "true");
    outcome(command).fails(1, &["VAULT_SKIP_VERIFY is refused", "--vault-ca"]);
    let mut command = machine.ah(&arguments);
    command.env("VAULT_SKIP_VERIFY", "0");
    // ER-18: --validate asks whether Vault is there.
    outcome(command).fails(1, &["failed to connect to vault: connection refused"]);
}

// VA-14: a secret is in no output, wherever it came from and whatever else is wrong.
#[test]
fn va_14_secrets_are_not_shown() {
    let machine = Machine::new();
    let config = machine.write("vault.toml", "vault_token = \"hidden-token\"\n");
    let flags = ["--vault-secret-id", "hidden-flag", "--config", &config];
    for more in ["--validate", "--help", "--vault-retry-max=x"] {
        let arguments = [&LOCAL[..], &VAULT[..], &flags[..], &[more]].concat();
        let mut command = machine.ah(&arguments);
        command.env("VAULT_ROLE_ID", "hidden-variable");
        let outcome = outcome(command);
        for output in [&outcome.out, &outcome.err] {
            assert!(!output.contains("hidden-"), "{more}: {output}");
        }
    }
}
