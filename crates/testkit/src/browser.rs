//! A headless Chromium, driven by its ChromeDriver over WebDriver (W3C), with each browser in a folder of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::need;
use crate::process::{DEADLINE, Process, eventually};

/// Key that WebDriver names so.
pub const ENTER: &str = "\u{e007}";
/// Key that WebDriver names so.
pub const TAB: &str = "\u{e004}";
/// Key that WebDriver names so.
pub const ESCAPE: &str = "\u{e00c}";

/// A browser with one window. It is ended when dropped.
pub struct Browser {
    port: u16,
    session: String,
    _driver: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts one, or says in a line that the test is skipped; with `CI` set that is a failure instead.
    pub fn start() -> Option<Self> {
        if !(need("chromium") && need("chromedriver")) {
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("chromedriver");
        command
            .arg("--port=0")
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path());
        let driver = Process::start(&mut command);
        let line = driver.wait_for("started successfully on port ");
        let port = line
            .trim_end_matches('.')
            .rsplit(' ')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("no port in {line:?}"));
        let folder = profile.path().join("profile");
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
            "--hide-scrollbars",
            "--accept-lang=en-GB",
            &format!("--user-data-dir={}", folder.display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "binary": chromium(), "args": arguments },
        } } });
        let mut browser = Self {
            port,
            session: String::new(),
            _driver: driver,
            _profile: profile,
        };
        let opened = browser.call("POST", "/session", &wanted);
        let session = opened["sessionId"].as_str().expect("a session id");
        browser.session = format!("/session/{session}");
        Some(browser)
    }

    /// Opens `address` and waits until it is loaded.
    pub fn open(&self, address: &str) {
        self.post("/url", &json!({ "url": address }));
    }

    /// Where it is.
    pub fn address(&self) -> String {
        let address = self.call("GET", &format!("{}/url", self.session), &Value::Null);
        address.as_str().unwrap_or_default().to_owned()
    }

    /// What the function body `script` returns in the page.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until the function body `script` returns something else than null or false.
    pub fn wait(&self, script: &str) -> Value {
        eventually(script, || {
            let value = self.run(script);
            (!matches!(value, Value::Null | Value::Bool(false))).then_some(value)
        })
    }

    /// Clicks what `css` finds first, as a person would: it has to be visible and uncovered.
    pub fn click(&self, css: &str) {
        let path = format!("/element/{}/click", self.find(css));
        self.post(&path, &json!({}));
    }

    /// Types `text` into what `css` finds first.
    pub fn type_into(&self, css: &str, text: &str) {
        let path = format!("/element/{}/value", self.find(css));
        self.post(&path, &json!({ "text": text }));
    }

    /// Presses `keys` one after the other, wherever the focus is.
    pub fn press(&self, keys: &[&str]) {
        let steps = keys.iter().flat_map(|key| {
            [
                json!({ "type": "keyDown", "value": key }),
                json!({ "type": "keyUp", "value": key }),
            ]
        });
        let steps: Vec<Value> = steps.collect();
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keys", "actions": steps }] }),
        );
    }

    /// Shows pages as on a screen of so many CSS pixels, a hand-held one when `phone`.
    pub fn resize(&self, width: u32, height: u32, phone: bool) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone }),
        );
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", &body)
    }

    /// The cookies of the page, the ones among them that no script can read.
    pub fn cookies(&self) -> Vec<Value> {
        let cookies = self.call("GET", &format!("{}/cookie", self.session), &Value::Null);
        cookies.as_array().cloned().unwrap_or_default()
    }

    /// What the console was told since this was asked last: messages of `level` `SEVERE` are errors.
    pub fn console(&self) -> Vec<Value> {
        let lines = self.post("/se/log", &json!({ "type": "browser" }));
        lines.as_array().cloned().unwrap_or_default()
    }

    /// What the window shows, as PNG.
    pub fn picture(&self) -> Vec<u8> {
        let path = format!("{}/screenshot", self.session);
        let picture = self.call("GET", &path, &Value::Null);
        let picture = picture.as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD
            .decode(picture)
            .expect("base64")
    }

    fn find(&self, css: &str) -> String {
        let wanted = json!({ "using": "css selector", "value": css });
        let found = self.post("/element", &wanted);
        let id = found.as_object().and_then(|ids| ids.values().next());
        id.and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no id of {css}"))
            .to_owned()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    /// One request, and the `value` of its answer.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("ChromeDriver listens");
        stream
            .set_read_timeout(Some(DEADLINE + Duration::from_secs(5)))
            .expect("a timeout");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        // ChromeDriver keeps the connection open whatever it is asked.
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("it answers");
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().expect("a length");
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).expect("all of the answer");
        let mut answer: Value = serde_json::from_slice(&answer)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let value = answer["value"].take();
        assert!(
            value.get("error").is_none_or(Value::is_null),
            "{method} {path}: {value}"
        );
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium leaves with its session; what is left of it goes with the driver's process group.
        if !std::thread::panicking() && !self.session.is_empty() {
            self.call("DELETE", &self.session, &Value::Null);
        }
    }
}

fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("chromium"))
        .find(|file| file.is_file())
        .unwrap_or_default()
}
