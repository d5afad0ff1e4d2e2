//! Identities from commands that change while executors are enrolled.

use std::time::{Duration, Instant};

use ah_testkit::ca::TestLeaf;
use ah_testkit::process::{AccessPoint, access_point_args};
use nix::sys::signal::Signal;

use crate::crowd::{Crowd, fixed_configs};
use crate::site::{Site, about, alone, id};
use crate::storm::{Storm, serial};

/// A command that prints `leaf`, its key and its authority, from now on.
fn prints(site: &Site, name: &str, leaf: &TestLeaf) -> String {
    let files = leaf.write(&site.host.path(""), name);
    let ca = site.host.path("ca.pem");
    let paths = [files.cert, files.key, ca].map(|path| path.display().to_string());
    format!("cat {}", paths.join(" "))
}

// EN-14, AP-16, EX-1: as with files, an identity that a command replaces under load costs no handshake and no
// session, on either side.
#[test]
fn en_14_an_identity_printed_anew_under_load_fails_no_handshake_and_drops_no_session() {
    const SESSIONS: usize = 300;
    /// Two programs are started in between, on cores that others use too.
    const SLACK: Duration = Duration::from_secs(1);
    let _alone = alone();
    let site = Site::new();
    let (old, new) = (site.server_leaf(), site.server_leaf());
    let command = prints(&site, "printed", &old);
    let mut args = vec!["--server-identity", "exec", "--exec-command", &command];
    args.extend(["--http-listen", "127.0.0.1:0", "--max-handshakes", "1024"]);
    args.extend(["--executor-san-uri-prefix", "spiffe://example.org/ah/agent"]);
    let mut start = site.host.command(access_point_args(&args));
    let access_point = AccessPoint::start(&mut start, &args);
    let http = access_point.http.unwrap();
    let crowd = Crowd::enrolled(
        &site,
        access_point.address,
        SESSIONS,
        Duration::from_secs(120),
    );
    let number = SESSIONS;
    let command = prints(&site, "worker", &site.executor_leaf(number));
    let flags = ["--identity", "exec", "--exec-command", &command];
    let named = ["--name", "worker"];
    let worker = &[&flags[..], &named].concat();
    let worker = site.host.executor(access_point.address, worker);
    worker.wait_for("enrolled");

    let configs = fixed_configs(&site.executor_leaf(SESSIONS + 1), &site.ca);
    let storm = Storm::begin(&crowd.runtime, configs, access_point.address.port());
    storm.wait(200);
    prints(&site, "printed", &new);
    let swapped = Instant::now();
    access_point.process.signal(Signal::SIGHUP);
    access_point.process.wait_for("certificate rotated");
    for round in 1..=3 {
        let next = site.executor_leaf(number);
        prints(&site, "worker", &next);
        worker.signal(Signal::SIGHUP);
        let moved = worker.wait_for_nth("enrollment moved", round);
        assert!(moved.contains(&serial(&next)), "{moved}");
    }
    storm.wait(400);
    storm.end(&crowd.runtime, (&old, &new), swapped, SLACK);
    crowd.undisturbed(http, SESSIONS + 1);
    assert_eq!(worker.count("retrying in"), 0);
    let lines = site.audit();
    assert_eq!(about(&lines, "rotated", &id(number)).len(), 3);
    assert!(about(&lines, "disconnected", &id(number)).is_empty());
}
