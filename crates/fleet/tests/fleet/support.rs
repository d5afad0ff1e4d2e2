//! An access point and executors as tests start them.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ah_fleet::access_point::{
    AccessPoint, Duplicates, ExecutorView, ListFilter, Operator, Tunables,
};
use ah_fleet::audit::{AuditLog, AuditTarget};
use ah_fleet::executor::{Event, Executor, Once, Remote, Status};
use ah_fleet::store::AnyStore;
use ah_identity_provider::{Clock, Explained, Health, Identity, ProviderKind, Published};
use ah_testkit::ca::{TestCa, TestLeaf, published};
use ah_tls::{ClientConfigs, Expect, HandshakeLimits, Handshakes, SanRules};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous: it is reached only by a test that fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for what `look` finds.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(DEADLINE, found).await {
        Ok(found) => found,
        Err(_) => panic!("{what} did not come"),
    }
}

/// The machine's clock, and a way to move it on.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

pub(crate) fn health(not_after: Option<SystemTime>) -> Health {
    Health {
        provider: ProviderKind::Files,
        generation: 1,
        rotations: 0,
        failures: 0,
        last_error: None,
        next_renewal: None,
        warning: None,
        not_after,
    }
}

pub(crate) fn tunables() -> Tunables {
    Tunables {
        rules: SanRules::default(),
        strict_svid: false,
        max_executors: None,
        heartbeat_interval: Duration::from_secs(2),
        handshake_timeout: Duration::from_secs(10),
        duplicates: Duplicates::Reject,
        drain_timeout: Duration::from_secs(30),
    }
}

pub(crate) fn rules(prefix: &str) -> SanRules {
    SanRules::parse(&[prefix.to_owned()], &[], &[]).unwrap()
}

/// What an access point is started with, which outlives it.
pub(crate) struct Site {
    pub(crate) ca: TestCa,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) tunables: Tunables,
    pub(crate) handshakes: HandshakeLimits,
    pub(crate) database: String,
    folder: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self {
            ca: TestCa::new("example.org"),
            clock: Arc::default(),
            tunables: tunables(),
            handshakes: HandshakeLimits::default(),
            database: format!("sqlite:{}", folder.path().join("registry.db").display()),
            folder,
        }
    }

    pub(crate) fn with(change: impl FnOnce(&mut Tunables)) -> Self {
        let mut site = Self::new();
        change(&mut site.tunables);
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn server_leaf(&self) -> TestLeaf {
        let leaf = self.ca.leaf().spiffe("spiffe://example.org/ah/serve");
        leaf.dns("localhost").ip("127.0.0.1").issue()
    }

    pub(crate) fn leaf(&self, number: u32) -> TestLeaf {
        self.ca.leaf().spiffe(&id(number)).issue()
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_logging_to("audit.jsonl").await
    }

    pub(crate) async fn start_logging_to(&self, audit: &str) -> Running {
        let audit = self.path(audit);
        let clock: Arc<dyn Clock> = self.clock.clone();
        let (identity, identity_watch) = self.server_leaf().watch(&[&self.ca]);
        let end = identity_watch.current().identity.leaf().not_after;
        let (health, health_watch) = watch::channel(health(Some(end)));
        let bound = AccessPoint {
            listeners: vec![ah_tls::bind("127.0.0.1:0".parse().unwrap()).unwrap()],
            handshakes: Handshakes::new(self.handshakes),
            tunables: self.tunables.clone(),
            store: AnyStore::open(&self.database).await.unwrap(),
            identity: identity_watch,
            health: health_watch,
            audit: AuditLog::open(AuditTarget::File(audit.clone()), clock.clone()).unwrap(),
            clock,
        }
        .bind()
        .await
        .unwrap();
        let address = bound.addresses()[0];
        let operator = bound.operator();
        let stop = CancellationToken::new();
        let task = tokio::spawn(bound.run(stop.clone()));
        Running {
            operator,
            address,
            identity,
            health,
            audit,
            stop,
            task,
        }
    }
}

pub(crate) fn id(number: u32) -> String {
    format!("spiffe://example.org/ah/agent/{number}")
}

/// An access point that serves.
pub(crate) struct Running {
    pub(crate) operator: Operator,
    pub(crate) address: SocketAddr,
    pub(crate) identity: watch::Sender<Arc<Published>>,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) audit: PathBuf,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Explained>>,
}

impl Running {
    pub(crate) async fn views(&self) -> Vec<ExecutorView> {
        self.operator.list(&ListFilter::default()).await.executors
    }

    pub(crate) async fn live(&self) -> usize {
        let views = self.views().await;
        views.iter().filter(|view| view.live.is_some()).count()
    }

    /// Waits until so many executors are enrolled.
    pub(crate) async fn wait_live(&self, count: usize) {
        eventually(&format!("{count} live executors"), async || {
            (self.live().await == count).then_some(())
        })
        .await;
    }

    /// Stops in order and gives what the audit log holds.
    pub(crate) async fn stopped(self) -> Vec<serde_json::Value> {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.task).await;
        ended.unwrap().unwrap().unwrap();
        lines(&self.audit)
    }

    /// As [`Self::stopped`], after `last` was done and has shown.
    pub(crate) async fn stopped_after<F: Future<Output = ()>>(
        self,
        last: impl FnOnce() -> F,
    ) -> Vec<serde_json::Value> {
        last().await;
        self.wait_live(0).await;
        self.stopped().await
    }

    /// Waits for an audit line of `event`.
    pub(crate) async fn audited(&self, event: &str) -> serde_json::Value {
        eventually(event, async || {
            lines(&self.audit)
                .into_iter()
                .find(|line| line["event"] == event)
        })
        .await
    }

    /// The value of one sample line, such as `ah_sessions` or `ah_rejections_total{reason="usage"}`.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let text = self.operator.metrics();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")))?;
        line.parse().ok()
    }

    pub(crate) async fn wait_metric(&self, name: &str, value: f64) {
        eventually(&format!("{name} {value}"), async || {
            (self.metric(name) == Some(value)).then_some(())
        })
        .await;
    }
}

pub(crate) fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

pub(crate) fn events(lines: &[serde_json::Value]) -> Vec<&str> {
    lines
        .iter()
        .filter_map(|line| line["event"].as_str())
        .collect()
}

/// An executor, before it starts.
pub(crate) struct Plan {
    pub(crate) identity: Identity,
    pub(crate) remotes: Vec<SocketAddr>,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) once: Option<Once>,
    pub(crate) expect: Expect,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Plan {
    pub(crate) fn new(site: &Site, leaf: &TestLeaf, remotes: &[SocketAddr]) -> Self {
        Self {
            identity: leaf.identity(&[&site.ca]),
            remotes: remotes.to_vec(),
            name: "worker".into(),
            labels: BTreeMap::new(),
            once: None,
            expect: Expect::RemoteName,
            clock: site.clock.clone(),
        }
    }

    pub(crate) fn start(self) -> Worker {
        let not_after = self.identity.leaf().not_after;
        let (identity, watch) =
            ah_identity_provider::IdentityWatch::starting_at(published(1, self.identity));
        let (configs, follow) =
            ClientConfigs::publish(watch, self.expect, false, Arc::clone(&self.clock)).unwrap();
        let following = tokio::spawn(follow);
        let (health, health_watch) = watch::channel(health(Some(not_after)));
        let executor = Executor {
            remotes: self
                .remotes
                .iter()
                .map(|address| Remote {
                    host: address.ip().to_string(),
                    port: address.port(),
                })
                .collect(),
            name: self.name,
            labels: self.labels,
            connect_timeout: Duration::from_secs(30),
            once: self.once,
            configs,
            health: health_watch,
            provider: ProviderKind::Files,
            clock: self.clock,
        };
        let status = executor.status();
        let shown = status.subscribe();
        let (tell, told) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let running = executor.run(
            status,
            move |event| {
                let _ = tell.send(event.clone());
            },
            stop.clone(),
        );
        Worker {
            status: shown,
            told,
            identity,
            health,
            stop,
            task: tokio::spawn(running),
            _following: tokio_util::task::AbortOnDropHandle::new(following),
        }
    }
}

/// An executor that runs.
pub(crate) struct Worker {
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) told: mpsc::UnboundedReceiver<Event>,
    pub(crate) identity: watch::Sender<Arc<Published>>,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Explained>>,
    _following: tokio_util::task::AbortOnDropHandle<()>,
}

impl Worker {
    /// The next thing that a person would be told.
    pub(crate) async fn next(&mut self) -> Event {
        tokio::time::timeout(DEADLINE, self.told.recv())
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn enrolled(&mut self) {
        let event = self.next().await;
        assert!(matches!(event, Event::Enrolled { .. }), "{event:?}");
    }

    pub(crate) fn rotate(&self, generation: u64, identity: Identity) {
        self.identity
            .send_replace(Arc::new(published(generation, identity)));
    }

    /// How it ended.
    pub(crate) async fn ended(self) -> Result<(), Explained> {
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap()
    }
}
