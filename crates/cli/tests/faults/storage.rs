//! A store and an audit log that cannot be written for a while.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use ah_testkit::disk::fill;
use ah_testkit::process::{Process, eventually};

use crate::site::{Site, alone, get, id, metric, need, need_root, verify};

/// While the store is out: who is enrolled stays, newcomers come, and everybody can see what is wrong.
fn serves_without_its_store(site: &Site, address: SocketAddr, http: SocketAddr, old: &Process) {
    let newcomer = site.executor(address, "newcomer", &site.executor_leaf(2));
    newcomer.wait_for("enrolled");
    let reasons = eventually("/readyz says why", || {
        let (code, body) = get(http, "/readyz");
        (code == 503 && body.contains("store: ")).then_some(body)
    });
    assert!(reasons.contains("changes wait"), "{reasons}");
    assert_eq!(metric(http, "ah_store_up") as u64, 0);
    assert!(metric(http, "ah_store_pending") >= 1.0);
    let third = site.executor(address, "third", &site.executor_leaf(3));
    third.wait_for("enrolled");
    let live = site.listed(&["--live"]);
    assert_eq!(live.len(), 3, "{live:?}");
    assert_eq!(old.count("retrying in"), 0);
    assert_eq!(site.status("old")["enrolled"], true);
}

fn caught_up(site: &Site, http: SocketAddr) {
    eventually("/readyz is content", || {
        (get(http, "/readyz").0 == 200).then_some(())
    });
    eventually("the store has caught up", || {
        let done = metric(http, "ah_store_pending") == 0.0 && metric(http, "ah_store_up") == 1.0;
        done.then_some(())
    });
    for number in 1..=3 {
        let shown = site.fleet(&["show", &id(number), "--json"]);
        let view: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert!(view["first_enrolled"].is_string(), "durable: {view}");
    }
}

// RG-1, AP-11, AP-12, AU-2
#[test]
fn a_full_disk_stops_no_executor_and_the_registry_catches_up() {
    if !need_root() || !need("unshare") {
        return;
    }
    let _alone = alone();
    let site = Site::new();
    let state = site.host.state().display().to_string();
    // A small disk that nobody else sees, and that goes with the process.
    let mount = format!("mount -t tmpfs -o size=2m tmpfs '{state}' && exec \"$0\" \"$@\"");
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount];
    let access_point = site.start_under(&wrapper, &["--heartbeat-interval", "1s"]);
    let (address, http) = (access_point.address, access_point.http.unwrap());
    let old = site.executor(address, "old", &site.executor_leaf(1));
    old.wait_for("enrolled");
    eventually("the store has the first", || {
        (metric(http, "ah_store_pending") == 0.0).then_some(())
    });
    let disk = PathBuf::from(format!("/proc/{}/root{state}", access_point.process.pid()));
    let filler = fill(&disk);
    serves_without_its_store(&site, address, http, &old);
    // Its last page may have room for a few more lines: noise fills that.
    eventually("the audit log says so too", || {
        let mut noise = TcpStream::connect(address).unwrap();
        noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (_, body) = get(http, "/readyz");
        body.contains("audit: ").then_some(())
    });
    std::fs::remove_file(filler).unwrap();
    caught_up(&site, http);
    let log = disk.join("audit.jsonl");
    for number in 1..=3 {
        eventually("every enrollment is in the audit log", || {
            let lines = crate::site::lines_of(&log);
            let found = !crate::site::about(&lines, "enrolled", &id(number)).is_empty();
            found.then_some(())
        });
    }
    verify(&site.host, &log);
}

// RG-1, AP-11
#[test]
fn a_locked_database_stops_no_executor_and_the_registry_catches_up() {
    if !need("python3") {
        return;
    }
    let _alone = alone();
    let site = Site::new();
    let mut access_point = site.start(&["--heartbeat-interval", "1s"]);
    let (address, http) = (access_point.address, access_point.http.unwrap());
    let old = site.executor(address, "old", &site.executor_leaf(1));
    old.wait_for("enrolled");
    let database = site.host.state().join("access-point.db");
    let script = "import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
time.sleep(600)";
    let mut holder = Process::start(Command::new("python3").args(["-c", script]).arg(&database));
    holder.wait_for("locked");
    serves_without_its_store(&site, address, http, &old);
    holder.kill();
    caught_up(&site, http);
    // Durable is durable.
    access_point.process.kill();
    let at = address.to_string();
    let _access_point = site.start(&["--fleet-listen", &at]);
    assert_eq!(site.listed(&[]).len(), 3);
}
