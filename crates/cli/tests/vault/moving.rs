//! Running fleets that move to Vault from files and from SPIFFE, step by step as the guide says: everybody stays who
//! they are, and both roots are trusted meanwhile (AP-3, EN-3).

use std::fs;
use std::net::SocketAddr;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{AccessPoint, Host, Process, access_point_args};
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::fleet::{Fleet, id};
use crate::kit::{Files, UNKNOWN_AUTHORITY, failed, history, json, server_leaf, shown};

const SERVER_ID: &str = "spiffe://example.org/ah/serve";
const RULE: [&str; 2] = [
    "--executor-san-uri-prefix",
    "spiffe://example.org/ah/agent/",
];

/// The root of the fleet's Vault, in PEM.
fn vault_root(fleet: &Fleet) -> String {
    let read = fleet.bao.read(&format!("{}/cert/ca", fleet.realm.pki));
    let pem = read["data"]["certificate"].as_str().unwrap();
    format!("{}\n", pem.trim_end())
}

/// Writes `name`, whole from one moment to the next; returns its path.
fn put(host: &Host, name: &str, text: &str) -> String {
    let path = host.path(name);
    let next = host.path("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, &path).unwrap();
    path.display().to_string()
}

/// Ends it as an operator does.
fn stop(mut process: Process) {
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

/// Waits for the `nth` enrollment of `name`.
fn enrolled(process: &Process, name: &str, nth: usize) {
    process.wait_for_nth(&format!(" enrolled executor.id={} ", id(name)), nth);
}

/// An executor with Vault that the access point must refuse for its root.
fn too_early(fleet: &Fleet, server: SocketAddr, more: &[&str]) {
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let more = [&["--once=enrolled"], more].concat();
    let mut command = fleet.enroll(fleet.bao.url(), Some(&credentials), server, "early", &more);
    let told = failed(&command.output().unwrap().into(), 1);
    assert_eq!(told.text, UNKNOWN_AUTHORITY);
}

/// `name` is enrolled by the last provider in its history, as the one it was when `first` was shown.
fn is_still(host: &Host, name: &str, first: &Value, providers: &[&str]) {
    let now = shown(host, name);
    assert_eq!(history(&now), providers, "{now}");
    assert_eq!(now["id"], id(name).as_str());
    assert_eq!(now["provider"], *providers.last().unwrap(), "{now}");
    assert_eq!(now["first_enrolled"], first["first_enrolled"]);
    assert!(now["live"].is_object(), "{now}");
}

fn count(host: &Host) -> usize {
    let all = json(host, &["agent", "fleet", "list", "--json"]);
    all["executors"].as_array().unwrap().len()
}

// AP-3, EN-3, RG-1: the access point first, then one executor after the other; whoever has not moved stays enrolled.
#[test]
fn ap_3_a_running_fleet_moves_from_files_to_vault() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let host = &fleet.host;
    let old = TestCa::new("example.org");
    let old_root = old.write(&host.path(""), "old-root").display().to_string();
    let server = Files::write(host, "server", &server_leaf(&old), &old);
    let before = server.access_point(host, &RULE);
    let address = before.address;
    let names = ["one", "two"];
    let files = names.map(|name| {
        let leaf = old.leaf().spiffe(&id(name)).issue();
        Files::write(host, name, &leaf, &old)
    });
    let by_files = |number: usize| {
        let named = ["--name", names[number]];
        Process::start(&mut files[number].enroll(host, address, &named))
    };
    let (one, two) = (by_files(0), by_files(1));
    enrolled(&one, "one", 1);
    enrolled(&two, "two", 1);
    let first = names.map(|name| shown(host, name));
    too_early(&fleet, address, &["--ca", &old_root]);

    // Executors are to know the access point's next certificate before it has it.
    let both = fs::read_to_string(&old_root).unwrap() + &vault_root(&fleet);
    for (process, name) in [(&one, "one"), (&two, "two")] {
        put(host, &format!("{name}-ca.pem"), &both);
        process.wait_for("certificate rotated; enrollment moved");
    }
    let at = address.to_string();
    stop(before.process);
    let meanwhile = fleet.access_point(&["--fleet-listen", &at, "--ca", &old_root]);
    enrolled(&one, "one", 2);
    enrolled(&two, "two", 2);
    is_still(host, "one", &first[0], &["files"]);

    stop(one);
    let one = fleet.executor(address, "one", &[]);
    enrolled(&one, "one", 1);
    is_still(host, "one", &first[0], &["files", "vault"]);
    is_still(host, "two", &first[1], &["files"]);
    stop(two);
    let two = fleet.executor(address, "two", &[]);
    enrolled(&two, "two", 1);
    is_still(host, "two", &first[1], &["files", "vault"]);

    // Nobody needs the old root any more, and nobody gets in by it.
    stop(meanwhile.process);
    let _after = fleet.access_point(&["--fleet-listen", &at]);
    enrolled(&one, "one", 2);
    enrolled(&two, "two", 2);
    stop(two);
    let late = files[1].once(host, address, &["--name", "two"]);
    assert_eq!(failed(&late, 1).text, UNKNOWN_AUTHORITY);
    is_still(host, "one", &first[0], &["files", "vault"]);
    assert_eq!(history(&shown(host, "two")), ["files", "vault"]);
    assert_eq!(count(host), 2, "nobody became somebody else");
}

// AP-3, EN-3, EN-5, RG-1: the other way round. SPIRE vouches for the access point until no executor needs it, and
// its SPIFFE ID is what executors know it by, whoever signs.
#[test]
fn ap_3_a_running_fleet_moves_from_spiffe_to_vault() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let host = &fleet.host;
    let spire = TestCa::new("example.org");
    let agent = |socket: &str, id: &str| {
        let svids = Svids::of(&spire.leaf().spiffe(id).issue(), &spire);
        WorkloadApi::unix(host.path(socket), Answer::Set(svids))
    };
    let mut agents = [
        agent("server.sock", SERVER_ID),
        agent("agent.sock", &id("one")),
    ];
    let sockets = agents.each_ref().map(WorkloadApi::endpoint);
    let by_spiffe = |more: &[&str]| {
        let args = ["--server-identity", "spiffe", "--spiffe-socket"];
        let args = [&args[..], &[&sockets[0]], &RULE, more].concat();
        AccessPoint::start(&mut host.command(access_point_args(&args)), &args)
    };
    let vault = put(host, "vault-root.pem", &vault_root(&fleet));
    let spire_root = spire.write(&host.path(""), "spire").display().to_string();
    let known = ["--ca", &spire_root, "--expected-server-id", SERVER_ID];

    let before = by_spiffe(&[]);
    let address = before.address;
    let at = address.to_string();
    let flags = ["--identity", "spiffe", "--spiffe-socket", &sockets[1]];
    let named = ["--name", "one", "--expected-server-id", SERVER_ID];
    let one = host.executor(address, &[flags, named].concat());
    enrolled(&one, "one", 1);
    let first = shown(host, "one");
    too_early(&fleet, address, &known);

    stop(before.process);
    let meanwhile = by_spiffe(&["--fleet-listen", &at, "--ca", &vault]);
    enrolled(&one, "one", 2);
    stop(one);
    let one = fleet.executor(address, "one", &known);
    enrolled(&one, "one", 1);
    is_still(host, "one", &first, &["spiffe", "vault"]);
    let two = fleet.executor(address, "two", &known);
    enrolled(&two, "two", 1);

    // SPIRE is switched off once the access point has moved.
    stop(meanwhile.process);
    let uri = ["--vault-cert-san-uri", SERVER_ID];
    let _after = fleet.access_point(&[&["--fleet-listen", &at], &uri[..]].concat());
    enrolled(&one, "one", 2);
    enrolled(&two, "two", 2);
    stop(one);
    let roots = ["--ca", &vault, "--once=enrolled"];
    let mut late = host.executor(address, &[&flags[..], &named, &roots].concat());
    assert_eq!(late.wait().code(), Some(1));
    late.wait_for(UNKNOWN_AUTHORITY);
    for agent in &mut agents {
        agent.stop();
    }
    let one = fleet.executor(address, "one", &known);
    enrolled(&one, "one", 1);
    assert_eq!(count(host), 2, "nobody became somebody else");
}
