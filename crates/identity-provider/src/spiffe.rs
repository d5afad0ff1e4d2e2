//! The `spiffe` provider: the X509-SVID and the trust bundles that a SPIFFE Workload API streams (SP-1, SP-2).
//!
//! Three things are kept apart: `stream` is one connection and its messages, `set` makes an identity of one
//! message, and the provider here decides when to connect and which message counts. Each message is the full
//! set, so that the newest is the only one that matters; a storm of them costs one identity per [`STORM_GAP`].

use std::future;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Explained, Identity, Provider, ProviderError, ProviderKind};

pub use endpoint::{Endpoint, WrongEndpoint};
pub use set::Choice;
use set::{SvidSet, Taken};
use stream::{Fault, Opened, SvidStream};

mod endpoint;
mod fault;
mod set;
mod stream;

/// Where the Workload API is when nobody says otherwise (contract §9).
pub const DEFAULT_SOCKET: &str = "/run/spire/agent.sock";

/// The least time between two identities: what comes in between is superseded by the last of it.
const STORM_GAP: Duration = Duration::from_millis(200);

/// The least time between two connections that both succeeded: an agent that hangs up after each answer must not
/// keep this process busy.
const REOPEN_GAP: Duration = Duration::from_secs(1);

/// How often the socket is looked at while it cannot be used.
const LOOK: Duration = Duration::from_secs(1);

/// Which identity to take, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeConfig {
    /// `--spiffe-socket`
    pub endpoint: Endpoint,
    /// `--spiffe-id`, `--spiffe-hint`
    pub choice: Choice,
}

/// Identities from a Workload API.
pub struct SpiffeProvider {
    config: SpiffeConfig,
    line: Line,
    /// When the last connection was made.
    opened_at: Option<Instant>,
    /// What the socket looked like when it was last tried.
    seen: Option<Look>,
    /// The newest set that was received and not looked at.
    newest: Option<SvidSet>,
    /// A fault that came while a set was waiting to be given.
    fault: Option<Fault>,
    /// What was wrong with the newest set, for as long as there is no newer.
    unusable: Option<Explained>,
    /// What was given last.
    last: Option<Identity>,
    given_at: Option<Instant>,
    /// Whether to give the next identity even if it is the same: at first, after an error, after a refresh.
    due: bool,
    noted: Vec<String>,
}

enum Line {
    Closed,
    /// Kept between calls: a connection in the making outlives the future that asked for it.
    Opening(BoxFuture<'static, Result<Opened, Fault>>),
    Open(Box<SvidStream>),
}

impl SpiffeProvider {
    /// A provider for `config`. Connects to nothing yet.
    pub fn new(config: SpiffeConfig) -> Self {
        if let Endpoint::Tcp(address) = &config.endpoint
            && !address.ip().is_loopback()
        {
            tracing::warn!(
                %address,
                "the Workload API is not on this machine: private keys cross the network without encryption"
            );
        }
        Self {
            config,
            line: Line::Closed,
            opened_at: None,
            seen: None,
            newest: None,
            fault: None,
            unusable: None,
            last: None,
            given_at: None,
            due: true,
            noted: Vec::new(),
        }
    }

    /// The next set, over a new connection where the old one ended. Cancel safe.
    async fn receive(&mut self) -> Result<SvidSet, Fault> {
        loop {
            match &mut self.line {
                Line::Closed => {
                    self.seen = Some(Look::of(&self.config.endpoint));
                    let endpoint = self.config.endpoint.clone();
                    let not_before = self.opened_at.map(|at| at + REOPEN_GAP);
                    self.line = Line::Opening(Box::pin(async move {
                        if let Some(at) = not_before {
                            sleep_until(at).await;
                        }
                        SvidStream::open(&endpoint).await
                    }));
                }
                Line::Opening(opening) => {
                    let opened = opening.as_mut().await;
                    self.line = Line::Closed;
                    let Opened { stream, first } = opened?;
                    tracing::debug!(endpoint = %self.config.endpoint, "connected to the Workload API");
                    self.line = Line::Open(Box::new(stream));
                    self.opened_at = Some(Instant::now());
                    return Ok(first);
                }
                Line::Open(stream) => {
                    let received = stream.next().await;
                    if received.is_err() {
                        self.line = Line::Closed;
                    }
                    match received {
                        // Workload API §4.2: connect again at once. If that fails there is something to tell.
                        Err(Fault::Ended(why)) => tracing::debug!(
                            endpoint = %self.config.endpoint, why, "the Workload API ended the stream"
                        ),
                        other => return other,
                    }
                }
            }
        }
    }

    /// Takes in what has arrived. A fault waits until the set before it was given.
    fn note(&mut self, received: Result<SvidSet, Fault>) {
        self.unusable = None;
        match received {
            Ok(set) => self.newest = Some(set),
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// The newest set of those that arrive until it may be given.
    async fn settled(&mut self) -> Result<SvidSet, ProviderError> {
        loop {
            while self.fault.is_none()
                && let Some(received) = self.receive().now_or_never()
            {
                self.note(received);
            }
            let due = self.given_at.map(|at| at + STORM_GAP);
            match due.filter(|due| self.newest.is_some() && *due > Instant::now()) {
                Some(due) if self.fault.is_none() => tokio::select! {
                    received = self.receive() => self.note(received),
                    () = sleep_until(due) => {}
                },
                Some(due) => sleep_until(due).await,
                None => {
                    if let Some(set) = self.newest.take() {
                        return Ok(set);
                    }
                    if let Some(fault) = self.fault.take() {
                        return Err(self.failed(fault.explain(&self.config.endpoint)));
                    }
                    if let Some(unusable) = self.unusable.clone() {
                        return Err(self.failed(unusable));
                    }
                    let received = self.receive().await;
                    self.note(received);
                }
            }
        }
    }

    /// Every fault here passes when somebody starts the agent or registers an entry, without a word to this process.
    fn failed(&mut self, explained: Explained) -> ProviderError {
        self.due = true;
        ProviderError::Retry(explained)
    }

    /// Tells what is odd about a set, once.
    fn tell(&mut self, notes: Vec<String>) {
        for note in notes.iter().filter(|note| !self.noted.contains(note)) {
            tracing::warn!(endpoint = %self.config.endpoint, "{note}");
        }
        self.noted = notes;
    }
}

impl Provider for SpiffeProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Spiffe
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        loop {
            let set = self.settled().await?;
            match set.take(&self.config.choice) {
                Ok(Taken { identity, notes }) => {
                    self.tell(notes);
                    let last = self.last.as_ref();
                    if !self.due && last.is_some_and(|last| last.same_material(&identity)) {
                        continue;
                    }
                    self.due = false;
                    self.given_at = Some(Instant::now());
                    self.last = Some(identity.clone());
                    return Ok(identity);
                }
                Err(unusable) => {
                    let explained = unusable.explain(&self.config.endpoint);
                    self.unusable = Some(explained.clone());
                    return Err(self.failed(explained));
                }
            }
        }
    }

    /// The next call connects anew: an agent answers a new call with what it has then.
    fn refresh(&mut self) {
        self.line = Line::Closed;
        self.opened_at = None;
        self.newest = None;
        self.fault = None;
        self.unusable = None;
        self.due = true;
    }

    async fn changed(&mut self) {
        if matches!(self.line, Line::Open(_)) {
            let received = self.receive().await;
            self.note(received);
            return;
        }
        if matches!(self.config.endpoint, Endpoint::Tcp(_)) {
            return future::pending().await;
        }
        while self.seen.as_ref() == Some(&Look::of(&self.config.endpoint)) {
            sleep(LOOK).await;
        }
    }
}

/// What a socket looks like from outside: an agent that starts makes it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    There {
        device: u64,
        inode: u64,
        mode: u32,
        changed: (i64, i64),
    },
    Missing(std::io::ErrorKind),
    /// Not a file.
    Remote,
}

impl Look {
    fn of(endpoint: &Endpoint) -> Self {
        let Endpoint::Unix(path) = endpoint else {
            return Self::Remote;
        };
        match std::fs::metadata(path) {
            Ok(found) => Self::There {
                device: found.dev(),
                inode: found.ino(),
                mode: found.mode(),
                changed: (found.ctime(), found.ctime_nsec()),
            },
            Err(error) => Self::Missing(error.kind()),
        }
    }
}
