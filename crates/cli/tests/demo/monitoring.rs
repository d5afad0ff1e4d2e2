//! Alert rules and the dashboard: they ask for metrics that are there, and say what they are meant to say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ah_testkit::clock::FalseClock;
use ah_testkit::process::{AccessPoint, Finished, Host, Process, eventually};
use serde_json::Value;

use crate::documents::{root, scrape};

/// What `make setup` took out of Debian's package.
fn promtool() -> Option<PathBuf> {
    let path = root().join("target/tools/promtool");
    if path.is_file() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "target/tools/promtool is not there, and CI is set"
    );
    println!("skipped: target/tools/promtool is not there (make setup)");
    None
}

fn monitoring(name: &str) -> PathBuf {
    root().join("monitoring").join(name)
}

/// What the rules and dashboards are about: access points, and SPIRE's servers and agents.
const RULES: [&str; 2] = ["ah", "spire"];
const DASHBOARDS: [&str; 2] = ["grafana-access-points.json", "grafana-spire.json"];

fn rules(of: &str) -> String {
    fs::read_to_string(monitoring(&format!("{of}.rules.yml"))).unwrap()
}

fn run(promtool: &Path, words: &[&str], file: &Path) {
    let mut command = Command::new(promtool);
    let done = command.args(words).arg(file).output().unwrap();
    let done = Finished::from(done);
    assert_eq!(done.code, 0, "{words:?} {}: {done:#?}", file.display());
}

#[test]
fn the_rules_are_sound_and_each_fires_on_its_story_alone() {
    let Some(promtool) = promtool() else { return };
    for of in RULES {
        sound(&promtool, of);
    }
}

fn sound(promtool: &Path, of: &str) {
    run(
        promtool,
        &["check", "rules", "--lint=all", "--lint-fatal"],
        &monitoring(&format!("{of}.rules.yml")),
    );
    let stories = monitoring(&format!("{of}.rules.test.yml"));
    run(promtool, &["test", "rules"], &stories);
    // Each alert has a story in which it fires and a moment at which it does not, and a section of the document.
    let stories = fs::read_to_string(stories).unwrap();
    let document = fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let mut alerts = 0;
    for alert in rules(of)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let tried: Vec<_> = stories
            .split("alertname: ")
            .filter(|story| story.lines().next() == Some(alert))
            .collect();
        for (silent, what) in [(true, "no moment without"), (false, "no story for")] {
            let found = tried
                .iter()
                .any(|story| story.lines().nth(1).unwrap().ends_with("[]") == silent);
            assert!(found, "{what} {alert}");
        }
        let heading = document.lines().any(|line| line == format!("### {alert}"));
        assert!(heading, "docs/monitoring.md does not explain {alert}");
        let runbook = format!("runbook: docs/monitoring.md#{}\n", alert.to_lowercase());
        assert!(rules(of).contains(&runbook), "{alert} has another runbook");
        alerts += 1;
    }
    assert!(alerts > 10);
}

/// A query of a panel with what Grafana puts into it.
fn filled(query: &str) -> String {
    query
        .replace("$__rate_interval", "5m")
        .replace("$instance", ".*")
        .replace("$server", ".*")
        .replace("$agent", ".*")
}

fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| {
        assert!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        panel["targets"].as_array().unwrap()
    });
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    queries.collect()
}

fn dashboard(name: &str) -> Value {
    let text = fs::read_to_string(monitoring(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_query_of_the_dashboard_is_one() {
    let Some(promtool) = promtool() else { return };
    let all = DASHBOARDS.map(|name| queries(&dashboard(name))).concat();
    let rules: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(number, query)| serde_json::json!({"record": format!("panel:{number}"), "expr": filled(query)}))
        .collect();
    let host = Host::new(env!("CARGO_BIN_EXE_ah"));
    let file = host.path("queries.yml");
    // JSON is YAML.
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    run(&promtool, &["check", "rules"], &file);
}

/// Words of a query that are metrics of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("ah_"))
        .map(str::to_owned)
        .collect()
}

/// A running access point on which everything that has a label has happened once.
fn visited() -> (Host, AccessPoint, String) {
    let host = Host::new(env!("CARGO_BIN_EXE_ah"));
    let access_point = host.access_point(&["--http-listen", "127.0.0.1:0"]);
    let server = format!("https://{}", access_point.address);
    let enroll = [
        "agent",
        "enroll",
        "--remote-server",
        &server,
        "--name",
        "w",
        "--once=enrolled",
    ];
    assert_eq!(host.run(enroll).code, 0);
    let text = scrape(access_point.http.unwrap());
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (host, access_point, body)
}

#[test]
fn what_rules_and_panels_ask_for_is_exported() {
    let (_host, _access_point, served) = visited();
    let exported: BTreeSet<&str> = served
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    let asked =
        [rules("ah"), queries(&dashboard(DASHBOARDS[0])).join("\n")].map(|text| metrics_in(&text));
    let mut count = 0;
    for name in asked.iter().flatten() {
        assert!(
            exported.contains(name.as_str()),
            "{name} is not exported: {exported:#?}"
        );
        count += 1;
    }
    assert!(count > 20);
    // A rule on a label's value asks for one that there is before it is needed.
    for series in [
        "ah_rejections_total{reason=\"duplicate\"} 0",
        "ah_executor_certificates_expiring{within=\"5m\"} ",
    ] {
        assert!(
            served.lines().any(|line| line.starts_with(series)),
            "no {series}:\n{served}"
        );
    }
}

/// OpenMetrics in the older text format, the only one that promtool's check reads: there a counter's family has the
/// suffix of its samples, and there is neither unit nor end.
fn in_older_text(served: &str) -> String {
    let counters: BTreeSet<&str> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let lines = served
        .lines()
        .filter(|line| !line.starts_with("# UNIT") && *line != "# EOF");
    let lines = lines.map(|line| {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                format!("# {kind} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

#[test]
fn prometheus_reads_and_likes_what_is_exported() {
    let Some(promtool) = promtool() else { return };
    let (host, _access_point, served) = visited();
    let file = host.path("metrics.txt");
    fs::write(&file, in_older_text(&served)).unwrap();
    let mut command = Command::new(promtool);
    command
        .args(["check", "metrics"])
        .stdin(Stdio::from(fs::File::open(file).unwrap()));
    let done = Finished::from(command.output().unwrap());
    let complaints: Vec<_> = done
        .stderr
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    assert!(complaints.is_empty() && done.code == 0, "{done:#?}");
}

#[test]
fn executors_that_come_and_go_and_wrong_clocks_are_seen() {
    let host = Host::new(env!("CARGO_BIN_EXE_ah"));
    let access_point = host.access_point(&["--http-listen", "127.0.0.1:0"]);
    let http = access_point.http.unwrap();
    let value = |name: &str| {
        let text = scrape(http);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::to_owned);
        line.unwrap().trim().parse::<f64>().unwrap()
    };
    let server = format!("https://{}", access_point.address);
    let enroll = ["agent", "enroll", "--remote-server", &server, "--name", "w"];
    for round in 0..4 {
        assert_eq!(value("ah_executors_flapping "), 0.0, "round {round}");
        assert_eq!(host.run(enroll.iter().chain(&["--once=enrolled"])).code, 0);
    }
    assert_eq!(value("ah_executors_flapping "), 1.0);
    access_point
        .process
        .wait_for("executor came back 3 times within 10 minutes");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!((value("ah_clock_timestamp_seconds ") - now.as_secs_f64()).abs() < 60.0);
    let Some(clock) = FalseClock::off_by("+45s") else {
        return;
    };
    let ahead = Process::start(clock.set(&mut host.command(enroll)));
    ahead.wait_for(" enrolled executor.id=");
    eventually("its clock", || {
        let skew = value("ah_executor_clock_skew_seconds ");
        (30.0..120.0).contains(&skew).then_some(())
    });
}
