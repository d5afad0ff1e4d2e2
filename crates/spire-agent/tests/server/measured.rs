//! Metrics of a real agent, as Prometheus reads them (inventory section 10.2).

use ah_testkit::process::{DEADLINE, Process, eventually};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::program::{Conf, fetch, get, program, serve_us, stdout};
use crate::rig::Node;

/// Waits for a sample whose line begins with `wanted` and whose value is good.
fn sample(line: &str, wanted: &str, good: impl Fn(f64) -> bool) {
    eventually(wanted, || {
        let text = get(line, "/metrics").1;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '))?;
        good(value.parse().unwrap()).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_counts_what_upstreams_does_under_the_same_names() {
    let fake = Fake::start().await;
    fake.state().agent_life = std::time::Duration::from_secs(12);
    fake.state().svid_life = std::time::Duration::from_secs(12);
    serve_us(&fake);
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    conf.more = r#"telemetry {
        EnableHostnameLabel = false
        Prometheus { host = "localhost" port = 0 }
    }"#
    .into();
    let socket = node.directory.path().join("private/admin.sock");
    conf.agent = format!("admin_socket_path = {socket:?}");
    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    let line = agent.wait_for("Serving metrics");
    let is = |wanted: &str, value: f64| sample(&line, wanted, |it| (it - value).abs() < 0.5);
    let some = |wanted: &str| sample(&line, wanted, |it| it >= 1.0);

    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    stdout(&fetch(&node, &[]));
    stdout(&fetch(&node, &["jwt", "-audience", "a"]));
    is("spire_agent_bootstrapped", 1.0);
    is(r#"spire_agent_bootstrap_attempts{mode="rebootstrap"}"#, 0.0);
    is(r#"spire_agent_bootstrap_attempts{mode="bootstrap"}"#, 1.0);
    is(
        r#"spire_agent_node_attestor_new_svid{attestor="join_token",status="OK"}"#,
        1.0,
    );
    is(
        r#"spire_agent_node_attestor_new_svid_elapsed_time_count{attestor="join_token",status="OK"}"#,
        1.0,
    );
    // Upstream's documents call them `generate_key_pair` and `fetch_private_key`, its code so:
    some(r#"spire_agent_agent_key_manager_generate_key{status="OK"}"#);
    some(r#"spire_agent_agent_key_manager_get_keys{status="OK"}"#);
    // Upstream documents these two and never counts them.
    some(r#"spire_agent_agent_key_manager_store_private_key{status="OK"}"#);
    is("spire_agent_workload_api_bundles_update_jwt", 1.0);
    some(r#"spire_agent_manager_sync_fetch_entries_updates{status="OK"}"#);
    some(r#"spire_agent_manager_sync_fetch_svids_updates{status="OK"}"#);
    is("spire_agent_sync_bundles_total", 1.0);
    is("spire_agent_sync_entries_total", 1.0);
    is("spire_agent_sync_entries_missing", 0.0);
    is("spire_agent_lru_cache_entry_add", 1.0);
    is(
        r#"spire_agent_lru_cache_record_map_size{svid_type="X509"}"#,
        1.0,
    );
    is(
        r#"spire_agent_lru_cache_svid_map_size{svid_type="X509"}"#,
        1.0,
    );
    is("spire_agent_jwt_svid_cache_size", 1.0);
    some(r#"spire_agent_workload_api_workload_attestor{attestor="unix",status="OK"}"#);
    some(r#"spire_agent_workload_api_workload_attestation{status="OK"}"#);
    is("spire_agent_workload_api_connections", 0.0);

    // The agent's own SVID and its workload's are replaced in the middle of their lives.
    some(r#"spire_agent_agent_svid_rotate{status="OK"}"#);
    some("spire_agent_cache_manager_expiring_svids_count");
    fake.set_entry("a", "/a", |entry| entry.hint = "h".into());
    some("spire_agent_lru_cache_entry_update");
    some("spire_agent_cache_manager_outdated_svids_count");

    // One call a second.
    eventually("a call is over the limit", || {
        let calls = (0..4).map(|_| {
            std::thread::spawn({
                let socket = node.directory.path().join("public/api.sock");
                move || {
                    let mut command = program(&["api", "fetch", "jwt", "-audience", "a"]);
                    command.arg("-socketPath").arg(socket).output().unwrap()
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.join().unwrap();
        }
        let text = get(&line, "/").1;
        let wanted = r#"spire_agent_workload_api_rate_limit_exceeded{method="_SpiffeWorkloadAPI_FetchJWTSVID"}"#;
        text.contains(wanted).then_some(())
    });
    let get_logger = ["logger", "get", "-socketPath", socket.to_str().unwrap()];
    stdout(&program(&get_logger).output().unwrap());
    is("spire_agent_logger_api_connection", 1.0);
    is("spire_agent_logger_api_connections", 0.0);
    is(r#"spire_agent_rpc_logger_get_logger{status="OK"}"#, 1.0);
    let get_info = ["debug", "getinfo", "-socketPath", socket.to_str().unwrap()];
    stdout(&program(&get_info).output().unwrap());
    // `debug_api`, `connection(s)`, which `sds_api` has, too.
    is("spire_agent_debug_api_connection", 1.0);
    is("spire_agent_debug_api_connections", 0.0);

    fake.state().taint = true;
    some(r#"spire_agent_cache_manager_workload_process_tainted_x509_svids{status="OK"}"#);
    some("spire_agent_cache_manager_tainted_x509_svids_workload_count");
    some(r#"spire_agent_cache_manager_workload_process_tainted_jwt_svids{status="OK"}"#);
    some("spire_agent_cache_manager_tainted_jwt_svids_workload_count");
    fake.state().entries.clear();
    is("spire_agent_lru_cache_entry_remove", 1.0);
}

// Inventory §1.1: profiling_enabled, profiling_port.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_profiles_where_it_is_asked_to() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    // 0 is none, so it has to be one that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut conf = Conf::new(&node);
    conf.agent = format!("profiling_enabled = true profiling_port = {port}");
    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    let line = agent.wait_for("Serving profiles");
    let (status, told) = get(&line, "/debug/pprof/cmdline");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(told.contains("spire-agent\0run\0"), "{told}");
}

// Inventory §10: Statsd, InMem. SIGUSR1 has what is kept in memory told.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_a_collector_what_it_counts() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut conf = Conf::new(&node);
    conf.more = format!(
        r#"telemetry {{
            EnableHostnameLabel = false
            Statsd = [ {{ address = "{address}" }} ]
            InMem {{}}
        }}"#
    );
    let agent = Process::start(&mut conf.command(&node, &fake, "run"));
    let wanted = "spire_agent.node.attestor.new_svid.join_token.OK:1.000000|c\n";
    let mut told = String::new();
    while !told.contains(wanted) {
        let mut buffer = [0; 2000];
        let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await;
        let length = received.unwrap_or_else(|_| panic!("{told}")).unwrap();
        told.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(told.starts_with("spire_agent.started."), "{told}");

    eventually("the second of the attestation has ended", || {
        agent.signal(Signal::SIGUSR1);
        let kept = "[C] 'spire_agent.node.attestor.new_svid.join_token.OK': Count: 1 Sum: 1.000";
        (agent.count(kept) > 0).then_some(())
    });
}
