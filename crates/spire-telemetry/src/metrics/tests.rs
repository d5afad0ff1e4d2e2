use std::collections::BTreeMap;

use ah_spire_plugin::telemetry::Prometheus;
use tonic::Code;

use super::*;

fn config() -> TelemetryConfig {
    TelemetryConfig {
        prometheus: Some(Prometheus {
            host: "localhost".into(),
            port: 0,
            tls: None,
        }),
        ..TelemetryConfig::default()
    }
}

fn metrics(config: &TelemetryConfig) -> Metrics {
    let trust_domain = TrustDomain::new("example.org").unwrap();
    Metrics::new(config, Program::Server, &trust_domain)
        .unwrap()
        .0
}

/// Name → type and labels, as a scraper finds them.
fn printed(text: &str) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            found.insert(name.to_owned(), (kind.to_owned(), String::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let labels = line
                .split(['{', '}'])
                .nth(1)
                .unwrap_or_default()
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0))
                .filter(|label| *label != "quantile")
                .collect::<Vec<_>>()
                .join(",");
            let family = ["_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| found.contains_key(*base))
                .unwrap_or(name);
            found.get_mut(family).expect("a line after its TYPE").1 = labels;
        }
    }
    found
}

/// What upstream printed, of one fixture.
fn upstream(fixture: &str) -> BTreeMap<String, (String, String)> {
    fixture
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            (word(), (word(), word()))
        })
        .collect()
}

#[test]
fn names_types_and_labels_are_those_that_upstream_prints() {
    // Inventory §10.1: one of each sort, against what upstream's server printed.
    let config = TelemetryConfig {
        hostname_label: true,
        ..config()
    };
    let metrics = metrics(&config);
    let trust_domain = TrustDomain::new("example.org").unwrap();
    metrics.started("1.14.1", &trust_domain);
    metrics
        .calls(&["datastore", "registration_entry", "create"], &[])
        .start()
        .done(Code::Ok);
    metrics
        .counter(&["ca", "manager", "x509_ca", "activate"], &[])
        .increment();
    metrics
        .calls(&["server_key_manager", "generate_key"], &[])
        .start()
        .done(Code::Ok);
    let ours = printed(&metrics.text());
    assert_eq!(ours.len(), 7, "{ours:?}");
    let theirs = upstream(include_str!("../../fixtures/server.txt"));
    for (name, shape) in &ours {
        assert_eq!(theirs.get(name), Some(shape), "{name}");
    }
}

#[test]
fn a_call_is_counted_by_its_status_and_its_time_summed_up() {
    // Inventory §10: a call counter is a counter and an `elapsed_time` sample, both with `status`.
    let metrics = metrics(&config());
    let calls = metrics.calls(&["svid", "rotate"], &[]);
    assert_eq!(metrics.text(), "");
    calls.start().done(Code::Ok);
    calls.start().done(Code::Ok);
    calls.start().done(Code::NotFound);
    drop(calls.start());
    calls.start().discard();
    let text = metrics.text();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("spire_server_svid_rotate{"))
        .collect::<Vec<_>>();
    assert_eq!(
        counts,
        [
            "spire_server_svid_rotate{status=\"Canceled\"} 1",
            "spire_server_svid_rotate{status=\"NotFound\"} 1",
            "spire_server_svid_rotate{status=\"OK\"} 2",
        ]
    );
    assert!(text.contains("# TYPE spire_server_svid_rotate_elapsed_time summary\n"));
    assert!(text.contains("spire_server_svid_rotate_elapsed_time_count{status=\"OK\"} 2\n"));
    assert!(
        text.contains("spire_server_svid_rotate_elapsed_time{status=\"OK\",quantile=\"0.99\"} ")
    );
}

#[test]
fn values_are_printed_as_numbers() {
    let metrics = metrics(&config());
    let gauge = metrics.gauge(&["workload_api", "connections"], &[]);
    gauge.add(2.0);
    gauge.add(-1.0);
    metrics.counter(&["lru_cache_entry_add"], &[]).add(0);
    let samples = metrics.summary(&["workload_api", "discovered_selectors"], &[]);
    samples.observe(4.0);
    let text = metrics.text();
    assert!(
        text.contains("\nspire_server_workload_api_connections 1\n"),
        "{text}"
    );
    assert!(
        text.contains("\nspire_server_lru_cache_entry_add 0\n"),
        "{text}"
    );
    assert!(
        text.contains("\nspire_server_workload_api_discovered_selectors{quantile=\"0.5\"} 4\n")
    );
    assert!(text.contains("\nspire_server_workload_api_discovered_selectors_sum 4\n"));
}

#[test]
fn the_same_name_and_labels_are_the_same_series() {
    let metrics = metrics(&config());
    metrics.counter(&["a", "b"], &[]).increment();
    metrics.counter(&["a", "b"], &[]).increment();
    assert!(metrics.text().ends_with("\nspire_server_a_b 2\n"));
    // A name has one type.
    metrics.gauge(&["a", "b"], &[]).set(9.0);
    metrics.gauge(&["a", "b"], &[("x", "y")]).set(9.0);
    assert!(metrics.text().ends_with("\nspire_server_a_b 2\n"));
}

#[test]
fn labels_of_host_and_trust_domain_are_told_when_they_are_wanted() {
    // Inventory §10: EnableHostnameLabel, EnableTrustDomainLabel, MetricPrefix
    let all = TelemetryConfig {
        hostname_label: true,
        trust_domain_label: true,
        metric_prefix: Some("my.spire".into()),
        ..config()
    };
    let metrics = metrics(&all);
    metrics.counter(&["a"], &[("b-c", "d.e")]).increment();
    let host = gethostname::gethostname().into_string().unwrap();
    let line =
        format!("my_spire_a{{b_c=\"d_e\",host=\"{host}\",trust_domain=\"example_org\"}} 1\n");
    assert!(metrics.text().ends_with(&line), "{}", metrics.text());
}

#[test]
fn the_longest_prefix_decides_what_is_counted() {
    // Inventory §10: AllowedPrefixes, BlockedPrefixes
    let text = |allowed: &[&str], blocked: &[&str]| {
        let owned = |it: &[&str]| it.iter().map(|it| (*it).to_owned()).collect();
        let metrics = metrics(&TelemetryConfig {
            allowed_prefixes: owned(allowed),
            blocked_prefixes: owned(blocked),
            ..config()
        });
        metrics.counter(&["rpc", "a"], &[]).increment();
        metrics.counter(&["rpc", "b"], &[]).increment();
        metrics.counter(&["ca"], &[]).increment();
        printed(&metrics.text()).into_keys().collect::<Vec<_>>()
    };
    let all = [
        "spire_server_ca",
        "spire_server_rpc_a",
        "spire_server_rpc_b",
    ];
    assert_eq!(text(&[], &[]), all);
    assert_eq!(text(&["spire_server.rpc.a"], &[]), all);
    assert_eq!(text(&[], &["spire_server.rpc"]), all[..1]);
    assert_eq!(
        text(&["spire_server.rpc.b"], &["spire_server.rpc"]),
        [all[0], all[2]]
    );
    assert_eq!(text(&["spire_server"], &["spire_server"]), [""; 0]);
}

#[test]
fn labels_that_are_kept_out_bring_series_together() {
    // Inventory §10: AllowedLabels, BlockedLabels
    let metrics = metrics(&TelemetryConfig {
        blocked_labels: vec!["status".into()],
        allowed_labels: vec!["attestor".into(), "status".into()],
        ..config()
    });
    let calls = metrics.calls(&["c"], &[("attestor", "unix"), ("x", "y")]);
    calls.start().done(Code::Ok);
    calls.start().done(Code::Internal);
    let text = metrics.text();
    assert!(
        text.contains("\nspire_server_c{attestor=\"unix\"} 2\n"),
        "{text}"
    );
}

#[test]
fn without_a_sink_nothing_is_counted() {
    let metrics = metrics(&TelemetryConfig::default());
    assert!(!metrics.is_on());
    metrics.counter(&["a"], &[]).increment();
    metrics.calls(&["b"], &[]).start().done(Code::Ok);
    assert_eq!(metrics.text(), "");
}

#[test]
fn many_threads_lose_no_call() {
    let metrics = metrics(&config());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let calls = metrics.calls(&["c"], &[]);
                for _ in 0..1000 {
                    calls.start().done(Code::Ok);
                }
            });
        }
    });
    let text = metrics.text();
    assert!(text.contains("\nspire_server_c{status=\"OK\"} 4000\n"));
    assert!(text.contains("\nspire_server_c_elapsed_time_count{status=\"OK\"} 4000\n"));
}
