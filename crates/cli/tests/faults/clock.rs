//! A wall clock that is moved by hours.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use ah_testkit::process::{AccessPoint, Host, Process, access_point_args, eventually};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::site::need;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Lets `command` believe the wall clock that `file` says; what measures time goes on as it is.
fn fake<'a>(command: &'a mut Command, file: &Path) -> &'a mut Command {
    command
        .env("LD_PRELOAD", LIBRARY)
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_CACHE_DURATION", "1")
}

struct Clocked {
    host: Host,
}

impl Clocked {
    fn set(&self, offset: &str) {
        // One rename: a reader must not find half of it.
        std::fs::write(self.host.path("clock.new"), format!("{offset}\n")).unwrap();
        std::fs::rename(self.host.path("clock.new"), self.host.path("clock")).unwrap();
    }

    fn executor(&self, access_point: &AccessPoint, name: &str) -> Process {
        let server = format!("https://{}", access_point.address);
        let args = [
            "agent",
            "enroll",
            "--remote-server",
            &server,
            "--name",
            name,
        ];
        Process::start(fake(&mut self.host.command(args), &self.host.path("clock")))
    }

    fn status(&self, name: &str) -> Value {
        let shown = self.host.run(["agent", "status", "--json", "--name", name]);
        serde_json::from_str(&shown.stdout).unwrap_or(Value::Null)
    }

    /// Waits until `name` is enrolled with a certificate that holds `hours` from the real now.
    fn enrolled_at(&self, name: &str, hours: i32) {
        let now = SystemTime::now();
        let there = if hours < 0 {
            now - Duration::from_secs(hours.unsigned_abs().into()) * 3600
        } else {
            now + Duration::from_secs(hours.unsigned_abs().into()) * 3600
        };
        let there = OffsetDateTime::from(there);
        eventually("enrolled with a certificate of the moved clock", || {
            let status = self.status(name);
            let end = status["certificate"]["leaf"]["not_after"].as_str()?;
            let end = OffsetDateTime::parse(end, &Rfc3339).ok()?;
            let left = end - there;
            let holds = left > time::Duration::ZERO && left <= time::Duration::hours(1);
            (holds && status["enrolled"] == true).then_some(())
        });
    }
}

// DV-1, EN-13: dev certificates live one hour, so that every jump makes the ones in use wrong.
#[test]
fn a_clock_moved_by_hours_either_way_is_survived() {
    if !need(LIBRARY) {
        return;
    }
    let machine = Clocked {
        host: Host::new(env!("CARGO_BIN_EXE_ah")),
    };
    machine.set("+0h");
    let more = ["--heartbeat-interval", "1s"];
    let mut command = machine.host.command(access_point_args(&more));
    let mut access_point =
        AccessPoint::start(fake(&mut command, &machine.host.path("clock")), &more);
    let worker = machine.executor(&access_point, "worker");
    worker.wait_for("enrolled");
    machine.enrolled_at("worker", 0);

    machine.set("+5h");
    machine.enrolled_at("worker", 5);
    machine.set("-5h");
    machine.enrolled_at("worker", -5);
    let newcomer = machine.executor(&access_point, "newcomer");
    newcomer.wait_for("enrolled");
    machine.enrolled_at("newcomer", -5);

    assert!(access_point.process.is_running());
    for process in [&access_point.process, &worker, &newcomer] {
        assert_eq!(process.count("panicked"), 0, "{:?}", process.lines());
    }
}
