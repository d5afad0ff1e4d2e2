//! The access point: accepts executors, keeps the registry, answers operators.
//!
//! Building and running are two steps: [`AccessPoint::bind`] takes the ports, opens the store and the audit
//! log and fails with a reason; [`Bound::run`] serves until told to stop.

mod attempts;
mod bars;
mod comebacks;
mod connection;
mod dashboard;
mod doors;
pub mod http;
mod metrics;
mod observer;
mod opening;
mod operations;
mod refusals;
mod registry;
mod session;
mod trust;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, Code, Explained, Health, IdentityWatch};
use ah_tls::{AcceptObserver, Handshakes, Policy, PolicyCell, SanRules, ServerConfigs};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use doors::{AdminSocket, serve_http, serve_https};
pub use operations::{
    AccessPointView, AttemptView, BarView, EventFilter, ExecutorView, FleetEvent, Known,
    ListFilter, Listing, LiveView, NearestView, NotDone, Selector, Why, WhyFilter, path_segment,
};
pub use registry::Duplicates;

use crate::audit::{AuditLog, AuditTask, Entry, Event, Outcome};
use crate::store::{AnyStore, Store, StoreWriter};
use attempts::Attempts;
use bars::{Bars, follow_revocations, revocation_set};
use comebacks::Comebacks;
use metrics::{Metrics, Sample};
use refusals::Refusals;
use registry::{Limits, Registry};
use trust::follow_trust;

/// What may change while the access point runs (SIGHUP).
#[derive(Clone, Debug, PartialEq)]
pub struct Tunables {
    /// Which certificates are admitted (AP-5 to AP-8).
    pub rules: SanRules,
    /// Refuse certificates that break a rule for issuers, too (AP-8).
    pub strict_svid: bool,
    /// Most executors at a time (AP-16).
    pub max_executors: Option<usize>,
    /// How often both sides send a heartbeat (AP-16).
    pub heartbeat_interval: Duration,
    /// Deadline of a handshake, and of the first call after it (AP-16).
    pub handshake_timeout: Duration,
    /// What to do with a second process of the same identity (RG-2).
    pub duplicates: Duplicates,
    /// How long executors have to leave at shutdown (AP-19).
    pub drain_timeout: Duration,
}

/// What an access point is made of.
pub struct AccessPoint {
    /// Listeners for executors (AP-1).
    pub listeners: Vec<TcpListener>,
    /// Admission control (AP-16).
    pub handshakes: Handshakes,
    /// What may change later.
    pub tunables: Tunables,
    /// The registry's store (AP-11).
    pub store: AnyStore,
    /// Who we are.
    pub identity: IdentityWatch,
    /// How our identity is doing.
    pub health: watch::Receiver<Health>,
    /// The audit log (AP-12), and the task that writes it.
    pub audit: (AuditLog, AuditTask),
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// All that the parts of a running access point share.
pub(crate) struct Shared {
    registry: Registry,
    policy: PolicyCell,
    tunables: ArcSwap<Tunables>,
    configs: ServerConfigs,
    health: watch::Receiver<Health>,
    store: AnyStore,
    writer: StoreWriter,
    bars: Mutex<Bars>,
    /// Why the store's revocations cannot be read, while they cannot.
    unread_revocations: Mutex<Option<String>>,
    audit: AuditLog,
    metrics: Metrics,
    refusals: Refusals,
    attempts: Attempts,
    comebacks: Comebacks,
    /// When the metrics were last collected over TCP.
    scraped: Mutex<Option<SystemTime>>,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<FleetEvent>,
    /// Nobody new is admitted any more.
    draining: CancellationToken,
    /// There will be no more events.
    over: CancellationToken,
    started_at: SystemTime,
    /// Where executors dial, with the real ports.
    listening: Vec<SocketAddr>,
}

impl Shared {
    fn limits(&self) -> Limits {
        let tunables = self.tunables.load();
        Limits {
            max_executors: tunables.max_executors,
            duplicates: tunables.duplicates,
            patience: tunables.heartbeat_interval.min(Duration::from_secs(2)),
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        self.tunables.load().heartbeat_interval
    }

    fn handshake_timeout(&self) -> Duration {
        self.tunables.load().handshake_timeout
    }

    fn drain_timeout(&self) -> Duration {
        self.tunables.load().drain_timeout
    }
}

/// An access point whose ports are taken and whose store is open.
pub struct Bound {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    handshakes: Handshakes,
    background: JoinSet<()>,
}

impl AccessPoint {
    /// Reads what the store remembers and builds the first TLS configuration.
    ///
    /// A store that cannot be read is an error here, though not later: without its revocations the access
    /// point would let revoked executors in.
    pub async fn bind(self) -> Result<Bound, Explained> {
        let unreadable = |error: crate::store::StoreError| {
            Explained::new(Code::Other, "cannot read the registry's store")
                .cause(error)
                .hint("the access point starts only with its revocations at hand; mend the store of --db first")
        };
        let revocations = self.store.revocations().await.map_err(unreadable)?;
        let known = self.store.executors().await.map_err(unreadable)?;
        let policy = PolicyCell::new(Policy {
            rules: self.tunables.rules.clone(),
            revocations: revocation_set(revocations.into_iter().map(|(target, _)| target)),
            strict_svid: self.tunables.strict_svid,
        });
        let (configs, follow) =
            ServerConfigs::publish(self.identity, policy.clone(), Arc::clone(&self.clock))?;
        let (audit, write_audit) = self.audit;
        let (writer, write) = StoreWriter::new(self.store.clone());
        let registry = Registry::default();
        registry.remember(known.into_iter().map(|record| record.id));
        let shared = Arc::new(Shared {
            registry,
            policy,
            tunables: ArcSwap::from_pointee(self.tunables),
            configs,
            health: self.health,
            store: self.store,
            writer,
            bars: Mutex::default(),
            unread_revocations: Mutex::default(),
            audit,
            metrics: Metrics::new(),
            refusals: Refusals::default(),
            attempts: Attempts::default(),
            comebacks: Comebacks::default(),
            scraped: Mutex::default(),
            started_at: self.clock.now(),
            clock: self.clock,
            events: broadcast::channel(1024).0,
            draining: CancellationToken::new(),
            over: CancellationToken::new(),
            listening: self
                .listeners
                .iter()
                .filter_map(|listener| listener.local_addr().ok())
                .collect(),
        });
        let mut background = JoinSet::new();
        background.spawn(follow);
        background.spawn(write.run());
        background.spawn(write_audit.run());
        background.spawn(follow_trust(Arc::clone(&shared)));
        background.spawn(follow_revocations(Arc::clone(&shared)));
        background.spawn(refusals::sum_up(Arc::clone(&shared)));
        Ok(Bound {
            shared,
            listeners: self.listeners,
            handshakes: self.handshakes,
            background,
        })
    }
}

impl Bound {
    /// The addresses executors may dial, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.listening.clone()
    }

    /// The operators' side of this access point.
    pub fn operator(&self) -> Operator {
        Operator(Arc::clone(&self.shared))
    }

    /// Serves until `stop`, then drains: nobody new, everybody told to come back, at most `drain_timeout`.
    /// An `Err` names a part that ended though it must not.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Explained> {
        let shared = &self.shared;
        if shared.policy.load().rules.is_empty() {
            tracing::warn!(
                "no --executor-san-* rule is set: every certificate that chains to a trusted root is admitted"
            );
        }
        shared.note(Event::Started, Outcome::Success, None);
        self.background.spawn(audit_identity(Arc::clone(shared)));
        let mut listeners = JoinSet::new();
        for listener in self.listeners.drain(..) {
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "listening for executors");
            }
            let serving = Arc::clone(shared);
            let on_connection = move |accepted| connection::serve(Arc::clone(&serving), accepted);
            listeners.spawn(ah_tls::serve(
                listener,
                shared.configs.clone(),
                self.handshakes.clone(),
                Arc::clone(shared) as Arc<dyn AcceptObserver>,
                on_connection,
                shared.draining.clone().cancelled_owned(),
            ));
        }
        let ended = tokio::select! {
            // Told to stop, the identity's supervisor ends too: that is no fault then.
            biased;
            () = stop.cancelled() => Ok(()),
            ended = self.background.join_next() => Err(lost("a background task", ended)),
            ended = listeners.join_next() => Err(lost("a listener", ended)),
        };
        shared.draining.cancel();
        let timeout = shared.drain_timeout();
        let spread = spread_for(shared.registry.len());
        tracing::info!(executors = shared.registry.len(), "draining");
        let drained = tokio::time::timeout(timeout, async {
            shared
                .registry
                .drain(Duration::from_millis(100), spread)
                .await;
            while listeners.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!(
                executors = shared.registry.len(),
                ?timeout,
                "drain timed out"
            );
        }
        listeners.shutdown().await;
        // Sessions that were cut off say so in the audit log before we say that we have stopped.
        let cut = tokio::time::timeout(FLUSH_TIMEOUT, shared.registry.emptied());
        if cut.await.is_err() {
            tracing::error!(executors = shared.registry.len(), "sessions did not end");
        }
        shared.sum_up_refusals();
        shared.note(Event::Stopped, Outcome::Success, None);
        if let Err(error) = shared.writer.close(FLUSH_TIMEOUT).await {
            tracing::error!("{error}");
        }
        let unwritten = shared.audit.close(FLUSH_TIMEOUT).await;
        if unwritten > 0 {
            tracing::error!(
                unwritten,
                "audit events could not be written before the end"
            );
        }
        shared.over.cancel();
        self.background.shutdown().await;
        ended
    }
}

/// At shutdown, what is still to be written has this long.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A thousand executors a second come back without anyone waiting in line.
fn spread_for(executors: usize) -> Duration {
    Duration::from_millis(u64::try_from(executors).unwrap_or(u64::MAX)).min(Duration::from_secs(30))
}

fn lost(what: &str, ended: Option<Result<(), tokio::task::JoinError>>) -> Explained {
    let why = match ended {
        Some(Err(error)) => error.to_string(),
        _ => "it ended by itself".to_owned(),
    };
    Explained::new(Code::Other, format!("{what} of the access point stopped"))
        .cause(why)
        .hint("this is a defect of this software; the log above tells more")
}

/// Writes renewals of our own identity, and failures to renew it, to the audit log.
///
/// A renewal is written when TLS presents the new certificate, so that the line names that one; the health
/// changes before.
async fn audit_identity(shared: Arc<Shared>) {
    // Clones of receivers that have seen nothing since the access point was made: no change is missed.
    let mut configs = shared.configs.clone();
    let mut health = shared.health.clone();
    let renewals = async {
        while configs.next().await.is_some() {
            shared.note(Event::IdentityRenewed, Outcome::Success, None);
        }
        std::future::pending::<()>().await;
    };
    let failures = async {
        let mut told = None;
        loop {
            let failure = health.borrow_and_update().last_error.clone();
            let failure = failure.map(|failure| failure.explained);
            if failure != told
                && let Some(explained) = &failure
            {
                let reason = Some(explained.text.clone());
                shared.note(Event::IdentityRenewalFailed, Outcome::Failure, reason);
            }
            told = failure;
            if health.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::join!(renewals, failures);
}

impl Shared {
    /// An audit line about this access point itself.
    fn note(&self, event: Event, outcome: Outcome, reason: Option<String>) {
        let published = Arc::clone(self.configs.current().published());
        self.audit.record(Entry {
            event,
            outcome,
            executor_id: None,
            peer: None,
            certificate: Some(published.identity.leaf().into()),
            provider: Some(published.provider),
            reason,
        });
    }

    fn sample(&self) -> Sample {
        let store = self.writer.health();
        let audit = self.audit.health();
        let sessions = self.registry.sessions();
        let skews = sessions.iter().filter_map(|session| session.clock_skew);
        Sample {
            now: self.clock.now(),
            clock_skew: skews.max().unwrap_or_default(),
            coming_and_going: self.comebacks.often(),
            sessions: sessions
                .iter()
                .map(|session| (session.not_after(), session.silence()))
                .collect(),
            identity: self.health.borrow().clone(),
            store_up: store.ok,
            store_pending: store.pending,
            store_lag: store.lag,
            audit_up: audit.ok,
            audit_pending: audit.pending,
        }
    }
}

/// The operators' side of an access point: what the admin socket, the REST interface and signals call.
#[derive(Clone)]
pub struct Operator(Arc<Shared>);
