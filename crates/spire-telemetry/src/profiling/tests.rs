use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::GzDecoder;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::format::Profile;
use super::*;
use crate::http::Http;

/// The profiler is the process's.
static PROFILER: Mutex<()> = Mutex::const_new(());

/// Uses CPU time until it is dropped.
struct Busy(std::sync::Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let end = std::sync::Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let name = "busy".to_owned();
        let thread = std::thread::Builder::new().name(name);
        thread.spawn(move || spend_cpu_time(&told)).unwrap();
        Self(end)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[inline(never)]
fn spend_cpu_time(end: &AtomicBool) -> u64 {
    let mut number = 1u64;
    while !end.load(Ordering::Relaxed) {
        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005));
    }
    number
}

fn read(gzipped: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(gzipped).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

impl Profile {
    fn text(&self, at: i64) -> &str {
        &self.texts[usize::try_from(at).unwrap()]
    }

    /// Functions of the samples of that thread, the innermost of each first.
    fn stacks(&self, thread: &str) -> Vec<Vec<&str>> {
        let of_it = self.samples.iter().filter(|sample| {
            let label = &sample.labels[0];
            self.text(label.key) == "thread" && self.text(label.text) == thread
        });
        let function = |id: u64| {
            let function = self.functions.iter().find(|it| it.id == id).unwrap();
            self.text(function.name)
        };
        let location = |id: &u64| {
            let location = self.locations.iter().find(|it| it.id == *id).unwrap();
            location.lines.iter().map(|line| function(line.function))
        };
        let stack = |ids: &Vec<u64>| ids.iter().flat_map(location).collect();
        of_it.map(|sample| stack(&sample.locations)).collect()
    }
}

/// A listener at a free port.
async fn endpoint() -> (std::net::SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let http = Http {
        listener,
        tls: None,
        most_connections: 4,
    };
    tokio::spawn(endpoint::serve_on(http, stop.clone()));
    (address, stop)
}

/// Status line and headers, and the body.
async fn get(address: std::net::SocketAddr, path: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let end = all.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
    let body = all.split_off(end + 4);
    (String::from_utf8(all).unwrap(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_names_who_spends_cpu_time() {
    // Inventory §10: net/http/pprof
    let _one = PROFILER.lock().await;
    let (address, stop) = endpoint().await;
    let _busy = Busy::start();
    // A machine under load may give the thread no time in one second.
    let profile = loop {
        let (head, body) = get(address, "/debug/pprof/profile?seconds=1").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: application/octet-stream\r\n"));
        let profile = read(&body);
        if !profile.stacks("busy").is_empty() {
            break profile;
        }
    };
    let stacks = profile.stacks("busy");
    let named = |stack: &&Vec<&str>| stack.iter().any(|it| it.contains("spend_cpu_time"));
    assert!(stacks.iter().any(|stack| named(&stack)), "{stacks:?}");
    let types = profile.sample_types.iter();
    let types = types.map(|it| (profile.text(it.kind), profile.text(it.unit)));
    let expected = [("samples", "count"), ("cpu", "nanoseconds")];
    assert_eq!(types.collect::<Vec<_>>(), expected);
    assert_eq!(profile.period, 10_000_000);
    let values = &profile.samples[0].values;
    assert_eq!(values[1], values[0] * profile.period);
    assert!(profile.duration >= 900_000_000, "{}", profile.duration);
    assert_eq!(profile.texts[0], "");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_profiler_and_it_is_given_back() {
    // Inventory §10: net/http/pprof
    let _one = PROFILER.lock().await;
    let (address, stop) = endpoint().await;
    let held = cpu::Cpu::start().unwrap();
    let (head, body) = get(address, "/debug/pprof/profile?seconds=1").await;
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    let why = b"Could not enable CPU profiling: cpu profiling already in use\n";
    assert_eq!(body, why);
    drop(held);
    let (head, _) = get(address, "/debug/pprof/profile?seconds=1").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stop.cancel();
}

#[tokio::test]
async fn what_is_not_there_says_why() {
    // Inventory §10: net/http/pprof
    let (address, stop) = endpoint().await;
    for (path, status, text) in [
        (
            "/debug/pprof/heap",
            404,
            "heap: allocations are not sampled by this program",
        ),
        (
            "/debug/pprof/goroutine?debug=2",
            404,
            "goroutine: there are no goroutines",
        ),
        ("/debug/pprof/other", 404, "Unknown profile"),
        ("/", 404, "404 page not found"),
        ("/debug/pprof/", 200, "profile  CPU time"),
        (
            "/debug/pprof/profile?seconds=1000",
            400,
            "a profile is of 240 seconds at most",
        ),
    ] {
        let (head, body) = get(address, path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains(text), "{path}: {body}");
    }
    let (head, _) = get(address, "/debug/pprof").await;
    assert!(head.contains("location: /debug/pprof/\r\n"), "{head}");
    let (_, body) = get(address, "/debug/pprof/cmdline").await;
    let program = std::env::args().next().unwrap();
    assert!(body.starts_with(program.as_bytes()));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_under_upstreams_names() {
    // Inventory §5.1: profiling_freq, profiling_names
    let _one = PROFILER.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join(".profiles");
    let stop = CancellationToken::new();
    let (to, end) = (folder.clone(), stop.clone());
    let writing = tokio::spawn(async move { files::write_to(&to, 1, Program::Server, end).await });
    let finished = || {
        let found = std::fs::read_dir(&folder)
            .ok()?
            .map(|it| it.unwrap().path());
        let mut found = found.filter(|it| it.extension().is_some_and(|it| it == "gz"));
        found.next()
    };
    let file = loop {
        match finished() {
            Some(file) => break file,
            None => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    stop.cancel();
    writing.await.unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    // 2026-11-22_142509_server_cpu.pb.gz
    let shape = name.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!(shape, "0000-00-00_000000_server_cpu.pb.gz");
    let profile = read(&std::fs::read(file).unwrap());
    assert_eq!(profile.period, 10_000_000);
}
