//! The access point's accept loop: bounded, with a deadline for each handshake, one task for each peer (AP-16).
//!
//! A socket that sends nothing, or a ClientHello byte by byte, costs a task and no TLS state: the kernel holds what came
//! until a whole record is there. A place among the handshakes is taken only when a whole record is there, and who finds
//! none in a moment is reset before any cryptography: a server that queues handshakes for long finishes them for clients that
//! have given up, and never recovers. While places come free, the next connections wait in the kernel's queue, which is short, and
//! what does not fit into that costs nothing.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alert::{explain_accept, find_tls};
use crate::first_record::{First, first_record, look};
use crate::handshake::with_verdict;
use crate::slots::{Excess, Slot, Slots};
use crate::{PeerIdentity, ServerConfigs, ServerStream};

/// Admission control (AP-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Handshakes at a time; whoever comes above that is reset.
    pub max_handshakes: usize,
    /// From accept to the end of the handshake.
    pub timeout: Duration,
    /// Sockets that have not yet sent a whole ClientHello; above that the longest silent is reset.
    pub max_waiting: usize,
    /// How long the next connections wait for a place before they are reset, where places do not come free faster than
    /// they are wanted.
    pub patience: Duration,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            max_handshakes: 256,
            timeout: Duration::from_secs(10),
            max_waiting: 4096,
            patience: Duration::from_millis(100),
        }
    }
}

/// The places that all listeners of a process share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handshakes {
    timeout: Duration,
    patience: Duration,
    /// Also those that are told why they were refused.
    waiting: Slots,
    running: Slots,
}

impl Handshakes {
    /// Places within `limits`.
    pub fn new(limits: HandshakeLimits) -> Self {
        Self {
            timeout: limits.timeout,
            patience: limits.patience,
            waiting: Slots::new(limits.max_waiting.max(1), Duration::ZERO),
            running: Slots::new(limits.max_handshakes.max(1), STALLED),
        }
    }
}

/// A handshake this old makes room for another when all places are taken.
const STALLED: Duration = Duration::from_secs(2);
/// Who has said hello waits for a place this long at most. With longer waits handshakes end after their clients have given up.
const IN_LINE: Duration = Duration::from_millis(50);
/// How long a refused peer may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection whose peer was verified.
#[derive(Debug)]
pub struct Accepted {
    /// The encrypted stream.
    pub stream: ServerStream<TcpStream>,
    /// Who is at the other end.
    pub peer: PeerIdentity,
    /// Where the other end is.
    pub remote: SocketAddr,
    /// Generation of the identity that we presented.
    pub generation: u64,
}

/// A connection that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Why, with its code.
    pub explained: Explained,
    /// What the peer's certificate says, where one was presented and could be read.
    pub certificate: Option<CertificateFacts>,
}

/// Is told what the accept loop sees, on the connection's own task: count, do not wait.
pub trait AcceptObserver: Send + Sync + 'static {
    /// The operating system gave a connection.
    fn opened(&self, remote: SocketAddr) {
        let _ = remote;
    }
    /// A connection that was opened is done with, whatever became of it: exactly once for each.
    fn closed(&self, remote: SocketAddr) {
        let _ = remote;
    }
    /// The next connection waited this long for a place, found or not.
    fn waited(&self, time: Duration) {
        let _ = time;
    }
    /// A handshake has a place.
    fn started(&self) {}
    /// A handshake succeeded, this long after it began.
    fn completed(&self, took: Duration) {
        let _ = took;
    }
    /// A peer was reset for want of a place.
    fn shed(&self, remote: SocketAddr) {
        let _ = remote;
    }
    /// A peer did not finish in time.
    fn timed_out(&self, remote: SocketAddr) {
        let _ = remote;
    }
    /// A peer went away in the middle.
    fn abandoned(&self, remote: SocketAddr) {
        let _ = remote;
    }
    /// A peer was refused.
    fn rejected(&self, rejection: Rejection) {
        let _ = rejection;
    }
    /// The operating system gave no connection.
    fn accept_failed(&self, error: &io::Error) {
        let _ = error;
    }
}

/// A listening socket on `addr`; port 0 takes any free port. Must be called in a tokio runtime.
pub fn bind(addr: SocketAddr) -> Result<TcpListener, Explained> {
    let listen = || {
        let socket = match addr {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        defer(&socket);
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let explained =
            Explained::new(Code::Other, format!("cannot listen on {addr}")).cause(&error);
        match error.kind() {
            io::ErrorKind::AddrInUse => explained.hint(format!(
                "another process has the port: `ss -tlnp | grep :{}` names it",
                addr.port()
            )),
            io::ErrorKind::AddrNotAvailable => explained
                .hint("the address is not of this machine: `ip address` lists those that are"),
            io::ErrorKind::PermissionDenied => {
                explained.hint("ports below 1024 need CAP_NET_BIND_SERVICE; the usual port is 4433")
            }
            _ => explained.hint("check --fleet-listen"),
        }
    })
}

/// Connections that the kernel holds for us while we are busy. Few, so that none of them is old: in a storm of clients
/// that give up after a second, a queue of seconds is work for those who have left. Whoever finds no room is not answered,
/// and the peer's kernel asks again after a second.
const BACKLOG: u32 = 128;

/// Lets the kernel keep a connection until its peer has said something or leaves, or for a second: whoever leaves takes no
/// task, and a ClientHello is there when the connection is.
///
/// The kernel counts those that it keeps against the same queue, and answers with SYN cookies where that is full, which
/// keeps nothing. Without cookies the silent would lock out all others, so that it is asked for where there are any.
fn defer(socket: &TcpSocket) {
    let cookies = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies");
    if cookies.is_ok_and(|cookies| cookies.trim() != "0")
        && let Err(error) = setsockopt(socket, DeferAccept, &1)
    {
        tracing::debug!(%error, "connections are accepted before their peers speak");
    }
}

/// `TCP_DEFER_ACCEPT` of tcp(7), in seconds.
#[derive(Clone, Copy, Debug)]
struct DeferAccept;

nix::setsockopt_impl!(
    DeferAccept,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

/// What each place that comes free adds to the patience with the next connections: the last of the queue waits half a
/// second in all, or it is reset.
const PATIENCE_FOR_EACH: Duration = Duration::from_millis(4);

/// Accepts connections on `listener` and runs `on_connection` for each whose peer was verified.
///
/// Each handshake takes the configuration that is current when it begins, its first record being there. When `stop`
/// resolves, the listener and every handshake end; the future ends with the last connection. Dropping it
/// cuts all connections.
pub async fn serve<F, Fut>(
    listener: TcpListener,
    configs: ServerConfigs,
    handshakes: Handshakes,
    observer: Arc<dyn AcceptObserver>,
    on_connection: F,
    stop: impl Future<Output = ()> + Send,
) where
    F: Fn(Accepted) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut stop = pin!(stop);
    let (stopping, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut failures = AcceptFailures::default();
    let mut excess = Excess::new(handshakes.patience, PATIENCE_FOR_EACH);
    'accepting: loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = tasks.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok((stream, remote)) => (stream, without_mapping(remote)),
            Err(error) => {
                observer.accept_failed(&error);
                if failures.exhausts_resources(&error) {
                    // Peers that send nothing hold the descriptors that others need.
                    handshakes.waiting.cut_oldest(CUT_WHEN_EXHAUSTED);
                    tokio::select! {
                        () = &mut stop => break,
                        () = tokio::time::sleep(failures.pause()) => {}
                    }
                }
                continue;
            }
        };
        failures.over();
        let open = Open::new(observer.clone(), remote);
        let room = {
            let mut room = pin!(excess.room(&handshakes.running));
            loop {
                tokio::select! {
                    biased;
                    () = &mut stop => break 'accepting,
                    Some(ended) = tasks.join_next() => report_panic(ended),
                    room = &mut room => break room,
                }
            }
        };
        if !room.waited.is_zero() {
            observer.waited(room.waited);
        }
        if !room.found {
            // A retry storm sends ten thousands of these a second: no task, no read.
            reset(&stream);
            observer.shed(remote);
            continue;
        }
        // Taken here, so that no more are accepted than there are places for.
        let place = match look(&stream) {
            Ok(First::Record) => match handshakes.running.take() {
                Some(place) => Some(place),
                // Somebody else was faster.
                None => {
                    reset(&stream);
                    observer.shed(remote);
                    continue;
                }
            },
            Ok(First::Other | First::Part) => None,
            // Gave up before we came to it.
            Ok(First::End) | Err(_) => {
                observer.abandoned(remote);
                continue;
            }
        };
        let task = Handshake {
            remote,
            deadline: Instant::now() + handshakes.timeout,
            configs: configs.clone(),
            handshakes: handshakes.clone(),
            observer: observer.clone(),
        };
        let on_connection = on_connection.clone();
        let mut stopped = stopped.clone();
        tasks.spawn(async move {
            let _open = open;
            // Boxed, so that a connection carries neither the memory of its handshake nor room for it.
            let handshake = Box::pin(async move {
                let accepted = task.run(stream, place).await?;
                // As is what follows: handed on, it would take its place more than once.
                Some(Box::pin(on_connection(accepted)))
            });
            let connection = tokio::select! {
                connection = handshake => connection,
                _ = stopped.changed() => None,
            };
            drop(stopped);
            if let Some(connection) = connection {
                connection.await;
            }
        });
    }
    drop(listener);
    let _ = stopping.send(true);
    while let Some(ended) = tasks.join_next().await {
        report_panic(ended);
    }
}

/// A listener on `[::]` sees IPv4 peers as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2). People and logs know them by their
/// IPv4 address.
fn without_mapping(remote: SocketAddr) -> SocketAddr {
    match remote.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, remote.port()).into(),
        // With its scope.
        IpAddr::V6(_) => remote,
    }
}

/// Tells of a connection's beginning and, when dropped, of its end: also when its task panics or is cut.
struct Open {
    observer: Arc<dyn AcceptObserver>,
    remote: SocketAddr,
}

impl Open {
    fn new(observer: Arc<dyn AcceptObserver>, remote: SocketAddr) -> Self {
        observer.opened(remote);
        Self { observer, remote }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.observer.closed(self.remote);
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

/// How many silent sockets make room when the process is out of descriptors.
const CUT_WHEN_EXHAUSTED: usize = 64;

#[derive(Default)]
struct AcceptFailures {
    in_a_row: u32,
    logged: Option<Instant>,
}

impl AcceptFailures {
    /// Whether to pause. A connection that was gone before we took it is no failure.
    fn exhausts_resources(&mut self, error: &io::Error) -> bool {
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        ) {
            return false;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let due = self
            .logged
            .is_none_or(|logged| logged.elapsed() >= Duration::from_secs(10));
        if due {
            self.logged = Some(Instant::now());
            tracing::error!(
                %error,
                "cannot accept connections; raise the limit of open files (LimitNOFILE) if it says too many"
            );
        }
        true
    }

    /// 20 ms, doubling to 100 ms.
    fn pause(&self) -> Duration {
        let doublings = self.in_a_row.saturating_sub(1).min(3);
        Duration::from_millis(100.min(20 << doublings))
    }

    fn over(&mut self) {
        self.in_a_row = 0;
    }
}

/// One peer on its way to being accepted.
struct Handshake {
    remote: SocketAddr,
    deadline: Instant,
    configs: ServerConfigs,
    handshakes: Handshakes,
    observer: Arc<dyn AcceptObserver>,
}

impl Handshake {
    async fn run(self, stream: TcpStream, place: Option<Slot>) -> Option<Accepted> {
        let _ = stream.set_nodelay(true);
        let place = match place {
            Some(place) => place,
            None => self.first_record(&stream).await?,
        };
        // Boxed, so that neither a peer that sends no ClientHello nor a connection after its handshake carries the
        // memory of a handshake.
        Box::pin(self.handshake(stream, place)).await
    }

    async fn handshake(self, stream: TcpStream, mut slot: Slot) -> Option<Accepted> {
        self.observer.started();
        let started = Instant::now();
        let tls = self.configs.current();
        // Boxed, as what follows: a future that is handed on takes its place more than once.
        let handshake = Box::pin(ServerStream::accept(stream, tls.config().clone()));
        let handshake = with_verdict(handshake);
        let (outcome, verdict) = tokio::select! {
            outcome = handshake => outcome,
            () = slot.cut() => {
                self.observer.shed(self.remote);
                return None;
            }
            () = tokio::time::sleep_until(self.deadline) => {
                self.observer.timed_out(self.remote);
                return None;
            }
        };
        drop(slot);
        match (outcome, verdict) {
            (Ok(stream), Some(Ok(peer))) => {
                self.observer.completed(started.elapsed());
                Some(Accepted {
                    stream,
                    peer,
                    remote: self.remote,
                    generation: tls.generation(),
                })
            }
            // Client certificates are mandatory, so a handshake without a verdict cannot succeed.
            (Ok(_), _) => None,
            (Err((_, stream)), Some(Err(refused))) => {
                self.reject(refused.explained().clone(), refused.certificate().cloned());
                Box::pin(self.last_words(stream)).await;
                None
            }
            (Err((error, stream)), verdict) => {
                let presented = verdict.and_then(Result::ok);
                if self.failed(&error, presented.map(|peer| peer.leaf().clone())) {
                    Box::pin(self.last_words(stream)).await;
                }
                None
            }
        }
    }

    /// Waits until there is something to do for TLS, and takes a place for it.
    async fn first_record(&self, stream: &TcpStream) -> Option<Slot> {
        let Some(mut slot) = self.handshakes.waiting.take() else {
            reset(stream);
            self.observer.shed(self.remote);
            return None;
        };
        let arrived = tokio::select! {
            arrived = first_record(stream) => arrived,
            () = slot.cut() => {
                reset(stream);
                self.observer.shed(self.remote);
                return None;
            }
            () = tokio::time::sleep_until(self.deadline) => {
                self.observer.timed_out(self.remote);
                return None;
            }
        };
        if !matches!(arrived, Ok(First::Record | First::Part | First::Other)) {
            self.observer.abandoned(self.remote);
            return None;
        }
        // Before those who come later: the accept loop takes none while all places are taken.
        let place = self.handshakes.running.take_within(IN_LINE).await;
        if place.is_none() {
            reset(stream);
            self.observer.shed(self.remote);
        }
        place
    }

    /// Tells the observer. `true` when the peer is still there and was sent an alert.
    fn failed(&self, error: &io::Error, certificate: Option<CertificateFacts>) -> bool {
        match find_tls(error) {
            Some(tls) => {
                self.reject(explain_accept(tls), certificate);
                true
            }
            None => {
                self.observer.abandoned(self.remote);
                false
            }
        }
    }

    fn reject(&self, explained: Explained, certificate: Option<CertificateFacts>) {
        self.observer.rejected(Rejection {
            remote: self.remote,
            explained,
            certificate,
        });
    }

    /// Lets the alert arrive: closing a socket with unread bytes makes the kernel send a reset, which
    /// may overtake the alert and leave the peer without the reason.
    async fn last_words(&self, mut stream: TcpStream) {
        let Some(mut slot) = self.handshakes.waiting.take() else {
            return;
        };
        let drain = async {
            stream.shutdown().await?;
            let mut scrap = [0; 1024];
            let mut left = MAX_SCRAP;
            while left > 0 {
                match stream.read(&mut scrap).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        tokio::select! {
            _ = drain => {}
            () = slot.cut() => {}
            () = tokio::time::sleep(LAST_WORDS) => {}
        }
    }
}

/// What a refused peer may still send before it is cut.
const MAX_SCRAP: usize = 64 * 1024;

/// Makes the kernel answer with a reset when the socket is dropped: no state is left behind.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_known_by_the_address_that_they_have() {
        for (seen, told) in [
            ("[::ffff:192.0.2.7]:5000", "192.0.2.7:5000"),
            ("192.0.2.7:5000", "192.0.2.7:5000"),
            ("[2001:db8::7]:5000", "[2001:db8::7]:5000"),
            ("[fe80::7%3]:5000", "[fe80::7%3]:5000"),
        ] {
            let seen = without_mapping(seen.parse().unwrap());
            assert_eq!(seen, told.parse().unwrap());
        }
    }
}
