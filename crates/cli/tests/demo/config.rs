//! The settings files that are printed: they say what the flags say, and the schema takes them (AP-17).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ah_cli::settings::{self, AccessPointSettings, EnrollSettings, Launch, Settings};
use ah_daemon::paths::{Paths, Surroundings};
use ah_testkit::process::{Finished, Host};

use crate::documents::root;

/// The two commands with a settings file, each with its file's name.
const SUBJECTS: [(&str, &str); 2] = [("access-point", "access-point"), ("enroll", "executor")];

fn host() -> Host {
    Host::new(env!("CARGO_BIN_EXE_ah"))
}

fn printed(host: &Host, command: &str, flags: &[&str]) -> String {
    let done = host.run(["agent", command].iter().chain(flags));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr, "");
    done.stdout
}

/// The settings that `ah agent COMMAND FLAGS` would run with.
fn resolved<S: Settings>(flags: &[&str]) -> Launch<S> {
    let around = Surroundings {
        state_directory: Some("/var/lib/ah".into()),
        runtime_directory: Some("/run/ah".into()),
        ..Surroundings::default()
    };
    let words = ["ah"].iter().chain(S::PATH).chain(flags);
    let layers = settings::layers(words.map(Into::into).collect());
    let parsed = layers.parse().unwrap();
    assert_eq!(parsed.faults, [], "{flags:?}");
    Launch::new(layers, &parsed, Paths::new("ah", &around)).unwrap()
}

/// What `flags` set is what a file set that was printed with them.
fn comes_back<S: Settings + PartialEq + std::fmt::Debug>(command: &str, flags: &[&str]) -> String {
    let host = host();
    let print = [&["--print-config"], flags].concat();
    let text = printed(&host, command, &print);
    let file = host.path("printed.toml").display().to_string();
    fs::write(&file, &text).unwrap();
    let from_file = resolved::<S>(&["--config", &file]);
    assert_eq!(
        from_file.settings,
        resolved::<S>(&[&["--config", "/dev/null"], flags].concat()).settings,
        "{text}"
    );
    // Printing what was printed changes nothing.
    let again = printed(&host, command, &["--print-config", "--config", &file]);
    assert_eq!(again, text);
    text
}

const OWN_FILES: [&str; 6] = [
    "--cert",
    "/etc/ah/cert.pem",
    "--key",
    "/etc/ah/key.pem",
    "--ca",
    "/etc/ah/ca.pem",
];

#[test]
fn ap_17_what_an_access_points_file_says_is_what_its_flags_say() {
    comes_back::<AccessPointSettings>("access-point", &[]);
    let flags = [
        "--fleet-listen=0.0.0.0:4433,[::1]:9",
        "--server-identity=files",
        "--executor-san-uri-prefix=spiffe://example.org/ah/agent/",
        "--executor-san-dns=*.a.example.com,b.example.com",
        "--executor-san-ip=10.0.0.0/8",
        "--strict-svid",
        "--strict-key-permissions",
        "--duplicates=replace",
        "--max-executors=7",
        "--max-handshakes=9",
        "--handshake-timeout=1m 30s",
        "--heartbeat-interval=500ms",
        "--db=postgres://ah@db/fleet",
        "--audit-log=journald",
        "--http-listen=127.0.0.1:9443",
        "--http-token-file=/etc/ah/a \"quoted\" \\ path\u{e9}",
        "--log-level=debug",
        "--log-format=json",
        "--drain-timeout=3s",
    ];
    let text =
        comes_back::<AccessPointSettings>("access-point", &[&OWN_FILES[..], &flags].concat());
    for line in [
        "max_executors = 7",
        "strict_svid = true",
        "fleet_listen = [\"0.0.0.0:4433\", \"[::1]:9\"]",
        "#exec_timeout = \"30s\"",
    ] {
        assert!(
            text.lines().any(|written| written == line),
            "no {line}:\n{text}"
        );
    }
}

#[test]
fn ap_17_what_an_executors_file_says_is_what_its_flags_say() {
    let server = "--remote-server=https://ap.example.com,https://[::1]:9";
    let common = [
        server,
        "--name=worker-1",
        "--label=zone=a",
        "--label=rack=7=b",
        "--connect-timeout=3s",
        "--once=enrolled",
    ];
    let with =
        |more: &[&str]| comes_back::<EnrollSettings>("enroll", &[&common[..], more].concat());
    with(&["--dev-allow-remote"]);
    with(&[&["--identity=files"], &OWN_FILES[..]].concat());
    with(&[
        "--identity=spiffe",
        "--spiffe-socket=unix:///run/spire/agent.sock",
        "--expected-server-id=spiffe://example.org/ah/serve",
        "--ca=/etc/ah/more.pem",
    ]);
    with(&[
        "--identity=exec",
        "--exec-command=sh -c 'echo \"x y\"'",
        "--exec-refresh-interval=10m",
    ]);
    with(&[
        "--identity=vault",
        "--vault-addr=https://a:8200,https://b:8200",
        "--vault-pki-path=pki_int/sign/executor",
        "--vault-auth=jwt",
        "--vault-jwt-file=/etc/ah/jwt",
        "--vault-cert-san-uri=spiffe://example.org/ah/agent/1",
        "--vault-cert-san-ip=10.0.0.1,::1",
        "--vault-cert-ttl=90days",
        "--vault-renewal-threshold=1/2",
        "--vault-retry-max=0",
        "--no-vault-token-cache",
    ]);
}

#[test]
fn ap_17_every_default_that_is_printed_is_the_default() {
    for (command, _) in SUBJECTS {
        let host = host();
        let text = printed(&host, command, &["--print-config"]);
        let settings = |file: &str| {
            let words = ["ah", "agent", command, "--print-config", "--config", file];
            let layers = settings::layers(words.map(Into::into).to_vec());
            let parsed = layers.parse().unwrap();
            assert_eq!(parsed.faults, []);
            layers.settings(&parsed).unwrap()
        };
        // Those with a default, with their `#` taken away.
        let known = settings("/dev/null");
        let has_default = |line: &str| {
            let key = line
                .strip_prefix('#')
                .and_then(|line| line.split(" = ").next());
            known
                .iter()
                .any(|setting| Some(setting.key.as_str()) == key && !setting.default.is_empty())
        };
        let uncommented: Vec<_> = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(bare) if has_default(line) => bare,
                _ => line,
            })
            .collect();
        let file = host.path("all.toml").display().to_string();
        fs::write(&file, uncommented.join("\n")).unwrap();
        let mut seen = 0;
        for setting in settings(&file) {
            if setting.default.is_empty() || setting.hidden {
                continue;
            }
            assert_eq!(
                setting.given.as_ref(),
                Some(&setting.default),
                "{setting:?}"
            );
            seen += 1;
        }
        assert!(seen > 10, "{text}");
        // Nothing that can be set is missing, and each says what it means.
        for setting in known.iter().filter(|setting| !setting.hidden) {
            let line = format!("\n#{} = ", setting.key);
            assert_eq!(text.matches(&line).count(), 1, "{line}\n{text}");
            assert!(!setting.help.is_empty(), "{setting:?}");
        }
    }
}

#[test]
fn what_was_given_as_a_secret_is_not_printed_and_neither_is_the_environment() {
    let host = host();
    let mut command = host.command([
        "agent",
        "enroll",
        "--print-config",
        "--vault-secret-id",
        "hunter2",
    ]);
    command
        .env("VAULT_TOKEN", "hunter3")
        .env("VAULT_ADDR", "https://elsewhere:8200");
    let done = Finished::from(command.output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        !done.stdout.contains("hunter") && !done.stdout.contains("elsewhere"),
        "{done:?}"
    );
    assert!(done.stdout.contains("It was given, and is not printed"));
    let url = "postgres://ah:hunter2@db/fleet";
    let text = printed(&host, "access-point", &["--print-config", "--db", url]);
    assert!(!text.contains("hunter"), "{text}");
    // The doctor runs no process that a file could be for.
    assert_eq!(host.run(["agent", "doctor", "--print-config"]).code, 2);
}

#[test]
fn what_is_wrong_with_the_file_is_told_instead_of_printed() {
    let host = host();
    let file = host.path("wrong.toml").display().to_string();
    fs::write(&file, "max_handshaks = 3\n").unwrap();
    let done = host.run(["agent", "access-point", "--print-config", "--config", &file]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(
        done.stderr.contains(":1: unknown key 'max_handshaks'"),
        "{done:?}"
    );
    assert!(
        done.stderr.contains("did you mean 'max_handshakes'?"),
        "{done:?}"
    );
}

/// `AH_UPDATE_DOCS=1 cargo test -p ah-cli --test demo settings_files` writes them.
#[test]
fn the_settings_files_and_their_schemas_are_current() {
    let host = host();
    for (command, name) in SUBJECTS {
        for (flag, file) in [
            ("--print-config", format!("docs/config/{name}.toml")),
            (
                "--print-config-schema",
                format!("docs/config/{name}.schema.json"),
            ),
        ] {
            let path = root().join(&file);
            let current = printed(&host, command, &[flag]);
            if std::env::var_os("AH_UPDATE_DOCS").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &current).unwrap();
            }
            let kept = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == current,
                "{file} is old: AH_UPDATE_DOCS=1 cargo test -p ah-cli --test demo settings_files"
            );
        }
    }
}

/// Reads TOML and judges it by a schema, with libraries that know nothing of ours: one line a file, `ok` or why not.
const JUDGE: &str = "
import json, sys, tomllib, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
for name in sys.argv[2:]:
    errors = list(validator.iter_errors(tomllib.load(open(name, 'rb'))))
    print('ok' if not errors else errors[0].message.replace(chr(10), ' '))
";

fn judged(host: &Host, schema: &Path, texts: &[String]) -> Vec<String> {
    let files = texts.iter().enumerate().map(|(number, text)| {
        let file = host.path(format!("{number}.toml"));
        fs::write(&file, text).unwrap();
        file
    });
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", JUDGE]).arg(schema).args(files);
    let done = Finished::from(command.output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout.lines().map(str::to_owned).collect()
}

/// Debian's Python with its jsonschema.
fn has_judge() -> bool {
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", "import tomllib, jsonschema"])
        .stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "python3-jsonschema is not installed, and CI is set"
    );
    println!("skipped: python3-jsonschema is not installed (make setup)");
    false
}

#[test]
fn an_editor_takes_what_is_printed_and_marks_what_is_wrong() {
    if !has_judge() {
        return;
    }
    for (command, name) in SUBJECTS {
        let host = host();
        let schema = root().join(format!("docs/config/{name}.schema.json"));
        let bare = printed(&host, command, &["--print-config"]);
        let flags: &[&str] = match command {
            "enroll" => &[
                "--remote-server=https://a",
                "--label=a=b",
                "--vault-retry-max=3",
                "--once",
                "--strict-key-permissions",
            ],
            _ => &[
                "--max-executors=3",
                "--strict-svid",
                "--executor-san-ip=10.0.0.0/8",
                "--db=sqlite:/x",
            ],
        };
        let set = printed(&host, command, &[&["--print-config"], flags].concat());
        // Every line that shows a value, right or in its place, is TOML of the right kind.
        let everything: Vec<_> = bare
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|line| !line.starts_with([' ', '#']))
                    .unwrap_or(line)
            })
            .collect();
        let right = [
            bare.clone(),
            set,
            everything.join("\n"),
            "exec_timeout = '1m 30s'\nca = '/x'\n".to_owned(),
        ];
        for (text, verdict) in right.iter().zip(judged(&host, &schema, &right)) {
            assert_eq!(verdict, "ok", "{name}:\n{text}");
        }
        let wrong = [
            "exec_timout = '1s'",
            "exec_timeout = 30",
            "exec_timeout = '30'",
            "log_level = 'loud'",
            "vault_retry_max = 101",
            "strict_key_permissions = 'yes'",
            "ca = ['a']",
            "vault_cert_san_uri = [1]",
            "config = 'other.toml'",
        ];
        for (text, verdict) in wrong
            .iter()
            .zip(judged(&host, &schema, &wrong.map(str::to_owned)))
        {
            assert_ne!(verdict, "ok", "{name}: {text}");
            // The reader of the file agrees.
            let file = host.path("wrong.toml").display().to_string();
            fs::write(&file, text).unwrap();
            let done = host.run(["agent", command, "--print-config", "--config", &file]);
            assert_eq!(done.code, 2, "{text}: {done:?}");
        }
    }
    let host = host();
    let schema = root().join("docs/config/executor.schema.json");
    let tables = [
        "[label]\nsite = 'x'\nrack = 7\n".to_owned(),
        "remote_server = 'https://a,https://b'".to_owned(),
    ];
    assert_eq!(judged(&host, &schema, &tables), ["ok", "ok"]);
}
