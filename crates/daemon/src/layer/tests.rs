use clap::{Arg, ArgAction, value_parser};

use super::*;

fn definition() -> Command {
    let arg = |name: &'static str| Arg::new(name).long(name);
    Command::new("ah").subcommand_required(true).subcommand(
        Command::new("serve")
            .arg(arg("config").value_parser(value_parser!(PathBuf)))
            .arg(arg("validate").action(ArgAction::SetTrue))
            .arg(arg("server").required(true))
            // PATH stands for a variable that the environment of every test has.
            .arg(arg("from-env").env("PATH").default_value("default"))
            .arg(
                arg("max-count")
                    .value_parser(value_parser!(u32).range(1..))
                    .default_value("256"),
            )
            .arg(
                arg("listen")
                    .action(ArgAction::Append)
                    .value_delimiter(',')
                    .default_value("a:1"),
            )
            .arg(arg("mode").value_parser(["text", "json"]))
            .arg(arg("strict").action(ArgAction::SetTrue))
            .arg(
                arg("secret")
                    .env("AH_TEST_UNSET")
                    .hide_env_values(true)
                    .value_parser(value_parser!(u32)),
            )
            .arg(arg("label").action(ArgAction::Append))
            .arg(arg("describe").action(ArgAction::SetTrue))
            .arg(arg("anyway").action(ArgAction::SetTrue)),
    )
}

fn layers(arguments: &[&str], default_file: &std::path::Path) -> Layers {
    let arguments = ["ah", "serve"].iter().chain(arguments);
    Layers::new(
        definition(),
        arguments.map(OsString::from).collect(),
        vec![Layered {
            path: &["serve"],
            default_file: default_file.to_owned(),
            file_arg: "config",
            not_in_file: &["config", "validate"],
            tables: &["label"],
            describing: &["describe"],
            lifting: &["anyway"],
        }],
    )
}

/// Parses with `toml` as the default file.
fn parse(arguments: &[&str], toml: &str) -> Result<Parsed, LayerError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serve.toml");
    std::fs::write(&path, toml).unwrap();
    layers(arguments, &path).parse()
}

fn one(parsed: &Parsed, id: &str) -> Option<String> {
    let matches = parsed.matches.subcommand_matches("serve").unwrap();
    matches.get_one::<String>(id).cloned()
}

fn many(parsed: &Parsed, id: &str) -> Vec<String> {
    let matches = parsed.matches.subcommand_matches("serve").unwrap();
    matches.get_many(id).unwrap().cloned().collect()
}

fn told(toml: &str) -> (String, Option<String>) {
    let parsed = parse(&["--server", "x"], toml).unwrap();
    assert_eq!(parsed.faults.len(), 1, "{:?}", parsed.faults);
    let fault = &parsed.faults[0];
    let name = fault.file.file_name().unwrap().to_string_lossy();
    assert_eq!(name, "serve.toml");
    (
        format!("{}: {}", fault.line, fault.text),
        fault.hint.clone(),
    )
}

// AP-17: flag > env > file > default, for each pair.
#[test]
fn ap_17_each_layer_wins_over_the_one_below() {
    let path = std::env::var("PATH").unwrap();
    let parsed = parse(&["--server", "s"], "").unwrap();
    assert_eq!(one(&parsed, "from-env").unwrap(), path);
    assert_eq!(
        parsed.origins["from-env"],
        Origin::Environment("PATH".into())
    );
    assert_eq!(parsed.origins["max-count"], Origin::Default);

    let file = "from_env = \"file\"\nserver = \"file\"\nmode = \"json\"\n";
    let parsed = parse(&["--mode", "text"], file).unwrap();
    assert_eq!(one(&parsed, "from-env").unwrap(), path, "env over file");
    assert_eq!(one(&parsed, "mode").unwrap(), "text", "flag over file");
    assert_eq!(
        one(&parsed, "server").unwrap(),
        "file",
        "file satisfies required"
    );
    assert_eq!(parsed.origins["mode"], Origin::Flag);
    assert!(matches!(&parsed.origins["server"], Origin::File(_, 2)));

    let parsed = parse(&["--from-env", "flag", "--server", "s"], file).unwrap();
    assert_eq!(one(&parsed, "from-env").unwrap(), "flag", "flag over env");

    let parsed = parse(&["--server", "s"], "max-count = 7\nlisten = [\"b:2\"]").unwrap();
    let matches = parsed.matches.subcommand_matches("serve").unwrap();
    assert_eq!(
        matches.get_one::<u32>("max-count"),
        Some(&7),
        "file over default"
    );
    assert_eq!(
        many(&parsed, "listen"),
        ["b:2"],
        "a list replaces the default"
    );
}

#[test]
fn ap_17_every_kind_of_value() {
    let toml = r#"
        server = "s"
        max_count = 0x10
        listen = ["b:2,c:3", "d:4"]
        strict = true
        label = { site = "x", rack = 7 }
    "#;
    let parsed = parse(&[], toml).unwrap();
    assert_eq!(parsed.faults, []);
    let matches = parsed.matches.subcommand_matches("serve").unwrap();
    assert_eq!(matches.get_one::<u32>("max-count"), Some(&16));
    assert_eq!(many(&parsed, "listen"), ["b:2", "c:3", "d:4"]);
    assert!(matches.get_flag("strict"));
    let mut labels = many(&parsed, "label");
    labels.sort();
    assert_eq!(labels, ["rack=7", "site=x"]);
    let parsed = parse(&["--listen", "z:9"], "server = 's'\nlisten = ['b:2']").unwrap();
    assert_eq!(
        many(&parsed, "listen"),
        ["z:9"],
        "a flag replaces the file's list"
    );
    let parsed = parse(&[], "server = 's'\nstrict = false").unwrap();
    let matches = parsed.matches.subcommand_matches("serve").unwrap();
    assert!(!matches.get_flag("strict"));
}

// AP-17: an unknown key is an error that names the nearest known one.
#[test]
fn ap_17_an_unknown_key_names_file_line_and_nearest() {
    let (text, hint) = told("# x\nmax_cuont = 3\n");
    assert_eq!(text, "2: unknown key 'max_cuont'");
    assert_eq!(hint.unwrap(), "did you mean 'max_count'?");
    let (_, hint) = told("maxCount = 3");
    assert_eq!(hint.unwrap(), "did you mean 'max_count'?");
    let (text, hint) = told("zzqqxx = 3");
    assert_eq!((text.as_str(), hint), ("1: unknown key 'zzqqxx'", None));
    let (_, hint) = told("config = 'other.toml'");
    assert_eq!(hint.unwrap(), "this can be given on the command line only");
}

#[test]
fn ap_17_a_table_is_an_error_that_says_so() {
    let (text, hint) = told("[max]\ncount = 3\n");
    assert_eq!(text, "1: unknown table [max]");
    assert_eq!(
        hint.unwrap(),
        "settings are not grouped in tables: write max_count = … at the top level"
    );
    let (text, _) = told("[listen]\na = 3\n");
    assert!(text.starts_with("1: listen: "), "{text}");
    assert!(text.ends_with("not a table"), "{text}");
}

#[test]
fn ap_17_a_bad_value_names_key_and_line_in_the_parsers_words() {
    let (text, _) = told("\nmax_count = 0\n");
    assert_eq!(
        text,
        "2: max_count: invalid value '0': 0 is not in 1..=4294967295"
    );
    let (text, _) = told("max_count = 'many'");
    assert_eq!(
        text,
        "1: max_count: invalid value 'many': invalid digit found in string"
    );
    let (text, hint) = told("mode = 'jsn'");
    assert_eq!(text, "1: mode: invalid value 'jsn'");
    assert_eq!(
        hint.unwrap(),
        "did you mean 'json'? possible values: text, json"
    );
    let (text, _) = told("mode = ['text']");
    assert_eq!(text, "1: mode: takes one value, not a list");
    let (text, _) = told("strict = 'yes'");
    assert_eq!(text, "1: strict: takes true or false");
    let (text, _) = told("listen = [1979-05-27]");
    assert!(text.ends_with("not a date"), "{text}");
    let (text, _) = told("max_count = 1\nmax-count = 2");
    assert_eq!(text, "2: key 'max-count' is set a second time");
    let (text, _) = told("max_count = 1\nmax_count = 2");
    assert!(text.starts_with("2: not TOML: "), "{text}");
    let (text, _) = told("server = \n");
    assert!(text.starts_with("1: not TOML: "), "{text}");
}

#[test]
fn a_value_that_is_hidden_in_the_environment_is_hidden_in_errors() {
    let (text, _) = told("secret = 'hunter2'");
    assert_eq!(
        text,
        "1: secret: invalid value: invalid digit found in string"
    );
}

// AP-18 builds on this: one bad key hides no other.
#[test]
fn every_fault_of_a_file_is_found_at_once() {
    let toml = "server = 3\nmax_count = 0\nbogus = 1\nmode = 'x'\n";
    let parsed = parse(&[], toml).unwrap();
    let lines: Vec<_> = parsed.faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines.len(), 3, "{:?}", parsed.faults);
    assert!(lines.contains(&2) && lines.contains(&3) && lines.contains(&4));
    // A bad value of a required key is told as such, not as a missing flag.
    let parsed = parse(&[], "server = ['a']").unwrap();
    assert_eq!(parsed.faults.len(), 1);
}

#[test]
fn a_file_that_was_asked_for_must_exist_and_the_default_one_need_not() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.toml");
    let parsed = layers(&["--server", "s"], &absent).parse().unwrap();
    assert_eq!((parsed.file, parsed.faults), (None, vec![]));
    let flag = format!("--config={}", absent.display());
    let parsed = layers(&["--server", "s", &flag], &absent).parse().unwrap();
    assert_eq!(
        parsed.faults[0].to_string(),
        format!("{}: no such file", absent.display())
    );
}

#[test]
fn the_named_file_is_read_instead_of_the_default_one() {
    let dir = tempfile::tempdir().unwrap();
    let (named, default) = (dir.path().join("n"), dir.path().join("d"));
    std::fs::write(&named, "server = 'named'").unwrap();
    std::fs::write(&default, "server = 'default'\nbogus = 1").unwrap();
    let flag = format!("--config={}", named.display());
    let parsed = layers(&[&flag], &default).parse().unwrap();
    assert_eq!(one(&parsed, "server").unwrap(), "named");
    assert_eq!(parsed.faults, []);
}

// AP-19: a reload reads the file again with the same arguments.
#[test]
fn parsing_again_sees_the_file_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serve.toml");
    std::fs::write(&path, "server = 'one'").unwrap();
    let layers = layers(&["--mode", "json"], &path);
    assert_eq!(one(&layers.parse().unwrap(), "server").unwrap(), "one");
    std::fs::write(&path, "server = 'two'\nmode = 'text'").unwrap();
    let parsed = layers.parse().unwrap();
    assert_eq!(one(&parsed, "server").unwrap(), "two");
    assert_eq!(one(&parsed, "mode").unwrap(), "json");
}

#[test]
fn a_wrong_command_line_is_told_even_when_the_file_is_wrong_too() {
    let error = parse(&["--bogus"], "nonsense = 1").unwrap_err();
    assert_eq!(error.error.kind(), clap::error::ErrorKind::UnknownArgument);
    let error = parse(&["--server", "s", "--max-count", "0"], "").unwrap_err();
    assert_eq!(error.error.kind(), clap::error::ErrorKind::ValueValidation);
    let error = parse(&[], "").unwrap_err();
    assert_eq!(
        error.error.kind(),
        clap::error::ErrorKind::MissingRequiredArgument
    );
}

fn settings(arguments: &[&str], toml: &str) -> Vec<Setting> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serve.toml");
    std::fs::write(&path, toml).unwrap();
    let config = format!("--config={}", path.display());
    let arguments: Vec<_> = arguments.iter().copied().chain([config.as_str()]).collect();
    let layers = layers(&arguments, &dir.path().join("absent"));
    let parsed = layers.parse().unwrap();
    assert_eq!(parsed.faults, []);
    layers.settings(&parsed).unwrap()
}

// AP-17: the definition is the only list of settings.
#[test]
fn ap_17_settings_are_described_from_their_definition() {
    let settings = settings(&["--describe", "--mode=json"], "max_count = 7\n");
    let of = |id: &str| settings.iter().find(|setting| setting.id == id).unwrap();
    let keys: Vec<_> = settings
        .iter()
        .map(|setting| setting.key.as_str())
        .collect();
    // Without what only the command line takes; nothing was required.
    assert_eq!(
        keys,
        [
            "server",
            "from_env",
            "max_count",
            "listen",
            "mode",
            "strict",
            "secret",
            "label",
            "anyway"
        ]
    );
    let max = u32::MAX;
    assert_eq!(of("max-count").kind, Kind::Integer { min: 1, max });
    assert_eq!(of("max-count").default, ["256"], "not the file's");
    assert_eq!(of("max-count").given, Some(vec!["7".to_owned()]));
    assert_eq!(of("mode").given, Some(vec!["json".to_owned()]));
    assert_eq!(of("mode").choices, ["text", "json"]);
    assert_eq!(of("strict").kind, Kind::Switch);
    assert!(of("server").required && of("secret").secret);
    assert!(of("listen").many && !of("listen").table && of("label").table);
    // The environment goes on winning over the file, and is not copied into it.
    assert_eq!(of("from-env").environment.as_deref(), Some("PATH"));
    assert_eq!(of("from-env").given, None);
}

#[test]
fn what_is_required_can_be_lifted() {
    assert!(parse(&[], "").is_err());
    let parsed = parse(&["--anyway"], "mode = 'json'").unwrap();
    assert_eq!(
        (one(&parsed, "server"), one(&parsed, "mode").unwrap()),
        (None, "json".to_owned())
    );
}

#[test]
fn a_description_reads_no_file_that_nobody_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serve.toml");
    std::fs::write(&path, "nonsense = 1").unwrap();
    let layers = layers(&["--describe"], &path);
    let parsed = layers.parse().unwrap();
    assert_eq!((parsed.file.as_ref(), parsed.faults.len()), (None, 0));
    let (_, hint) = told("describe = true");
    assert_eq!(hint.unwrap(), "this can be given on the command line only");
}
