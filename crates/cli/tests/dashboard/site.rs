//! An access point with a dashboard, and executors, as real processes.

use std::fs;
use std::path::PathBuf;

use ah_fleet::access_point::path_segment;
use ah_testkit::ca::{LeafFiles, TestCa};
use ah_testkit::process::{AccessPoint, Host, Process};
use serde_json::Value;

pub(crate) const TOKEN: &str = "correct-horse-battery-staple";

pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) ca: TestCa,
    pub(crate) access_point: AccessPoint,
    root: PathBuf,
}

pub(crate) fn id(number: u32) -> String {
    format!("spiffe://example.org/ah/agent/{number}")
}

/// The path of an executor's page.
pub(crate) fn address_of(number: u32) -> String {
    format!("/executors/{}", path_segment(&id(number)))
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// After `before`, on a machine where nothing runs yet.
    pub(crate) fn with(before: impl FnOnce(&Host)) -> Self {
        let host = Host::new(env!("CARGO_BIN_EXE_ah"));
        before(&host);
        let ca = TestCa::new("example.org");
        fs::write(host.path("token"), TOKEN).unwrap();
        let leaf = ca.leaf().spiffe("spiffe://example.org/ah/serve");
        let leaf = leaf.ip("127.0.0.1").issue();
        let files = leaf.write(&host.path(""), "server");
        let root = ca.write(&host.path(""), "root");
        let access_point = host.access_point(&[
            "--server-identity",
            "files",
            "--cert",
            files.cert.to_str().unwrap(),
            "--key",
            files.key.to_str().unwrap(),
            "--ca",
            root.to_str().unwrap(),
            "--executor-san-uri-prefix",
            "spiffe://example.org/ah/agent",
            "--http-listen",
            "127.0.0.1:0",
            "--http-token-file",
            "token",
        ]);
        Self {
            host,
            ca,
            access_point,
            root,
        }
    }

    /// Where the dashboard is.
    pub(crate) fn dashboard(&self, path: &str) -> String {
        format!("http://{}{path}", self.access_point.http.unwrap())
    }

    /// An executor that has enrolled.
    pub(crate) fn executor(&self, number: u32, name: &str, args: &[&str]) -> Process {
        let process = self.start_executor(number, name, args);
        process.wait_for("enrolled");
        process
    }

    pub(crate) fn start_executor(&self, number: u32, name: &str, args: &[&str]) -> Process {
        let leaf = self.ca.leaf().spiffe(&id(number)).issue();
        let files = leaf.write(&self.host.path(""), &format!("executor-{number}"));
        self.start_with(&files, name, args)
    }

    pub(crate) fn start_with(&self, files: &LeafFiles, name: &str, args: &[&str]) -> Process {
        let mut all = vec![
            "--identity",
            "files",
            "--cert",
            files.cert.to_str().unwrap(),
            "--key",
            files.key.to_str().unwrap(),
            "--ca",
            self.root.to_str().unwrap(),
            "--name",
            name,
        ];
        all.extend(args);
        self.host.executor(self.access_point.address, &all)
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let done = self.host.run(args);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }
}
