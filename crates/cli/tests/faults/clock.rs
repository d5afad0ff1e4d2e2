//! A wall clock that is moved by hours.

use std::time::{Duration, SystemTime};

use ah_identity_provider::{CertificateFacts, pem};
use ah_testkit::clock::FalseClock;
use ah_testkit::process::{AccessPoint, DEADLINE, Host, Process, access_point_args, eventually};
use serde_json::Value;

struct Clocked {
    host: Host,
    clock: FalseClock,
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
        Process::start(self.clock.set(&mut self.host.command(args)))
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
        let hour = Duration::from_secs(3_600);
        eventually("enrolled with a certificate of the moved clock", || {
            let status = self.status(name);
            let shown = pem::certificates(status["certificate"]["pem"].as_str()?.as_bytes());
            let end = CertificateFacts::from_der(&shown.ok()?[0]).ok()?.not_after;
            let left = end.duration_since(there).unwrap_or_default();
            let holds = left > Duration::ZERO && left <= hour + DEADLINE;
            (holds && status["enrolled"] == true).then_some(())
        });
    }
}

// DV-1, EN-13: dev certificates live one hour, so that every jump makes the ones in use wrong.
#[test]
fn a_clock_moved_by_hours_either_way_is_survived() {
    let host = Host::new(env!("CARGO_BIN_EXE_ah"));
    let Some(clock) = FalseClock::following(&host.path("clock")) else {
        return;
    };
    let machine = Clocked { host, clock };
    machine.set("+0h");
    let more = ["--heartbeat-interval", "1s"];
    let mut command = machine.host.command(access_point_args(&more));
    let mut access_point = AccessPoint::start(machine.clock.set(&mut command), &more);
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
