//! A proxy before an OpenBao server that spoils what passes through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It passes.
    None,
    /// The proxy answers with this status and body, and the server hears nothing.
    Status(u16, String),
    /// The server's answer is cut in the middle.
    Truncated,
    /// The server's answer is kept until [`Proxy::set`] says otherwise.
    Held,
    /// The connection is closed without an answer, and the server hears nothing.
    Closed,
    /// A further header line for the server, such as `X-Vault-No-Request-Forwarding: true`.
    Header(String),
}

/// A plain HTTP proxy on loopback, one request a connection.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    ended: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    fault: Fault,
    only: String,
    seen: Vec<String>,
    at_once: usize,
    most_at_once: usize,
}

impl Proxy {
    /// A proxy before the server at `url`.
    pub fn before(url: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let upstream = url.trim_start_matches("http://").to_owned();
        let shared = Arc::new(Shared {
            upstream,
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                fault: Fault::None,
                only: String::new(),
                seen: Vec::new(),
                at_once: 0,
                most_at_once: 0,
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A peer that goes away in the middle is no fault of the proxy's.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Self { address, shared }
    }

    /// For `--vault-addr`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, what to do with requests whose path contains `only`; others pass.
    pub fn set(&self, fault: Fault, only: &str) {
        let mut state = self.shared.locked();
        state.fault = fault;
        only.clone_into(&mut state.only);
        self.shared.changed.notify_all();
    }

    /// `METHOD /path` of each request so far.
    pub fn seen(&self) -> Vec<String> {
        self.shared.locked().seen.clone()
    }

    /// How many requests had `text` in their path so far.
    pub fn count(&self, text: &str) -> usize {
        let state = self.shared.locked();
        state.seen.iter().filter(|seen| seen.contains(text)).count()
    }

    /// Waits until `count` requests with `text` in their path have come.
    pub fn wait_for(&self, text: &str, count: usize) {
        let came = |state: &mut State| {
            let seen = state.seen.iter().filter(|seen| seen.contains(text));
            seen.count() < count
        };
        let locked = self.shared.locked();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(locked, crate::process::DEADLINE, came);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(
            !timeout.timed_out(),
            "no {count} requests for {text}: {:?}",
            state.seen
        );
    }

    /// The most requests that were here at one moment.
    pub fn most_at_once(&self) -> usize {
        self.shared.locked().most_at_once
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.set(Fault::Closed, "");
        // Wakes the accepting thread.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = Vec::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.trim().is_empty() {
                break;
            }
            if !lower.starts_with("connection:") {
                head.push(line);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let asked = head.first().map(String::as_str).unwrap_or_default();
        let asked = asked.rsplit_once(' ').unwrap_or_default().0.to_owned();
        let fault = self.arrived(&asked);
        let answer = self.answer(head, &body, fault);
        // Before the answer is sent: the next request may be here before this thread goes on.
        self.locked().at_once -= 1;
        (&client).write_all(&answer?)?;
        client.shutdown(Shutdown::Both)
    }

    fn arrived(&self, asked: &str) -> Fault {
        let mut state = self.locked();
        state.seen.push(asked.to_owned());
        state.at_once += 1;
        state.most_at_once = state.most_at_once.max(state.at_once);
        self.changed.notify_all();
        if asked.contains(&state.only) {
            state.fault.clone()
        } else {
            Fault::None
        }
    }

    fn answer(&self, mut head: Vec<String>, body: &[u8], fault: Fault) -> std::io::Result<Vec<u8>> {
        match &fault {
            Fault::Closed => return Ok(Vec::new()),
            Fault::Status(status, text) => {
                let answer = format!(
                    "HTTP/1.1 {status} Spoiled\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
                return Ok(answer.into_bytes());
            }
            Fault::Header(line) => head.push(format!("{line}\r\n")),
            Fault::None | Fault::Truncated | Fault::Held => {}
        }
        let mut server = TcpStream::connect(&self.upstream)?;
        server.write_all(head.concat().as_bytes())?;
        server.write_all(b"Connection: close\r\n\r\n")?;
        server.write_all(body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        if fault == Fault::Held {
            let held = |state: &mut State| state.fault == Fault::Held;
            let _state = self.changed.wait_while(self.locked(), held);
        }
        if fault == Fault::Truncated {
            answer.truncate(answer.len() - answer.len() / 3);
        }
        Ok(answer)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
